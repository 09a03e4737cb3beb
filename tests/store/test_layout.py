"""Folders of results: differing settings, and parts of outputs, which are removed by name and never through links."""

from collections.abc import Callable
from pathlib import Path

import pytest

from anchored.errors import UserError
from anchored.store import files, layout
from anchored.store.layout import CorruptedFolder, Run, StudyFolder


def test_difference_names_the_first_setting() -> None:
    there, here = {"train": {"epochs": 10, "decay": 0.2}}, {"train": {"epochs": 12, "decay": 0.2}}
    assert layout.first_difference(there, here) == "train.epochs: 10 there, 12 here"
    assert layout.first_difference(here, here) == ""
    assert layout.first_difference({}, {"a": 1}) == "a: null there, 1 here"


def test_parts_are_removed_by_their_own_names(tmp_path: Path) -> None:
    run = Run(tmp_path)
    parts = [run.part_file("test", start) for start in (0, 32)]
    unfinished = run.parts_folder("test") / f".{parts[0].name}.abc{files.UNFINISHED}"
    for file in (*parts, unfinished):
        files.write_text(file, "")
    assert run.part_files("test") == {0: parts[0], 32: parts[1]}
    notes = run.parts_folder("test") / "notes.txt"
    notes.write_text("precious")
    run.remove_parts("test")
    assert list(run.parts_folder("test").iterdir()) == [notes]
    notes.unlink()
    run.remove_parts("test")
    run.remove_parts("test")
    assert not run.parts_folder("test").exists()


@pytest.mark.parametrize("linked", ["outputs/test.parts", "outputs"])
def test_parts_behind_a_link_are_refused(tmp_path: Path, linked: str) -> None:
    run, victim = Run(tmp_path / "run"), tmp_path / "victim"
    precious = victim / ("000000000.safetensors" if linked != "outputs" else "test.parts/000000000.safetensors")
    files.write_text(precious, "precious")
    link = run.path / linked
    link.parent.mkdir(parents=True)
    link.symlink_to(victim)
    for action in (
        lambda: run.remove_parts("test"),
        lambda: run.part_files("test"),
        lambda: files.write_text(run.part_file("test", 0), "new"),
    ):
        with pytest.raises(UserError, match=f"{link} is a symbolic link") as raised:
            action()
        assert "\n" not in str(raised.value)
    assert precious.read_text() == "precious"


@pytest.mark.parametrize("name", ["validation", "last-good"])
def test_folders_within_a_run_are_not_links(tmp_path: Path, name: str) -> None:
    (tmp_path / name).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UserError, match="is a symbolic link"):
        getattr(Run(tmp_path), name.replace("-", "_"))


@pytest.mark.parametrize(
    ("linked", "place"),
    [
        ("runs", lambda folder: StudyFolder(folder).run("a")),
        ("runs/a", lambda folder: StudyFolder(folder).run("a")),
        ("figures", lambda folder: StudyFolder(folder).figures),
        ("tables", lambda folder: StudyFolder(folder).tables),
        ("outputs", lambda folder: Run(folder).outputs_file("test")),
        ("fog.npy", lambda folder: CorruptedFolder(folder).blocks_file("fog")),
        (".fog.part.npy", lambda folder: CorruptedFolder(folder).part_file("fog")),
        ("fog/1", lambda folder: CorruptedFolder(folder).image_file("fog", 1, "cat/a")),
        ("fog/1/cat", lambda folder: CorruptedFolder(folder).image_file("fog", 1, "cat/a")),
    ],
)
def test_no_place_of_ours_is_behind_a_link(tmp_path: Path, linked: str, place: Callable[[Path], object]) -> None:
    (tmp_path / "here" / linked).parent.mkdir(parents=True)
    (tmp_path / "here" / linked).symlink_to(tmp_path / "victim")
    with pytest.raises(UserError, match=f"{linked} is a symbolic link"):
        place(tmp_path / "here")
    (tmp_path / "named").symlink_to(tmp_path / "elsewhere")  # a link that the user names is meant
    place(tmp_path / "named")
