"""The whole way, as a user walks it: the command, its folder, a kill in the middle, and a second run."""

import ctypes
import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import scipy.stats
import torch

import anchored
from anchored.cli.main import main
from anchored.data import datasets
from anchored.data.preprocessing import to_input
from anchored.method.anchoring import AnchoredModel
from anchored.store import files as disk
from anchored.store import layout
from anchored.store.layout import StudyFolder
from anchored.store.rows import Row, read_rows

PICTURES = False
TOY = ["study", "demo", "--scale", "0.02", "--evaluate.bootstrap", "100", "--grid.seeds", "[0, 1]"]
TOY += ["--grid.tail_weights", "[0.0]"]
TOY += ["--evaluate.severities", "[1, 5]", "--train.accelerator", "cpu", "--anchoring.references", "2"]
TOY += ["--evaluate.corruptions", "[gaussian_noise, contrast, pixelate, sparkles, ripple]"]


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> StudyFolder:
    folder = StudyFolder(tmp_path_factory.mktemp("study") / "demo")
    assert main([*TOY, "-o", str(folder.path)]) == 0
    return folder


def rows_of(folder: StudyFolder, **wanted: object) -> list[Row]:
    rows = read_rows(folder.results_file)
    return [row for row in rows if all(getattr(row, name) == value for name, value in wanted.items())]


def test_every_protocol_has_every_row(study: StudyFolder) -> None:
    rows = rows_of(study)
    by_run = {name: [row for row in rows if row.run == name] for name in {row.run for row in rows}}
    assert len(by_run) == 6
    keys = {
        name: [(r.metric, r.dataset, r.severity, r.corruption, r.score, r.n) for r in own]
        for name, own in by_run.items()
    }
    first = next(iter(keys.values()))
    assert all(own == first for own in keys.values())
    assert len(first) == len(set(first))
    recipe = json.loads(study.study_file.read_text())["recipe"]["evaluate"]
    corrupted = [key for key in first if key[0] == "smooth_ece" and key[3] not in ("", "mean")]
    assert len(corrupted) == len(recipe["corruptions"]) * len(recipe["severities"])
    assert all(row.low <= row.value <= row.high for row in rows)


def test_means_are_the_means_of_their_rows(study: StudyFolder) -> None:
    title = "Fashion-MNIST (mini), known classes"
    for run in ("small-standard-seed0", "small-ram-0.25-seed1"):
        for dataset, count in ((f"{title}-C", 3), (f"{title}-C̄", 2)):
            rows = {
                row.corruption: row.value
                for row in rows_of(study, run=run, metric="accuracy", severity=5, dataset=dataset)
            }
            mean = rows.pop("mean")
            assert len(rows) == count
            assert mean == pytest.approx(sum(rows.values()) / count)
        sets = rows_of(study, run=run, metric="auroc", score="energy")
        sets = [row for row in sets if not row.dataset.startswith("mean-")]  # near, far and synthetic by themselves
        assert sets[-1].dataset == "mean"
        assert sets[-1].value == pytest.approx(sum(r.value for r in sets[:-1]) / (len(sets) - 1))


def test_rows_can_be_had_again_from_the_model(study: StudyFolder) -> None:
    run = study.run("small-ram-0.25-seed0")
    model = anchored.load(run.path)
    assert isinstance(model, AnchoredModel)
    config = json.loads(run.model_file.read_text())
    test = datasets.take_fraction(datasets.load_split("fashion-mini-known", "test"), 0.02, minimum=10)
    with torch.no_grad():
        logits = model(to_input(test.images, config["mean"], config["std"]))
    accuracy = 100 * (logits.argmax(dim=1) == test.labels).double().mean().item()
    (row,) = rows_of(study, run=run.name, metric="accuracy", corruption="")
    assert row.value == pytest.approx(accuracy)
    assert row.n == len(test)


