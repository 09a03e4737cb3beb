"""Several ranks: errors, one network by two processes however they were started, shared passes."""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, distributed, nn

from anchored.config.recipe import Cell, Recipe
from anchored.config.settings import Anchoring, Data, Tail, Training
from anchored.errors import UserError
from anchored.evaluation import suites
from anchored.evaluation.evaluator import evaluator_of
from anchored.method import collectives
from anchored.store import files as disk
from anchored.store.layout import Run
from anchored.study import workers
from anchored.study.progress import quiet
from anchored.training import launch
from anchored.training.fit import train

STUDY = [
    "study", "demo", "--scale", "0.03", "--train.epochs", "6", "--train.batch_size", "32", "--train.accelerator", "cpu",
    "--train.average", "0.5", "--grid.protocols", "[ram]", "--grid.tail_weights", "[0.1]", "--grid.seeds", "[0]",
    "--evaluate.bootstrap", "100",
    "--evaluate.severities", "[1]", "--evaluate.corruptions", "[contrast]", "--evaluate.ood", "[blobs, digits]",
    "--evaluate.adaptation", "[digits]",
]  # fmt: skip
CELL = "runs/small-ram-0.25-tail0.1-seed0"


def plain_network(channels: int, classes: int) -> nn.Module:
    """Without batch norm, whose statistics come from a process's own images."""
    layers = nn.Conv2d(channels, 8, 3, stride=4), nn.ReLU(), nn.AdaptiveAvgPool2d(3), nn.Flatten()
    return nn.Sequential(*layers, nn.Linear(72, classes))


def normed_network(channels: int, classes: int) -> nn.Module:
    """With batch norm of the images themselves, whose mean does not depend on weights."""
    return nn.Sequential(nn.BatchNorm2d(channels), nn.AdaptiveAvgPool2d(3), nn.Flatten(), nn.Linear(9, classes))


def plain_cell(devices: int) -> Cell:
    training = Training(
        epochs=2,
        batch_size=32,
        learning_rate=0.1,
        crop_padding=2,
        accelerator="cpu",
        average=0.5,
        devices=devices,
    )
    images = Data("fashion-mini-known", 0.03)
    return Cell(f"python:{__name__}:plain_network", "standard", 0.0, 0.0, 0, images, Anchoring(), Tail(), training)


def hidden_cell(devices: int) -> Cell:
    """Anchored at the last layer, with a front that is trained."""
    return replace(plain_cell(devices), protocol="ram", mask_probability=0.25, anchoring=Anchoring(at="4"))


def normed_cell(devices: int) -> Cell:
    """With averaged statistics."""
    return replace(plain_cell(devices), network=f"python:{__name__}:normed_network")


def fails(who: tuple[int, ...]) -> float:
    """An error on some ranks, while the others wait for them in a collective."""
    if collectives.get_rank() in who:
        raise UserError("a bad image")
    return float(collectives.all_reduce(torch.ones(())))


def refused() -> None:
    raise UserError("a folder of another study")


def scenario(name: str, folder: Path) -> None:
    """What each of two ranks does."""
    match name:
        case "trains":
            assert collectives.from_rank_zero(lambda: [collectives.get_rank()]) == [0]
            with pytest.raises(UserError, match="a folder of another study"):
                collectives.from_rank_zero(refused)
            with pytest.raises(UserError, match="a bad image"):
                fails((0, 1))
            train(Run(folder / "run"), plain_cell(2))
            train(Run(folder / "hidden"), hidden_cell(2))
            train(Run(folder / "normed"), normed_cell(2))
            print("trained")
        case "all fail":
            fails((0, 1))
        case "one fails":
            fails((1,))
        case "one is killed":
            if collectives.get_rank() == 1:
                os.kill(os.getpid(), signal.SIGKILL)
            fails(())


