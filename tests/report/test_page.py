"""The page: whole, offline, escaped, and without a word on the browser's console."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from fixtures.browser import HOSTILE, Page, opened
from fixtures.report_studies import make_study, row

from anchored.cli.main import main
from anchored.report import cached, reading
from anchored.report import page as report
from anchored.store import files
from anchored.store.layout import StudyFolder
from anchored.store.rows import read_rows, write_rows

SECTIONS = ["results", "radar", "severity", "ood", "adaptation", "calibration", "examples", "made", "read"]


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> StudyFolder:
    folder = make_study(tmp_path_factory.mktemp("study"), seeds=(0, 1), n=120)
    report.write(folder)
    return folder


def test_page_is_whole_and_asks_for_nothing(study: StudyFolder) -> None:
    text = study.report_file.read_text(encoding="utf-8")
    page = Page(text)
    assert page.sections == SECTIONS
    assert [address for address in page.loaded if not address.startswith(("data:", "#"))] == []
    assert re.findall(r"url\((?!#)", text) == []
    assert "@import" not in text
    assert "script" not in page.tags
    assert page.unnamed == []
    assert len(page.ids) == len(set(page.ids))
    assert study.report_file.stat().st_size < 5_000_000


def test_every_reference_within_the_page_has_its_target(study: StudyFolder) -> None:
    text = study.report_file.read_text(encoding="utf-8")
    ids = set(Page(text).ids)
    wanted = set(re.findall(r'href="#([^"]+)"', text)) | set(re.findall(r"url\(#([^)]+)\)", text))
    assert wanted
    assert wanted <= ids


def test_browser_opens_it_without_a_word(study: StudyFolder, tmp_path: Path) -> None:
    dom, console = opened(study.report_file, tmp_path)
    assert console == []
    page = Page(dom)
    assert page.sections == SECTIONS
    assert page.tags.count("svg") == 6
    assert page.tags.count("img") == 2
    assert page.tags.count("table") == 9 + 2  # and two lists of facts


def test_browser_would_tell_of_a_request(tmp_path: Path) -> None:
    folder = make_study(tmp_path / "study", n=60, parts=())
    path = report.write(folder)
    text = path.read_text(encoding="utf-8")
    path.write_text(text.replace("</main>", '<img src="http://localhost:9/x.png"></main>'), encoding="utf-8")
    _, console = opened(path, tmp_path / "profile")
    assert any("Content Security Policy" in line for line in console)


def test_names_are_never_markup(tmp_path: Path) -> None:
    folder = make_study(tmp_path / "study", n=60, title=HOSTILE, dataset=HOSTILE)
    study = files.read_json(folder.study_file)
    study["made"][HOSTILE] = HOSTILE
    files.write_json(folder.study_file, study)
    text = report.write(folder).read_text(encoding="utf-8")
    assert "<script" not in text
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in text
    assert "49" not in re.findall(r"<h1>(.*)</h1>", text)[0]
    assert "{{ 7 * 7 }}" in text
    dom, console = opened(folder.report_file, tmp_path / "profile")
    assert console == []
    assert "script" not in Page(dom).tags


@pytest.mark.parametrize(
    ("parts", "kept", "says"),
    [
        ((), ["results", "calibration", "made", "read"], "Corruptions were not measured in this study."),
        (("corruption",), ["results", "severity", "calibration", "made", "read"], "Adaptation to other tasks was not"),
        (("ood",), ["results", "ood", "calibration", "made", "read"], "There is no radar"),
        (("ood", "adaptation", "examples"), ["results", "ood", "adaptation", "calibration", "examples", "made", "read"],
         "Corruptions were not measured"),
    ],
)  # fmt: skip
def test_what_is_missing_is_left_out_and_said(
    tmp_path: Path, parts: tuple[str, ...], kept: list[str], says: str
) -> None:
    text = report.write(make_study(tmp_path, n=60, parts=parts)).read_text(encoding="utf-8")
    assert Page(text).sections == kept
    assert says in text


def test_rows_alone_are_enough(tmp_path: Path) -> None:
    folder = make_study(tmp_path, n=60, parts=("corruption", "ood", "adaptation"))
    shutil.rmtree(folder.path / "runs")
    text = report.write(folder).read_text(encoding="utf-8")
    assert Page(text).sections == ["results", "radar", "severity", "ood", "adaptation", "calibration", "made", "read"]
    assert "There are no reliability diagrams" in text
    assert "There are no score histograms" in text


@pytest.mark.parametrize("protocols", [(0,), (2,)])
def test_one_protocol_alone(tmp_path: Path, protocols: tuple[int, ...]) -> None:
    text = report.write(make_study(tmp_path, n=60, protocols=protocols)).read_text(encoding="utf-8")
    assert "There is no radar" in text
    assert "against standard</h3>" not in text


def test_one_severity_and_two_architectures(tmp_path: Path) -> None:
    folder = make_study(tmp_path, n=60, parts=("corruption", "ood"))
    rows = [each for each in read_rows(folder.results_file) if each.severity in (None, 3)]
    second = [row(**{**vars(each), "architecture": "Wide/Net 2", "run": "gone"}) for each in rows]
    write_rows(folder.results_file, [*rows, *second])
    text = report.write(folder).read_text(encoding="utf-8")
    assert "Only one severity was measured." in text
    names = {path.name for path in folder.figures.glob("*.png")}
    assert {"severity-0-resnet-8.png", "severity-1-wide-net-2.png"} <= names
    assert reading.read_summary(folder).families[0].severities == (3,)
    assert len(set(Page(text).ids)) == len(Page(text).ids)


def test_a_report_is_not_drawn_again_where_nothing_changed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = make_study(tmp_path, n=60)
    assert main(["report", str(tmp_path)]) == 0
    first, page = capsys.readouterr().out, folder.report_file.read_bytes()
    assert "Accuracy" in first
    code = (
        f"import sys; from anchored.cli.main import main; assert main(['report', {str(tmp_path)!r}]) == 0;"
        "assert not {'torch', 'numpy', 'matplotlib', 'scipy'} & {*sys.modules}"
    )
    again = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert (again.stdout, folder.report_file.read_bytes()) == (first, page)
    shown = cached.current_tables(folder)
    assert shown is not None
    for file in (
        folder.results_file, folder.study_file, folder.report_file, folder.made_file, folder.examples_file,
        next(folder.figures.glob("*.pdf")), next(folder.tables.glob("*.tex")),
    ):  # fmt: skip
        content, time = file.read_bytes(), file.stat()
        for changed in (content.replace(b"a", b"b", 1) + b" ", b"", None):
            file.unlink()
            if changed is not None:
                file.write_bytes(changed)
            assert cached.current_tables(folder) is None, file
            file.write_bytes(content)
        os.utime(file, ns=(time.st_atime_ns, time.st_mtime_ns))
        assert cached.current_tables(folder) == shown
