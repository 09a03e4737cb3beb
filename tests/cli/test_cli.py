"""The door: instant help with examples, and one line with exit status 2 for bad input."""

import os
import platform
import re
import subprocess
import sys
from pathlib import Path
from typing import get_args, get_origin

import pytest

from anchored.cli import parser
from anchored.cli.main import main
from anchored.cli.parser import Documentation
from anchored.cli.verbs import VERBS


def said(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The one line on standard error of a command that must be refused."""
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("anchored: ")
    assert captured.err.count("\n") == 1
    assert "Traceback" not in captured.err
    return captured.err


def test_overview_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    printed = capsys.readouterr().out
    for verb, command in VERBS.items():
        assert verb in printed
        assert Documentation.of(command).examples[0] in printed


@pytest.mark.parametrize("verb", VERBS)
def test_help_has_examples(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main([verb, "--help"])
    assert stopped.value.code == 0
    printed = capsys.readouterr().out
    assert all(example in printed for example in Documentation.of(VERBS[verb]).examples)


def test_help_says_what_settings_mean(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["study", "demo", "--help"])
    printed = " ".join(capsys.readouterr().out.split())
    assert "Passes over the training images. (type: int, default: 12)" in printed  # the recipe's default


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    from importlib.metadata import version

    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith(f"anchored {version('anchored').partition('+')[0]}")


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (
            ["studdy"],
            "no command 'studdy': there are study, train, evaluate, report, data, doctor, calibrate, predict",
        ),
        (["study"], "recipe"),
        (["study", "demmo"], "no recipe 'demmo'"),
        (["study", "demo", "--train.epoch", "3"], "train.epoch"),
        (["study", "demo", "--train.epochs", "many"], "train.epochs"),
        (["study", "demo", "--scale", "2"], "--scale is 2"),
        (["study", "demo", "--grid.alphas", "[1.5]"], "grid.alphas has 1.5"),
        (["study", "demo", "--grid.protocols", "[plain]"], "grid.protocols"),
        (["study", "demo", "--grid.networks", "[resnet19]"], "no network 'resnet19': did you mean 'resnet18'?"),
        (["study", "demo", "--data.train", "fashion-mimi"], "fashion-mini"),
        (["study", "demo", "--evaluate.ood", "[digit]"], "digits"),
        (["study", "demo", "--evaluate.corruptions", "[fogg]"], "fogg"),
        (["study", "demo", "--evaluate.score", "luck"], "evaluate.score is 'luck': there are energy"),
        (["study", "demo", "--data.train", "blobs"], "blobs"),
        (["study", "demo", "--evaluate.adaptation", "[blobs]"], "blobs"),
        (["study", "cifar10"], "cifar-10-binary.tar.gz"),
        (["train", "demo"], "names 4 trainings: pick one"),
        (["evaluate", "nowhere"], "nowhere"),
        (["report", "nowhere"], "nowhere"),
        (["data"], "action"),
        (["data", "eat"], "eat"),
        (["data", "fetch"], "name the sets to download"),
        (["data", "show", "cifar11"], "did you mean cifar10"),
    ],
)
def test_bad_input_is_one_line(
    arguments: list[str],
    expected: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ANCHORED_DATA", str(tmp_path / "data"))
    assert expected in said(arguments, capsys)
    assert not (tmp_path / "runs").exists() or not list((tmp_path / "runs").rglob("*.safetensors"))


def test_data_list_show_and_verify(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("ANCHORED_DATA", str(tmp_path))
    assert main(["data", "list"]) == 0
    lines = {line.split()[0]: line.split()[-1] for line in capsys.readouterr().out.splitlines() if line[0].isalpha()}
    assert (lines["fashion-mini"], lines["blobs"], lines["cifar10"]) == ("yes", "yes", "no")
    assert main(["data", "show", "cifar10"]) == 0
    assert "c32a1d4ab5d03f1284b67883e8d87530" in capsys.readouterr().out
    assert main(["data", "verify", "digits", "cifar10"]) == 0
    assert capsys.readouterr().out == "digits: whole, 2,000 train and 2,000 test images\ncifar10: not here\n"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("base: demo\ntrain: {epohcs: 3}\n", "no setting train.epohcs: did you mean train.epochs?"),
        ("base: demo\nevalute: {ood: [digits]}\n", "no setting evalute: did you mean evaluate?"),
        ("base: demo\ntrain: {epochs: lots}\n", "train.epochs"),
        ("base: demo\ntrain: 3\n", "train"),
    ],
)
def test_bad_recipe_files_are_one_line(
    text: str, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("own.yaml").write_text(text)
    assert expected in said(["study", "own.yaml"], capsys)


@pytest.mark.parametrize("kind", ["pipe", "device", "folder", "huge", "link to a pipe"])
def test_a_recipe_that_is_no_file_is_not_read(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    recipe = Path("own.yaml")
    if kind == "folder":
        recipe.mkdir()
    elif kind == "device":
        recipe.symlink_to("/dev/zero")
    elif kind == "huge":
        recipe.write_text("# " + "x" * 1_000_000)
    else:
        os.mkfifo("pipe.yaml")
        recipe = recipe if kind.startswith("link") else Path("pipe.yaml")
        if kind.startswith("link"):
            recipe.symlink_to("pipe.yaml")
    expected = "more than any recipe" if kind == "huge" else "is not a regular file"
    assert expected in said(["study", str(recipe)], capsys)
    Path("based.yaml").write_text(f"base: {recipe}\n")
    assert expected in said(["train", "based.yaml"], capsys)


@pytest.mark.parametrize(
    "setting",
    ["train.epochs", "train.batch_size", "anchoring.references", "evaluate.bootstrap", "evaluate.batch_size",
     "tail.points", "tail.rank", "train.devices", "data.size", "data.workers", "train.crop_padding", "cluster.cpus",
     "grid.seeds", "evaluate.seed"],
)  # fmt: skip
@pytest.mark.parametrize("value", [10**8 * 10**12, 10**400, -(10**400)])
def test_numbers_that_would_never_end_are_refused(setting: str, value: int, capsys: pytest.CaptureFixture[str]) -> None:
    text = f"[{value}]" if setting == "grid.seeds" else str(value)
    assert setting in said(["study", "demo", f"--{setting}={text}"], capsys)


def numbers() -> list[tuple[str, str, bool]]:
    """Every option of a verb that is a number or a list of them: verb, option, whether it is a list."""
    found = []
    for verb, command in VERBS.items():
        for name, hint in parser.type_hints(command).items():
            kind = parser.plain(hint) if name != "return" else str
            if kind in (int, float) or (get_origin(kind) is tuple and parser.plain(get_args(kind)[0]) in (int, float)):
                found.append((verb, name, get_origin(kind) is tuple))
    return [*found, ("study", "scale", False)]


def test_numbers_are_found() -> None:
    assert {("evaluate", "devices", False), ("corrupt", "severities", True), ("convert", "std", True)} <= {*numbers()}


@pytest.mark.parametrize(("verb", "option", "many"), numbers())
@pytest.mark.parametrize("value", [str(10**400), f"-{10**400}", ".nan", "many"])
def test_options_that_are_no_such_number_are_refused(
    verb: str, option: str, many: bool, value: str, capsys: pytest.CaptureFixture[str]
) -> None:
    needed = {"study": ["demo"], "evaluate": ["x"], "calibrate": ["x"], "predict": ["x", "y"]}
    words = needed.get(verb, ["x", "-o", "x"])
    assert f"--{option} " in said([verb, *words, f"--{option}={f'[{value}]' if many else value}"], capsys)


@pytest.mark.parametrize(
    "words",
    [
        "predict x y --batch_size 0", "corrupt x -o y --size 1000000", "corrupt x -o y --size=-1",
        "convert x -o y --size 5000", "convert x -o y --channels 65", "convert x -o y --mask_probability 2",
        "convert x -o y --classes=-2", "convert x -o y --std [0,1,1]", "calibrate x --coverage 1",
        "evaluate x --devices 1000000", "study demo --workers 0", "corrupt x -o y --severities [6]",
    ],
)  # fmt: skip
def test_options_outside_their_range_are_refused(words: str, capsys: pytest.CaptureFixture[str]) -> None:
    option = re.search("--[a-z_]+", words.replace("--output", "")).group()  # type: ignore[union-attr]
    assert said(words.split(), capsys).startswith(f"anchored: {option} ")


ONE = "demo --grid.protocols [ram] --grid.tail_weights [0.0]"  # one training of the demo's


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (
            "study demo --grid.methods [dropout] --grid.networks [small_convnext]",
            "which 'small_convnext' does not take",
        ),
        ("study demo --train.rates {nolayer:0}", "names 'nolayer', which the network has not: there are stem, head, "),
        ("study demo --anchoring.references 100000", "is 100000, but fashion-mini-known has 7000 images"),
        ("study demo --evaluate.ood [fashion-mini-known]", "evaluate.ood has fashion-mini-known, which shares images"),
        ("study demo --choose beta", "choose is 'beta': give nothing, alpha or lambda"),
        ("study demo --status", "no study has begun in runs/demo"),
        ("evaluate timm:resnet18 --pretrained", "on which labelled images timm:resnet18 is measured: --test DATA"),
        ("evaluate timm:resnet18 --pretrained --like cifar10 --test digits", "1000 classes, and nobody has trained it"),
        ("evaluate resnet18", "resnet18 is not the folder of a run"),
        ("evaluate missing/ --test digits", "there is no folder 'missing/'"),
        ("train demo", "--grid.tail_weights '[0.1]'"),
        (f"train {ONE} --train.batch_size 10000 -o x", "gives 6300 training images, fewer than train.batch_size 10000"),
        (
            f"train {ONE} --anchoring.training_references images --anchoring.training_reference_count 9999 -o x",
            "anchoring.training_reference_count is 9999, but there are 6300 images: give fewer",
        ),
    ],
)
def test_what_could_not_be_done_is_said_before_anything_is(
    words: str, line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert line in said([word.replace(":0}", ": 0}") for word in words.split()], capsys)
    assert not list(tmp_path.iterdir())


def test_numbers_that_do_not_fit_a_network_are_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["convert", "resnet18", "--pretrained", "--like", "cifar10", "-o", "x", "--mean", "[0.5]"]
    assert "mean has 1 values for 3 channels" in said(words, capsys)


@pytest.mark.parametrize(
    "words", ["corrupt digits -o", "study demo -o", "predict x y -o", "convert x -o", "export x", "report"]
)
@pytest.mark.parametrize("place", ["~", "~/x"])
def test_a_tilde_is_the_home_folder(words: str, place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    verb, *given = words.split()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    values = parser.parse_arguments(verb, VERBS[verb], [*given, place]).values()
    assert str(tmp_path / "home" / place[2:]) in [str(value) for value in values]


def test_memory_that_ran_out_is_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def run_out(**options: object) -> int:
        raise MemoryError("cannot hold 80 GB")

    monkeypatch.setitem(VERBS, "report", run_out)
    monkeypatch.setattr("anchored.cli.main.parse_arguments", lambda *words: {})
    assert "memory ran out (cannot hold 80 GB): take smaller batches" in said(["report", "x"], capsys)


def test_a_bootstrap_without_end_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert "at most 1,000,000" in said(["study", "demo", "--evaluate.bootstrap", "100000000"], capsys)


def test_a_folder_with_other_things_in_it_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "thesis.tex").write_text("precious")
    assert "and not the folder of a study" in said(["study", "demo", "-o", str(tmp_path)], capsys)
    assert [file.name for file in tmp_path.iterdir()] == ["thesis.tex"]


def test_help_is_instant() -> None:
    import subprocess
    import sys

    code = "import sys; from anchored.cli.main import main; sys.exit(main(['--help']))"
    modules = subprocess.run(
        [sys.executable, "-X", "importtime", "-c", code], capture_output=True, text=True, check=True
    ).stderr
    assert "torch" not in modules
    assert "pydantic" not in modules


@pytest.mark.parametrize(("given", "found"), [(None, "30000"), ("7", "7")])
def test_threads_sleep_soon_unless_told_otherwise(given: str | None, found: str) -> None:
    """The variable is there before torch, which reads it once."""
    code = (
        "import os, sys\nfrom anchored.cli.main import main\nassert 'torch' not in sys.modules\n"
        "main(['--version'])\nprint(os.environ['GOMP_SPINCOUNT'])"
    )
    others = {name: value for name, value in os.environ.items() if name != "GOMP_SPINCOUNT"}
    environment = others if given is None else {**others, "GOMP_SPINCOUNT": given}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == found


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the settings are glibc's")
@pytest.mark.parametrize(("given", "kept"), [(None, True), ("100000", False)])
def test_freed_memory_is_kept_unless_told_otherwise(given: str | None, kept: bool) -> None:
    """Here and in processes that are started: counted are pages that the system had to give, for 20 × 40 MB."""
    work = (
        "import resource\nfor _ in range(20):\n    b'x' * 40_000_000\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt)"
    )
    begun = "import subprocess, sys\nfrom anchored.cli.main import main\nmain(['--version'])"
    child = f"subprocess.run([sys.executable, '-c', {work!r}])"
    names = ("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_")
    environment = {name: value for name, value in os.environ.items() if name not in names}
    if given is not None:
        environment |= dict.fromkeys(names, given)
    for code in (work, child):
        words = [sys.executable, "-c", f"{begun}\n{code}"]
        done = subprocess.run(words, env=environment, capture_output=True, text=True, check=True)
        assert (int(done.stdout.splitlines()[-1]) < 100_000) == kept  # all of 20 times are 195,000 pages


def in_a_shell(line: str, tmp_path: Path, **environment: str) -> tuple[int, str]:
    """Exit status and standard error of a command line in which $A is anchored."""
    environment = {**os.environ, "A": f"{sys.executable} -m anchored", **environment}
    run = subprocess.run(["sh", "-c", line], capture_output=True, cwd=tmp_path, env=environment, check=False)
    return run.returncode, run.stderr.decode(errors="replace")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="the system has no /dev/full")
@pytest.mark.parametrize("words", ["--version", "study --help", "data list", "data show cifar10"])
def test_output_that_cannot_be_written_is_one_line(words: str, tmp_path: Path) -> None:
    status, error = in_a_shell(f"$A {words} >/dev/full", tmp_path)
    assert (status, error.count("\n")) == (2, 1)
    assert "cannot write the output: no space left on device" in error
    assert in_a_shell(f"$A {words} >/dev/full 2>/dev/full", tmp_path)[0] == 2


def test_output_that_nobody_reads_is_no_error(tmp_path: Path) -> None:
    assert in_a_shell("$A data list | head -1", tmp_path) == (0, "")
    assert in_a_shell("$A data list >&-", tmp_path) == (0, "")
    assert in_a_shell("$A data show cifar1 2>&-", tmp_path) == (2, "")


def test_a_terminal_that_lacks_a_letter_ends_nothing(tmp_path: Path) -> None:
    assert in_a_shell("$A data list", tmp_path, PYTHONIOENCODING="ascii") == (0, "")
    assert in_a_shell("$A train 'ünbekannt.yaml'", tmp_path, PYTHONIOENCODING="cp437")[0] == 2
