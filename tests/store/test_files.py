"""Files: whole or not at all, read back equal, refused in one line."""

import contextlib
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from anchored.errors import UserError
from anchored.store import files, rows

leaves = st.none() | st.booleans() | st.integers(-(2**40), 2**40) | st.floats(allow_nan=False) | st.text(max_size=5)

trees = st.recursive(
    leaves,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.tuples(inner, inner)
        | st.dictionaries(st.text(max_size=4) | st.integers(0, 9), inner, max_size=3)
    ),
    max_leaves=12,
)


@settings(deadline=None)
@given(tree=trees)
def test_trees_survive(tmp_path_factory: pytest.TempPathFactory, tree: object) -> None:
    path = tmp_path_factory.mktemp("tree") / "t.safetensors"
    files.save_tree(path, {"tree": tree, "tensor": torch.arange(3)})
    found = files.load_tree(path)
    assert found["tree"] == tree
    assert type(found["tree"]) is type(tree)
    assert torch.equal(found["tensor"], torch.arange(3))


def test_tensors_survive_in_dtype_and_shape(tmp_path: Path) -> None:
    shared = torch.arange(12.0).view(3, 4)
    tensors = {"a": shared, "b": shared.T, "c": shared[1], "d": torch.zeros(0, 2), "e": torch.tensor(True)}
    files.save_tensors(tmp_path / "t.safetensors", tensors, {"key": "é"})
    found, metadata = files.load_tensors(tmp_path / "t.safetensors")
    assert metadata == {"key": "é"}
    for name, tensor in tensors.items():
        assert torch.equal(found[name], tensor)


def test_a_truncated_file_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "t.safetensors"
    files.save_tensors(path, {"a": torch.zeros(100)})
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(UserError, match="is not a whole safetensors file"):
        files.load_tensors(path)


def test_a_failed_write_leaves_the_old_file_and_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "f.txt"
    files.write_text(path, "old")
    monkeypatch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(UserError, match=r"cannot write .*f.txt: no space left on device"):
        files.write_text(path, "new")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_bad_json_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text("{")
    with pytest.raises(UserError, match="is not valid JSON"):
        files.read_json(tmp_path / "x.json")
    with pytest.raises(UserError, match=r"cannot read .*: no such file"):
        files.read_json(tmp_path / "y.json")


# --- symbolic links: nothing behind them is touched ---------------------------------------------------------------


def test_nothing_is_written_or_locked_through_a_link(tmp_path: Path) -> None:
    thesis, link = tmp_path / "thesis.tex", tmp_path / "run" / "state.json"
    thesis.write_text("precious")
    link.parent.mkdir()
    link.symlink_to(thesis)
    with pytest.raises(UserError, match=r"state\.json is a symbolic link") as raised:
        files.write_json(link, {})
    assert "\n" not in str(raised.value)
    with pytest.raises(UserError, match="is a symbolic link"), files.locked(link):
        pass
    assert (thesis.read_text(), link.is_symlink()) == ("precious", True)


def test_only_our_unfinished_files_are_removed_and_links_are_not_followed(tmp_path: Path) -> None:
    run, home = tmp_path / "run", tmp_path / "home"
    ours = [run / f".x.abc{files.UNFINISHED}", run / "outputs" / f".y.abc{files.UNFINISHED}"]
    theirs = [run / ".download.part", run / f"notes{files.UNFINISHED}", home / f".z.abc{files.UNFINISHED}"]
    for file in (*ours, *theirs):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("")
    (run / "link").symlink_to(home)
    files.remove_unfinished(run, recursive=False)
    assert [file.exists() for file in ours] == [False, True]
    files.remove_unfinished(run)
    assert not any(file.exists() for file in ours)
    assert all(file.exists() for file in theirs)


# --- folders, leftovers, special files -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("names", "said"),
    [
        ((), ""),
        ((".lock", f".study.json.abc{files.UNFINISHED}"), ""),  # what a kill before the first write leaves
        (("study.json", "notes.txt"), ""),
        (("model.json",), r"is not empty \(it holds model.json\) and not the folder of a study: choose another"),
        ((".hidden",), "is not empty"),
        ((f"a{files.UNFINISHED}", "thesis.tex"), "it holds thesis.tex"),
    ],
)
def test_a_folder_is_ours_by_its_mark(tmp_path: Path, names: tuple[str, ...], said: str) -> None:
    for name in names:
        (tmp_path / name).touch()
    with pytest.raises(UserError, match=said) if said else contextlib.nullcontext():
        files.refuse_foreign_folder(tmp_path / "study.json", "a study")
    files.refuse_foreign_folder(tmp_path / "new" / "study.json", "a study")


def test_what_a_kill_left_of_an_export_is_removed_by_the_next(tmp_path: Path) -> None:
    target = tmp_path / "m.onnx"
    left, busy = (tmp_path / f".m.onnx.{name}{files.UNFINISHED}" for name in ("killed", "busy"))
    others = [tmp_path / f".n.onnx.killed{files.UNFINISHED}" / "n.onnx", tmp_path / ".m.onnx.mine" / "notes.txt"]
    for file in (left / "m.onnx", busy / "m.onnx", *others):
        files.write_text(file, "half")
    with files.locked(busy / ".lock"), files.atomic_path(target) as path:  # another process writes the same
        path.write_text("whole")
    assert (target.read_text(), left.exists(), busy.exists()) == ("whole", False, True)
    assert all(file.exists() for file in others)


def test_no_file_replaces_a_link(tmp_path: Path) -> None:
    thesis, link = tmp_path / "thesis.tex", tmp_path / "m.onnx"
    thesis.write_text("precious")
    link.symlink_to(thesis)
    with pytest.raises(UserError, match="is a symbolic link"), files.atomic_path(link, force=True):
        pass
    assert (thesis.read_text(), link.is_symlink()) == ("precious", True)


@pytest.mark.parametrize("read", [files.read_json, files.load_tensors, files.load_tree, rows.read_rows])
def test_a_pipe_in_place_of_a_file_is_one_line(tmp_path: Path, read: Callable[[Path], object]) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", Path("/dev/zero")):
        with pytest.raises(UserError, match="is not a regular file"):
            read(path)


def test_a_tilde_without_such_a_home_is_a_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/somebody")
    assert files.expand_home("~/x.png") == Path("/home/somebody/x.png")
    assert files.expand_home("~x.png") == Path("~x.png")


def test_one_may_look_at_a_lock_without_writing(tmp_path: Path) -> None:
    lock = tmp_path / ".lock"
    assert not files.is_locked(lock)
    assert not lock.exists()
    with files.locked(lock):
        assert files.is_locked(lock)
    lock.touch()
    assert not files.is_locked(lock)
    with files.locked(lock) as free:
        assert free


def test_a_texts_digest_is_its_files(tmp_path: Path) -> None:
    text = "run\udcff,ü\n"  # of a name that is no UTF-8
    files.write_text(tmp_path / "rows.csv", text)
    assert files.text_digest(text) == files.digest((tmp_path / "rows.csv").read_bytes())
