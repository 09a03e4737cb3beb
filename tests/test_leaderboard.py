"""The leaderboard: every entry is checked, the page is what they give, and what is no entry is one line."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

import leaderboard
from anchored.errors import UserError
from anchored.store import files
from anchored.store.rows import read_rows, rows_text

DEMO = leaderboard.SHARED / "demo-seeds"


def test_the_page_is_what_the_entries_give() -> None:
    found = leaderboard.entries()
    assert DEMO in [each.folder for each in found]
    assert leaderboard.page(found) == leaderboard.PAGE.read_text(encoding="utf-8")


def test_an_entry_of_a_study_is_the_headline_s_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, place in {"ROOT": "", "SHARED": "board", "CLAIMS": "claims"}.items():
        monkeypatch.setattr(leaderboard, name, tmp_path / place)
    monkeypatch.setattr(leaderboard, "PAGE", tmp_path / "page.md")
    leaderboard.main(["add", str(DEMO), "--by", "A <b> group", "--name", "mine"])
    assert (tmp_path / "board/mine/results.csv").read_text() == (DEMO / "results.csv").read_text()
    page = (tmp_path / "page.md").read_text()
    assert "by A \\<b\\> group" in page
    assert page.count("| ResNet-8 |") == 4
    with pytest.raises(SystemExit):
        leaderboard.main(["add", str(DEMO), "--by", "me", "--name", "mine"])
    assert "is there already" in capsys.readouterr().err


def test_epochs_are_those_of_the_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leaderboard, "ROOT", tmp_path)
    shutil.copytree(DEMO, tmp_path / "two")
    record, rows = json.loads((DEMO / "study.json").read_text()), read_rows(DEMO / "results.csv")
    record["recipe"]["grid"] |= {
        "networks": ["small", "resnet18"],
        "per_network": {"resnet18": {"train": {"epochs": 300}}},
    }
    files.write_json(tmp_path / "two/study.json", record)
    other = [replace(row, architecture="ResNet-18", run=f"other-{row.run}") for row in rows]
    files.write_text(tmp_path / "two/results.csv", rows_text([*rows, *other]))
    page = leaderboard.page([leaderboard.entry(tmp_path / "two")])
    assert "| ResNet-8 | Standard | 12 |" in page
    assert "| ResNet-18 | Standard | 300 |" in page
    files.write_text(tmp_path / "two/results.csv", rows_text(rows))  # the other is not there: which it is, is not told
    assert "| ResNet-8 | Standard | 12 or 300 |" in leaderboard.page([leaderboard.entry(tmp_path / "two")])


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"value": 101.0, "high": 102.0}, "line 2: accuracy is 101, which is no percentage"),
        ({"value": 1.0, "low": 50.0}, "line 2: accuracy is 1, outside its interval"),
        ({"n": 0}, "line 2"),
    ],
)
def test_what_cannot_be_is_refused(tmp_path: Path, change: dict[str, float], said: str) -> None:
    shutil.copytree(DEMO, tmp_path / "bad")
    first, *others = read_rows(DEMO / "results.csv")
    files.write_text(tmp_path / "bad/results.csv", rows_text([replace(first, **change), *others]))  # type: ignore[arg-type]
    with pytest.raises(UserError, match=said):
        leaderboard.entry(tmp_path / "bad")


def test_an_entry_says_how_it_was_made(tmp_path: Path) -> None:
    shutil.copytree(DEMO, tmp_path / "bad")
    record = json.loads((DEMO / "study.json").read_text())
    del record["made"]["torch"]
    files.write_json(tmp_path / "bad/study.json", record)
    with pytest.raises(UserError, match="does not say how it was made: torch"):
        leaderboard.entry(tmp_path / "bad")