def one_rank(name: str, folder: Path, said: Path, variables: dict[str, str]) -> None:
    """A rank, in a process that has imported what it needs: what it prints goes into files of ``said``."""
    os.environ.update(variables)
    for number, stream in enumerate(("out", "errors"), start=1):
        os.dup2(os.open(said / f"{stream}{variables['RANK']}", os.O_WRONLY | os.O_CREAT), number)
    quiet()
    if name == "one fails" and variables["RANK"] == "1":
        launch.GRACE = 1.0
    try:
        launch.run(lambda: scenario(name, folder), 2, "cpu")
    except UserError as error:
        print(error, file=sys.stderr)
        sys.exit(2)


def ranks(name: str, folder: Path) -> tuple[list[int | None], list[str], list[str]]:
    """Exit statuses, output and errors of two processes, ended as torchrun does where one fails."""
    said = folder / "said"
    said.mkdir()
    torchrun = {"TORCHELASTIC_RUN_ID": "x", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "OMP_NUM_THREADS": "1"}
    torchrun |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "GROUP_RANK": "0"}
    context = workers.process_context()
    processes = [
        context.Process(target=one_rank, args=(name, folder, said, {**torchrun, "RANK": rank, "LOCAL_RANK": rank}))
        for rank in ("0", "1")
    ]
    for process in processes:
        process.start()
    while all(each.exitcode in (None, 0) for each in processes) and None in [each.exitcode for each in processes]:
        time.sleep(0.05)
    if any(process.exitcode for process in processes):
        for process in processes:
            process.terminate()
    for process in processes:
        process.join(60)
    texts = [[(said / f"{stream}{rank}").read_text() for rank in (0, 1)] for stream in ("out", "errors")]
    return [process.exitcode for process in processes], texts[0], texts[1]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def weights(run: Path) -> dict[str, Tensor]:
    return disk.load_tensors(Run(run).weights_file)[0]


def test_shared_errors_and_a_training_that_equals_one_process(tmp_path: Path) -> None:
    assert ranks("trains", tmp_path) == ([0, 0], ["trained\n", ""], ["", ""])
    train(Run(tmp_path / "alone"), plain_cell(1))
    alone = weights(tmp_path / "alone")
    for name, value in weights(tmp_path / "run").items():
        torch.testing.assert_close(value, alone[name], rtol=1e-4, atol=1e-5)
    train(Run(tmp_path / "normed alone"), normed_cell(1))
    means = [weights(tmp_path / name)["0.running_mean"] for name in ("normed", "normed alone")]
    torch.testing.assert_close(means[0], means[1], rtol=1e-4, atol=1e-5)
    hidden = weights(tmp_path / "hidden")
    assert hidden["network.4.weight"].shape[1] == 2 * 72
    assert all(bool(value.isfinite().all()) for value in hidden.values())


def test_an_error_of_all_ranks_is_rank_zeros_line(tmp_path: Path) -> None:
    assert ranks("all fail", tmp_path) == ([2, -signal.SIGTERM], ["", ""], ["a bad image\n", ""])


def test_an_error_of_one_rank_names_it_and_ends_all(tmp_path: Path) -> None:
    statuses, _, errors = ranks("one fails", tmp_path)
    assert statuses[1] == 2
    assert statuses[0] != 0
    assert errors == ["", "rank 1 of 2: a bad image\n"]


def test_a_rank_that_is_killed_ends_all(tmp_path: Path) -> None:
    statuses, _, errors = ranks("one is killed", tmp_path)
    assert statuses[1] == -signal.SIGKILL
    assert statuses[0] != 0
    assert errors == ["", ""]


def command(*words: str, variables: dict[str, str] | None = None) -> subprocess.Popen[str]:
    known = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM", "MASTER", "LOCAL_"))}
    line = [sys.executable, "-m", "anchored", *words]
    environment = {**known, "OMP_NUM_THREADS": "1", **(variables or {})}
    return subprocess.Popen(
        line, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )


