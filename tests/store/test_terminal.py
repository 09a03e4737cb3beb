"""What comes from outside is shown as text: no markup, no emoji, no control sequences."""

import io
import json
from pathlib import Path

import pytest
from rich.table import Table

from anchored.cli.main import main
from anchored.errors import UserError, printable, told
from anchored.store import files
from anchored.store.layout import StudyFolder
from anchored.store.terminal import PlainConsole, progress_bar
from anchored.study.jobs import State
from anchored.study.progress import Display

HOSTILE = [
    "x[/b]",
    "[/x]",
    "[bold]x[/]",
    "[link=file:///etc]x[/link]",
    ":bomb:",
    "a\x1b]0;title",
    "\x9b31mred",
    "\udcff",
]


def shown(text: str) -> str:
    """As it must appear: control characters are question marks."""
    return printable(text)


@pytest.mark.parametrize("text", HOSTILE)
def test_text_is_shown_as_it_is(text: str) -> None:
    screen = io.StringIO()
    console = PlainConsole(file=screen, width=200, force_terminal=True, color_system=None)
    table = Table(text, title=text, caption=text)
    table.add_row(text)
    console.print(text)
    console.print(table)
    with progress_bar(console, auto_refresh=False) as bar:
        bar.add_task(text)
    display = Display(console, {"cell": text})
    with display:
        display.show("cell", State("training", what=text))
        display.show("cell", State("failed", error=text))
    printed = screen.getvalue()
    assert printed.count(shown(text)) >= 6
    assert text == shown(text) or text not in printed


@pytest.mark.parametrize("text", HOSTILE)
def test_messages_are_shown_as_they_are(text: str) -> None:
    assert told(UserError(f"no file {text}\nhere")) == f"no file {shown(text)} here"
    assert shown("Zürich, 東京, می‌خواهم") == "Zürich, 東京, می‌خواهم"  # with a joiner


@pytest.mark.parametrize("text", ["x[/b]", "[/x]", "a\x1b[31mb"])
def test_names_of_files_and_folders_may_be_anything(
    text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Folders are named like ends of rich's markup, in every verb that shows them before it trains."""
    monkeypatch.chdir(tmp_path)
    place = tmp_path / text.replace("/", "∕")
    for command in (
        ["study", f"{text}.yaml"], ["predict", f"{place}", text], ["report", f"{place}"], ["evaluate", f"{place}"],
        ["convert", text, "-o", f"{place}"], ["export", f"{place}", "m.onnx"], ["data", "show", text],
        ["corrupt", text, "-o", f"{place}"], ["study", "demo", "-o", f"{place}", "--status"],
        ["study", "demo", "--data.train", text], ["study", "demo", "--evaluate.ood", json.dumps([text])],
    ):  # fmt: skip
        assert main(command) == 2
        captured = capsys.readouterr()
        assert captured.err.count("\n") == 1
        assert "\x1b" not in captured.err + captured.out


def test_a_study_of_others_is_shown_as_it_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, name = StudyFolder(tmp_path), "timm:x[/b][red]\x1b[31m"
    files.write_json(folder.study_file, {"recipe": {"grid": {"networks": [name], "protocols": ["standard"]}}})
    assert main(["study", "demo", "-o", str(tmp_path), "--status"]) == 0
    printed = capsys.readouterr().out
    assert "timm:x[/b][red]?[31m" in "".join(printed.split())
    assert "\x1b" not in printed
