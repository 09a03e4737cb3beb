"""A study over a Ray cluster of two machines (as Ray sees them), of which one is lost while it trains."""

import contextlib
import importlib
import os
import socket
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from fixtures.small_studies import TINY, same_study
from rich.console import Console

from anchored.cli.main import main
from anchored.config.recipe import Recipe
from anchored.errors import UserError
from anchored.store.layout import StudyFolder
from anchored.study import jobs, ray_cluster, study, workers

ray = pytest.importorskip("ray")


@pytest.fixture
def machines() -> Iterator[Any]:
    """Two machines of one core each, and one without any, where the study is started."""
    cluster_utils: Any = pytest.importorskip("ray.cluster_utils")
    sizes = {"object_store_memory": 80_000_000, "include_dashboard": False}
    made = cluster_utils.Cluster(initialize_head=True, head_node_args={"num_cpus": 0, **sizes})
    yield made
    made.shutdown()


def test_the_same_rows_though_a_machine_is_lost(machines: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    longer = replace(TINY.train, epochs=20)  # so that a machine can be lost in mid-training
    two = replace(TINY, grid=replace(TINY.grid, seeds=(0,)), train=longer)  # trainings, one a machine
    alone, spread = StudyFolder(tmp_path / "alone"), StudyFolder(tmp_path / "spread")
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)  # one for each of two workers, as on the cluster
    study.study(two, alone.path, Console(), workers=2)
    nodes = [machines.add_node(num_cpus=1, object_store_memory=80_000_000) for _ in range(2)]
    machines.wait_for_nodes()
    show, lost = workers.Workload.show, list[str]()
    raylets = {node.all_processes["raylet"][0].process.pid: node for node in nodes}

    def machine(worker: str) -> Any:
        """The machine that a worker runs on, or None if it has ended."""
        with contextlib.suppress(OSError):
            stat = Path(f"/proc/{worker.rpartition(':')[2]}/stat").read_text()
            return raylets.get(int(stat.rpartition(")")[2].split()[1]))  # the parent of its process
        return None

    def lose(work: workers.Workload, cell: Any) -> jobs.State | None:
        found = show(work, cell)
        if found and found.phase == "training" and not lost and (node := machine(found.worker)):
            lost.append(found.worker)
            machines.remove_node(node, allow_graceful=False)
        return found

    monkeypatch.setattr(workers.Workload, "show", lose)
    study.study(two, spread.path, Console(), ray=machines.address)
    assert lost
    assert same_study(alone, spread)
    seen = {state.worker for cell in two.cells() if (state := jobs.read_state(spread.run(cell.name)))}
    assert not any(worker.endswith(f":{os.getpid()}") for worker in seen)
    assert lost[0] not in seen  # its cell was done by another


def test_a_task_without_gpus_sees_none(machines: Any) -> None:
    machines.add_node(num_cpus=1, num_gpus=2, object_store_memory=80_000_000)
    machines.wait_for_nodes()
    with ray_cluster.RayCluster(machines.address, cpus=1, gpus=0) as connected:
        seen = connected.start(lambda: os.environ["CUDA_VISIBLE_DEVICES"], ()).result
        assert connected.ray.get(seen) == ""


def test_a_machine_that_lacks_a_module_is_one_line(
    machines: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "only_here.py").write_text("def work() -> None: ...\n")
    with monkeypatch.context() as here:
        here.syspath_prepend(str(tmp_path))
        function = importlib.import_module("only_here").work
    machines.add_node(num_cpus=1, object_store_memory=80_000_000)
    machines.wait_for_nodes()
    with ray_cluster.RayCluster(machines.address, cpus=1, gpus=0) as connected:
        task = connected.start(function, ())
        task.join(60)
        lacks = r"a machine lacks what is installed here \(ModuleNotFoundError: No module named 'only_here'\): install"
        with pytest.raises(UserError, match=lacks):
            print(task.exitcode)


def test_what_a_cluster_has_no_room_for_is_one_line(
    machines: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["study", "demo", "--scale", "0.02", "-o", str(tmp_path), "--ray", machines.address]
    assert main([*words, "--cluster.cpus", "3", "--cluster.gpus", "0.5"]) == 2
    said = "no machine of the Ray cluster has 3 CPU and 0.5 GPU for a training (the most on one: 0 CPU, 0 GPU)"
    assert said in capsys.readouterr().err


def test_no_cluster_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["study", "demo", "--scale", "0.02", "-o", str(tmp_path), "--ray", "auto"]
    assert main(words) == 2
    assert capsys.readouterr().err.startswith("anchored: --ray auto: no Ray cluster answers: start one (ray start")


@pytest.mark.parametrize("port", ["closed", "99999"])
@pytest.mark.parametrize("by", ["address", "environment"])
def test_an_address_where_nothing_listens_is_one_line(port: str, by: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if port == "closed":
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = str(free.getsockname()[1])
    address = f"127.0.0.1:{port}"
    if by == "environment":
        monkeypatch.setenv("RAY_ADDRESS", address)
        address = "auto"
    began = time.monotonic()
    with pytest.raises(UserError, match=rf"--ray {address}: no Ray cluster answers: start one .*, or give"):
        ray_cluster.RayCluster(address, 1, 0)
    assert time.monotonic() - began < 30


def test_without_ray_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "ray", None)
    with pytest.raises(UserError, match=r"--ray needs Ray: pip install 'anchored\[ray\]'"):
        ray_cluster.RayCluster("auto", 1, 0)


@pytest.mark.parametrize(
    ("needs", "resources", "room"),
    [
        ({"CPU": 2.0, "GPU": 0.0}, {"CPU": 5.0}, 2),
        ({"CPU": 1.0, "GPU": 0.1}, {"CPU": 64.0, "GPU": 2.0}, 20),
        ({"CPU": 1.0, "GPU": 1.0}, {"CPU": 64.0}, 0),
    ],
)
def test_room(needs: dict[str, float], resources: dict[str, float], room: int) -> None:
    assert ray_cluster.tasks_that_fit(needs, resources) == room


def test_a_machine_that_does_not_see_the_folder_says_so(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"does not see .*: give -o a folder on a disk that all machines share"):
        workers.run_worker(str(tmp_path), {}, None, 1)


def test_shares_of_a_cluster_are_checked() -> None:
    for section, said in (({"cpus": 0}, "cluster.cpus is 0"), ({"gpus": -1.0}, "cluster.gpus is -1")):
        with pytest.raises(UserError, match=said):
            replace(Recipe.parse({"cluster": section})).check()