def finished(process: subprocess.Popen[str]) -> str:
    """What a command said, which must be no complaint."""
    out, complaints = process.communicate(timeout=300)
    assert (process.returncode, complaints) == (0, "")
    return out


def contents(folder: Path) -> dict[str, bytes]:
    files = ["results.csv", *(f"{CELL}/{name}" for name in ("weights.safetensors", "cell.json", "rows.csv"))]
    files += [f"{CELL}/outputs/{name}.safetensors" for name in ("test", "ood-digits", "corruption-contrast-1")]
    return {name: (folder / name).read_bytes() for name in files}


@pytest.fixture(scope="module")
def studied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study by two processes that the command starts."""
    folder = tmp_path_factory.mktemp("studies") / "two"
    out = finished(command(*STUDY, "-o", str(folder), "--train.devices", "2"))
    assert out.count("Report: ") == 1
    assert out.count("training took") == 1
    return folder


def test_one_process_evaluates_the_same_weights_to_the_same_rows(studied: Path, tmp_path: Path) -> None:
    run, there = Run(tmp_path / Path(CELL).name), Run(studied / CELL)
    run.path.mkdir()
    for file in (there.cell_file, there.model_file, there.weights_file):
        (run.path / file.name).write_bytes(file.read_bytes())
    cell = Cell.parse(disk.read_json(run.cell_file), run.cell_file)
    assert cell.train.devices == 2
    settings = Recipe.parse({"evaluate": disk.read_json(there.recipe_file)["evaluate"]}).evaluate
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        suites.measure(evaluator_of(run, cell, settings))
    finally:
        torch.set_num_threads(threads)
    assert run.rows_file.read_bytes() == there.rows_file.read_bytes()
    for file in sorted((there.path / "outputs").iterdir()):
        (one, key), (two, same_key) = (disk.load_tensors(each.path / "outputs" / file.name) for each in (run, there))
        assert key == same_key
        assert one.keys() == two.keys()
        assert all(torch.equal(value, two[name]) for name, value in one.items()), file.name


def within_an_epoch(run: Run) -> bool:
    """Whether the last checkpoint is one within an epoch after the first."""
    return run.log_file.exists() and "within" in disk.load_tree(run.checkpoint_file)


def test_a_failed_command_on_several_devices_is_one_line(tmp_path: Path) -> None:
    """Launched by the command itself: a loss that diverges, and a folder of another study, which rank 0 alone reads."""
    devices = ("--train.devices", "2", "-o", str(tmp_path / "study"))
    process = command(*STUDY, *devices, "--train.learning_rate", "1e12", "--train.clip_norm", "0")
    out, errors = process.communicate(timeout=300)
    assert process.returncode == 2
    assert out.count("failed: ") == 1
    assert errors.startswith("anchored: 1 of 1 trainings failed: ")
    assert "lower train.learning_rate" in errors
    assert errors.count("\n") == 1
    process = command(*STUDY, *devices)  # another learning rate: another study
    assert process.communicate(timeout=300)[1].startswith("anchored: ")
    assert process.returncode == 2


def test_a_lost_rank_ends_the_command_and_slurm_finishes_it_to_the_same_bytes(studied: Path, tmp_path: Path) -> None:
    """Begun by the command, which loses a rank; gone on by SLURM's tasks, which are killed; and finished by them."""
    folder = tmp_path / "two"
    run = Run(folder / CELL)
    every_step = [*STUDY, "-o", str(folder), "--train.checkpoint_minutes", "0"]
    process = command(*every_step, "--train.devices", "2")
    addresses = set[str]()
    while not within_an_epoch(run):
        assert process.poll() is None
        addresses |= listened_at([process.pid, *children(process.pid)])
        time.sleep(0.05)
    assert addresses == {"127.0.0.1"}  # the store of the ranks, and gloo's sockets
    os.kill(children(process.pid)[-1], signal.SIGKILL)
    out, errors = process.communicate(timeout=60)
    assert process.returncode == 2
    assert "was lost (SIGKILL" in errors
    assert errors.count("\n") == 1
    assert out == ""
    assert not run.weights_file.exists()
    assert disk.load_tree(run.checkpoint_file)["epoch"] > 0
    reached = run.checkpoint_file.stat().st_mtime_ns
    tasks = slurm_tasks(*every_step)
    while run.checkpoint_file.stat().st_mtime_ns == reached:
        assert tasks[0].poll() is None
        time.sleep(0.05)
    for task in tasks:
        task.kill()
    assert [task.communicate()[0] for task in tasks] == ["", ""]
    assert not run.weights_file.exists()
    assert [finished(task).count("Report: ") for task in slurm_tasks(*STUDY, "-o", str(folder))] == [1, 0]
    assert contents(folder) == contents(studied)


