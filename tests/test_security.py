"""What others' files may not do: import code, hide what is known of the packages underneath."""

import json
import os
import runpy
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import fuzz
import fuzz_imports
import pytest
import pytorch_lightning as pl

from anchored.cli.main import main
from anchored.errors import UserError
from anchored.store.layout import StudyFolder
from anchored.study import cost

AUDIT = runpy.run_path(str(Path(__file__).parents[1] / "scripts" / "audit.py"))


@pytest.mark.parametrize("verb", ["study", "train", "doctor"])
def test_a_recipe_does_not_import_code(
    verb: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "hostile.py").write_text("open('was_here', 'w').close()\n")
    (tmp_path / "given.yaml").write_text("base: demo\ngrid: {networks: ['python:hostile:make']}\n")
    (tmp_path / "based.yaml").write_text("base: given.yaml\n")
    for recipe in ("given.yaml", "based.yaml"):
        assert main([verb, recipe, "-o", "out"]) == 2
        assert "if you trust it, add --grid.networks '[python:hostile:make]'" in capsys.readouterr().err
    assert sorted(file.name for file in tmp_path.iterdir()) == ["based.yaml", "given.yaml", "hostile.py"]


@pytest.mark.parametrize("verb", ["study", "train", "doctor"])
@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("grid: {networks: '[python:hostile:make]'}", "grid.networks is '[python:hostile:make]': give a list"),
        ("grid: {networks: 'python:hostile:make'}", "grid.networks is 'python:hostile:make': give a list"),
        ("grid.networks: ['python:hostile:make']", "no setting grid.networks"),
        ("grid: {per_network: {small: {class_path: hostile.Thing}}}", "no setting grid.per_network.small.class_path"),
        ("grid: {class_path: hostile.Thing}", "no setting grid.class_path"),
        ("train: {class_path: hostile.Thing, init_args: {}}", "no setting train.class_path"),
        ("train: hostile.Thing", "train must have settings of its own"),
        ("grid: {networks: !!python/name:hostile.make ''}", "not valid YAML"),
        ("name: ../../elsewhere", "name is '../../elsewhere': give a plain name"),
    ],
)
def test_no_way_of_writing_a_recipe_imports_code(
    verb: str, text: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "hostile.py").write_text("open('was_here', 'w').close()\n")
    (tmp_path / "given.yaml").write_text(f"base: demo\n{text}\n")
    assert main([verb, "given.yaml", "-o", "out"]) == 2
    assert said in capsys.readouterr().err
    assert sorted(file.name for file in tmp_path.iterdir()) == ["given.yaml", "hostile.py"]


PICTURES = False
WHERE = [("extra",), ("network",), ("networks",), ("checkpoint",), ("accelerator",), ("what",), ("metric",), ()]
"""Last names of the places that are tried here; ``scripts/fuzz_imports.py`` tries all."""


@pytest.fixture
def mark(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The mark that the hostile module leaves in the current folder, where it can be imported."""
    monkeypatch.chdir(tmp_path)
    yield fuzz_imports.with_mark(tmp_path)
    fuzz_imports.without_mark(tmp_path)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a finished study, its recipe and an image."""
    folder = tmp_path_factory.mktemp("finished")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        fuzz_imports.study_folder()
    return folder


def built(*_: object, **__: object) -> None:
    """Instead of Lightning's ``fit``: by then the network is built."""
    raise UserError("built")


@pytest.mark.parametrize("given", [None, "0"])
def test_the_hub_s_libraries_report_no_use_unless_asked_to(given: str | None) -> None:
    pytest.importorskip("datasets")
    names = ("HF_HUB_DISABLE_TELEMETRY", "HF_UPDATE_DOWNLOAD_COUNTS", "DISABLE_TELEMETRY", "DO_NOT_TRACK")
    environment = {name: value for name, value in os.environ.items() if name not in names}
    environment |= {} if given is None else {names[0]: "0", names[1]: "1"}
    code = (
        "import anchored, datasets.config as d, huggingface_hub.constants as h\n"
        "print(h.HF_HUB_DISABLE_TELEMETRY, d.HF_UPDATE_DOWNLOAD_COUNTS)"
    )
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.split() == (["True", "False"] if given is None else ["False", "True"])


def test_the_module_does_leave_its_mark(mark: Path) -> None:
    assert not mark.exists()
    Path("given.yaml").write_text("base: demo\ndata: {fraction: 0.03}\ngrid: {protocols: [ram], tail_weights: [0]}\n")
    assert main(["train", "given.yaml", "--grid.networks", f"[{fuzz_imports.NAME}]", "-o", "out"]) == 2
    assert mark.exists()


@pytest.mark.parametrize("part", range(5))
def test_no_setting_of_a_recipe_imports_code(part: int, mark: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pl.Trainer, "fit", built)
    monkeypatch.setattr(cost, "SECONDS", 0.0)
    texts = list(fuzz_imports.recipe_texts())[part::5]
    verb = ("study", "train", "doctor", "study", "train")[part]
    accepted = sum(fuzz_imports.try_recipe(text, [verb]) for text in texts)
    assert len(texts) > 200
    assert 3 < accepted < 20
    assert not mark.exists()


@pytest.mark.parametrize("name", fuzz_imports.FILES)
def test_no_file_of_a_result_imports_code(name: str, mark: Path, finished: Path) -> None:
    shutil.copytree(finished, ".", dirs_exist_ok=True)
    study = StudyFolder(Path("whole"))
    content = json.loads(fuzz_imports.file_of(study, name).read_bytes())
    places = [place for place in [*fuzz.places(content), ("extra",)] if place[-1:] in WHERE]
    commands = fuzz_imports.FILES[name]
    commands = commands if name == "model.json" else commands[:2]
    assert fuzz_imports.try_file(study, name, places, [fuzz_imports.NAME], commands)
    assert not mark.exists()


def test_code_named_in_another_option_is_not_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "hostile.py").write_text("open('was_here', 'w').close()\n")
    (tmp_path / "given.yaml").write_text("base: demo\ngrid: {networks: ['python:hostile:make']}\n")
    assert main(["study", "given.yaml", "--title", "python:hostile:make"]) == 2
    assert "if you trust it" in capsys.readouterr().err
    assert main(["study", "given.yaml", "--grid.networks", "python:hostile:make"]) == 2  # text, not a list
    assert "give a list" in capsys.readouterr().err
    assert not (tmp_path / "was_here").exists()


def test_code_named_on_the_command_line_is_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "given.yaml").write_text("base: demo\ngrid: {networks: ['python:antigravity_:fly']}\n")
    command = ["train", "given.yaml", "--grid.networks", "[python:antigravity_:fly]", "--grid.protocols", "[anchored]"]
    assert main(command) == 2
    assert "antigravity_" in capsys.readouterr().err.replace("if you trust it", "")


def test_the_audit_refuses_what_is_known_and_not_accepted() -> None:
    advisory = {"id": "PYSEC-1", "aliases": ["CVE-1"], "fix_versions": ["2.0"], "description": ""}
    found = {
        "dependencies": [
            {"name": "sound", "version": "1.0", "vulns": []},
            {"name": "unsound", "version": "1.0", "vulns": [advisory]},
            {"name": "unknown", "skip_reason": "not on PyPI"},
        ]
    }
    assert AUDIT["judged"](found, {}) == (["unsound 1.0: PYSEC-1, mended in 2.0"], 2, 1)
    assert AUDIT["judged"](found, {"CVE-1": "the part is not used"}) == ([], 2, 1)
    assert AUDIT["judged"]({}, {}) == ([], 0, 0)