def test_every_row_has_its_replicates(study: StudyFolder) -> None:
    run = study.run("small-anchored-seed1")
    rows, draws = read_rows(run.rows_file), disk.load_tensors(run.replicates_file)[0]["draws"]
    assert draws.shape == (len(rows), 100)
    for row, own in zip(rows, draws, strict=True):
        if row.metric in ("accuracy", "auroc", "linear_probe_accuracy"):
            assert float(own.min()) - 1e-3 <= row.value <= float(own.max()) + 1e-3
        if row.metric == "accuracy" and not row.corruption:  # the interval of a rate is Wilson's, not the replicates'
            wilson = scipy.stats.binomtest(round(row.value / 100 * row.n), row.n).proportion_ci(method="wilson")
            assert (row.low, row.high) == pytest.approx((100 * wilson.low, 100 * wilson.high))


def test_results_say_how_they_were_made(study: StudyFolder) -> None:
    made = json.loads(study.study_file.read_text())
    assert torch.__version__.startswith(made["made"]["torch"])
    assert made["recipe"]["train"]["epochs"] == 1
    assert made["recipe"]["data"]["fraction"] == pytest.approx(0.02)


def contents(folder: Path, *patterns: str) -> dict[str, str]:
    files = sorted(file for pattern in patterns for file in folder.glob(pattern) if file.is_file())
    assert files
    return {str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def test_a_second_run_keeps_everything(study: StudyFolder, capsys: pytest.CaptureFixture[str]) -> None:
    kept = ("results.csv", "runs/*/weights.safetensors", "runs/*/outputs/*", "figures/*", "tables/*", "report.html")
    before = contents(study.path, *kept)
    assert main([*TOY, "-o", str(study.path)]) == 0
    printed = capsys.readouterr().out
    assert "6 of 6 trainings are done already" in printed
    assert str(study.report_file) in printed.replace("\n", "")
    assert contents(study.path, *kept) == before


def test_another_recipe_in_the_same_folder_is_refused(study: StudyFolder, capsys: pytest.CaptureFixture[str]) -> None:
    before = contents(study.path, "**/*.*")
    assert main([*TOY, "-o", str(study.path), "--train.learning_rate", "0.3"]) == 2
    said = capsys.readouterr().err
    assert "holds another study (train.learning_rate: 0.2 there, 0.3 here)" in said
    assert said.count("\n") == 1
    assert contents(study.path, "**/*.*") == before


def test_a_killed_study_goes_on_to_the_same_results(study: StudyFolder, tmp_path: Path) -> None:
    folder = StudyFolder(tmp_path / "killed")
    command = [sys.executable, "-c", "import sys; from anchored.cli.main import main; sys.exit(main())"]
    arguments = [*TOY, "-o", str(folder.path)]
    process = subprocess.Popen([*command, *arguments], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:  # killed as soon as the second training has begun
        deadline = time.monotonic() + 120
        while not folder.run("small-anchored-seed0").cell_file.exists() and time.monotonic() < deadline:
            assert process.poll() is None
            time.sleep(0.05)
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    assert not folder.results_file.exists()
    assert main(arguments) == 0
    assert folder.results_file.read_bytes() == study.results_file.read_bytes()
    assert contents(folder.path, "runs/*/weights.safetensors") == contents(study.path, "runs/*/weights.safetensors")


@pytest.fixture
def adopts_orphans() -> Iterator[None]:
    """Processes whose parents have ended become children of this one, which waits for none: on Linux, zombies stay."""
    linux = sys.platform == "linux"
    if linux:
        ctypes.CDLL(None).prctl(36, 1)  # PR_SET_CHILD_SUBREAPER
    yield
    if linux:
        ctypes.CDLL(None).prctl(36, 0)


def children(process: int) -> list[int]:
    """Ids of the processes that a process started, zombies included; none on other systems than Linux."""
    found = Path(f"/proc/{process}/task").glob("*/children")
    return [int(child) for file in found for child in file.read_text().split()]


@pytest.mark.usefixtures("adopts_orphans")
@pytest.mark.parametrize(
    ("number", "workers"), [(signal.SIGINT, 1), (signal.SIGINT, 2), (signal.SIGTERM, 2), (signal.SIGHUP, 1)]
)
def test_an_interrupted_study_says_how_to_go_on(number: signal.Signals, workers: int, tmp_path: Path) -> None:
    folder = StudyFolder(tmp_path / "interrupted")
    code = "import sys; from anchored.cli.main import main; sys.exit(main())"
    longer = ["--train.epochs", "5000", "--workers", str(workers), "-o", str(folder.path)]
    command = [sys.executable, "-c", code, *TOY, *longer]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True)
    checkpoint = folder.run("small-standard-seed0").checkpoint_file
    deadline = time.monotonic() + 120
    while not checkpoint.exists() and time.monotonic() < deadline:
        assert process.poll() is None
        time.sleep(0.05)
    servers = children(process.pid)  # Python's own, which start the workers
    started = [worker for server in servers for worker in children(server)]
    if number == signal.SIGINT:  # as a terminal does: to every process of the command
        os.killpg(process.pid, number)
    else:
        process.send_signal(number)
    _, said = process.communicate(timeout=90)  # it ends when all processes that write to stderr have ended
    assert process.returncode == 128 + number
    by = "" if number == signal.SIGINT else f" by {number.name}"
    assert said == f"anchored: interrupted{by}; the same command goes on where this one stopped\n"
    assert checkpoint.exists()
    assert [worker for worker in started if Path(f"/proc/{worker}").exists()] == []  # no zombies either
    assert len(started) >= workers - 1 or sys.platform != "linux"
    for server in set(servers) & set(children(os.getpid())):
        os.waitpid(server, 0)


def test_one_step_at_a_time(study: StudyFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = layout.Run(tmp_path / "one")
    single = ["--grid.protocols", "[ram]", "--grid.seeds", "[0]"]
    assert main(["train", *TOY[1:], *single, "-o", str(run.path)]) == 0
    assert main(["evaluate", str(run.path)]) == 0
    expected = rows_of(study, run="small-ram-0.25-seed0")
    found = read_rows(run.rows_file)
    assert [(r.metric, r.dataset, r.severity, r.corruption, r.score, r.value, r.low, r.high, r.n) for r in found] == [
        (r.metric, r.dataset, r.severity, r.corruption, r.score, r.value, r.low, r.high, r.n) for r in expected
    ]
    assert main(["evaluate", str(run.path), "--evaluate.ood", "[digits]", "--evaluate.corruptions", "[]"]) == 0
    assert {row.dataset for row in read_rows(run.rows_file) if row.metric == "auroc"} == {
        "MNIST digits",
        "mean",
        "mean-far",
    }
    assert main(["evaluate", str(run.path), "--evaluate.corruptions", "[c, ripple]", "--evaluate.ood", "[]"]) == 0
    check_means(read_rows(run.rows_file))
    study.report_file.unlink()
    assert main(["report", str(study.path)]) == 0
    assert study.report_file.exists()


def check_means(rows: list[Row]) -> None:
    """Of the 18 C corruptions that change grey images, and of the 15 without the extra ones; C̄ has means of its own."""
    extra = {"speckle_noise", "gaussian_blur", "spatter"}
    for metric in ("accuracy", "smooth_ece"):
        found = {row.corruption: row for row in rows if (row.metric, row.severity) == (metric, 1) and row.corruption}
        single = {name: row.value for name, row in found.items() if row.dataset.endswith("-C") and "mean" not in name}
        assert len(single) == 18
        main_ones = [value for name, value in single.items() if name not in extra]
        assert found["mean-15"].value == pytest.approx(sum(main_ones) / 15)
        means = {
            row.dataset[-2:]: row.value
            for row in rows
            if (row.metric, row.severity) == (metric, 1) and row.corruption == "mean"
        }
        assert means["-C"] == pytest.approx(sum(single.values()) / 18)
        assert means["C̄"] == found["ripple"].value
        overall = [row for row in rows if row.metric == metric and row.severity is None and row.corruption == "mean-15"]
        assert len(overall) == 1
        assert overall[0].low <= overall[0].value <= overall[0].high