def slurm_tasks(*words: str) -> list[subprocess.Popen[str]]:
    """The command as the two tasks of a job."""
    job = {"SLURM_NTASKS": "2", "SLURM_NTASKS_PER_NODE": "2", "SLURM_NNODES": "1", "SLURM_NODEID": "0"}
    job |= {"SLURM_JOB_ID": "7", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    return [command(*words, variables=job | {"SLURM_PROCID": str(rank), "SLURM_LOCALID": str(rank)}) for rank in (0, 1)]


def children(pid: int) -> list[int]:
    """Processes that a process has started, the oldest first."""
    return sorted(map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split()))


def listened_at(processes: list[int]) -> set[str]:
    """Addresses at which processes listen, by the tables of the system."""
    sockets = set[str]()
    for pid in processes:
        with contextlib.suppress(OSError):  # of a process or a file that is gone by now
            sockets |= {str(file.readlink()) for file in Path(f"/proc/{pid}/fd").iterdir()}
    found = set[str]()
    for table, family in (("tcp", socket.AF_INET), ("tcp6", socket.AF_INET6)):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            columns = line.split()
            if columns[3] == "0A" and f"socket:[{columns[9]}]" in sockets:  # 0A: listens
                address = bytes.fromhex(columns[1].partition(":")[0])
                words = [address[at : at + 4] for at in range(0, len(address), 4)]
                found.add(socket.inet_ntop(family, b"".join(word[::-1] for word in words)))  # little-endian words
    return found


@pytest.mark.skipif(os.geteuid() != 0 or shutil.which("ip") is None, reason="network namespaces need root and ip")
def test_two_hosts_give_the_same_bytes_as_one(studied: Path) -> None:
    """torchrun on each of two hosts, beside the processes that the command starts on one."""
    script = Path(__file__).parents[2] / "scripts" / "two_hosts.py"
    words = [sys.executable, str(script), "--one", str(studied), *STUDY[1:]]
    done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=500)
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("two hosts and one: 11 files, 0 differ \n")


def test_what_was_started_decides_how_many_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    assert launch.process_count(3) == 3
    for name, value in {"TORCHELASTIC_RUN_ID": "x", "WORLD_SIZE": "4", "RANK": "0", "LOCAL_RANK": "0"}.items():
        monkeypatch.setenv(name, value)
    assert launch.process_count(1) == launch.process_count(4) == 4
    with pytest.raises(UserError, match="2 devices are asked for, but torchrun started 4 processes"):
        launch.process_count(2)
    monkeypatch.delenv("TORCHELASTIC_RUN_ID")
    monkeypatch.setenv("SLURM_NTASKS", "2")
    with pytest.raises(UserError, match=r"SLURM: .*--ntasks-per-node=2"):
        launch.process_count(2)
    with pytest.raises(UserError, match="at least 1"):
        launch.process_count(0)
    monkeypatch.delenv("SLURM_NTASKS")
    with pytest.raises(UserError, match=r"1000 devices are asked for, and this machine has \d+ (cores|devices)"):
        launch.run(lambda: None, 1000)


