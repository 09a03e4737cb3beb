"""The evidence file: what it answers, what it says was not measured, and that its hashes are those of the files."""

import html
import re
import subprocess
from pathlib import Path

import pytest
from fixtures.report_studies import make_study

from anchored.cli.main import main
from anchored.errors import UserError
from anchored.report.evidence import QUESTIONS, write_evidence
from anchored.store import files
from anchored.store.layout import StudyFolder


def test_every_question_is_answered_or_said_not_to_be(tmp_path: Path) -> None:
    whole = write_evidence(make_study(tmp_path / "whole", n=60)).read_text()
    few = write_evidence(make_study(tmp_path / "few", n=60, parts=())).read_text()
    for question in QUESTIONS:
        assert question.places in whole
        assert question.asked in html.unescape(whole)
    assert whole.count("Not measured in this study") == 1  # without held-out images nothing is decided
    assert few.count("Not measured in this study") == 3
    assert "claims no compliance" in few
    assert "Poisoned data" in few
    assert "One training of each network" in few


def test_hashes_are_those_of_the_files(tmp_path: Path) -> None:
    folder = make_study(tmp_path, n=60, title="<b>&")
    run = folder.run("small-standard-seed0")
    for file in (run.rows_file, run.weights_file):
        files.write_text(file, file.name)
    text = write_evidence(folder).read_text()
    assert "<b>&" not in text
    lines = html.unescape(re.findall(r"<pre>(.*?)</pre>", text, re.DOTALL)[-1])
    assert "results.csv" in lines
    done = subprocess.run(["sha256sum", "-c"], cwd=folder.path, input=lines, capture_output=True, text=True, check=True)
    assert done.stdout.count(": OK") == len(lines.splitlines()) == 4
    assert write_evidence(folder).read_text() == text


def test_the_command_writes_it_beside_the_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = make_study(tmp_path / "study", n=60, parts=())
    assert main(["report", str(folder.path), "--evidence"]) == 0
    assert "evidence.html" in capsys.readouterr().out
    assert folder.evidence_file.exists()
    with pytest.raises(UserError):
        write_evidence(StudyFolder(tmp_path / "nothing"))