@pytest.mark.parametrize(
    ("variables", "said"),
    [
        ({"SLURM_NTASKS": "2", "SLURM_NTASKS_PER_NODE": "2", "SLURM_JOB_ID": "7"}, "SLURM_NTASKS is 2, so srun"),
        ({"TORCHELASTIC_RUN_ID": "x", "WORLD_SIZE": "4", "RANK": "0", "LOCAL_RANK": "0"}, "torchrun has to start them"),
    ],
    ids=["SLURM", "torchrun"],
)
def test_who_is_waited_for_is_said(
    variables: dict[str, str], said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in (variables | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "12345"}).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(launch, "cluster_environment", lambda: _environment(variables))
    monkeypatch.setattr(launch, "PATIENCE", 0.0)
    told = launch._meeting_point(launch.cluster_environment())
    assert said in told
    assert ":12345" in told
    with launch._said_if_slow(told):
        for thread in threading.enumerate():
            if isinstance(thread, threading.Timer):
                thread.join()
    assert said in capsys.readouterr().err


RANK_ZERO_OF_TWO = {
    "TORCHELASTIC_RUN_ID": "none", "RANK": "0", "LOCAL_RANK": "0", "GROUP_RANK": "0", "WORLD_SIZE": "2",
    "LOCAL_WORLD_SIZE": "2", "ROLE_RANK": "0",
}  # fmt: skip
TASK_ZERO_OF_TWO = {
    "SLURM_NTASKS": "2", "SLURM_JOB_ID": "1", "SLURM_JOB_NAME": "x", "SLURM_PROCID": "0", "SLURM_LOCALID": "0",
    "SLURM_NODEID": "0", "SLURM_NNODES": "1", "SLURM_NTASKS_PER_NODE": "2",
}  # fmt: skip


@pytest.mark.skipif(not Path("/proc/net/tcp").exists(), reason="the system has no /proc/net/tcp, which says who waits")
@pytest.mark.parametrize(
    ("variables", "number"),
    [
        (RANK_ZERO_OF_TWO, signal.SIGTERM),
        (RANK_ZERO_OF_TWO, signal.SIGHUP),
        (TASK_ZERO_OF_TWO, signal.SIGINT),
    ],
)
def test_a_signal_ends_a_command_that_waits_for_others(
    variables: dict[str, str], number: signal.Signals, tmp_path: Path
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    environment = {**os.environ, **variables, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    command = [sys.executable, "-m", "anchored", *STUDY]
    process = subprocess.Popen(command, cwd=tmp_path, env=environment, stderr=subprocess.PIPE, text=True)
    try:
        while not any(f":{port:04X} " in table.read_text() for table in Path("/proc/net").glob("tcp*")):
            assert process.poll() is None, process.stderr
            time.sleep(0.2)
        time.sleep(0.5)
        process.send_signal(number)
        _, error = process.communicate(timeout=30)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 128 + number
    assert error.splitlines()[-1].startswith("anchored: interrupted")


def _environment(variables: dict[str, str]) -> object:
    from lightning_fabric.plugins.environments import SLURMEnvironment, TorchElasticEnvironment

    return SLURMEnvironment(auto_requeue=False) if "SLURM_NTASKS" in variables else TorchElasticEnvironment()


def test_refusals(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"train\.devices is 2, but this is one process"):
        train(Run(tmp_path), plain_cell(2))
    for changes, text in (
        ({"batch_size": 33, "devices": 2}, "train.batch_size is 33, shared by 2 devices"),
        ({"batch_size": 6, "devices": 4}, "train.batch_size is 6, shared by 4 devices"),
        ({"devices": 0}, "train.devices is 0"),
    ):
        with pytest.raises(UserError, match=text):
            Recipe.parse({"train": changes}).check()
    assert not distributed.is_initialized()
