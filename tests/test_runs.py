"""Files: whole or not at all, read back equal, refused in one line."""

import os
import resource
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from anchored import runs
from anchored.errors import UserError
from anchored.runs import Row

ROW = Row(
    "CIFAR-10", "ResNet-18", "ram", 0.25, "auroc", "LSUN (C)", None, 97.4, None, 3, "", "energy", 97.0, 97.8, 10, "r"
)


def test_rows_survive(tmp_path: Path) -> None:
    rows = [ROW, replace(ROW, alpha=None, severity=5, value=0.1 + 0.2, dataset='a,"b"\nc')]
    runs.write_rows(tmp_path / "rows.csv", rows)
    assert runs.read_rows(tmp_path / "rows.csv") == rows


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda text: text.replace("97.4", "lots"), "line 2: could not convert string to float: 'lots'"),
        (lambda text: text.replace("trained_on", "on"), "the first line must name the columns"),
        (lambda text: text.rpartition(",")[0], "line 2: expected 16 fields"),
        (lambda text: "", "the first line must name the columns"),
    ],
)
def test_bad_rows_name_file_and_line(tmp_path: Path, change: object, said: str) -> None:
    path = tmp_path / "rows.csv"
    runs.write_rows(path, [ROW])
    path.write_text(change(path.read_text()))  # type: ignore[operator]
    with pytest.raises(UserError, match=said) as raised:
        runs.read_rows(path)
    assert str(path) in str(raised.value)


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


@given(tree=trees)
def test_trees_survive(tmp_path_factory: pytest.TempPathFactory, tree: object) -> None:
    path = tmp_path_factory.mktemp("tree") / "t.safetensors"
    runs.save_tree(path, {"tree": tree, "tensor": torch.arange(3)})
    found = runs.load_tree(path)
    assert found["tree"] == tree
    assert type(found["tree"]) is type(tree)
    assert torch.equal(found["tensor"], torch.arange(3))


def test_tensors_survive_in_dtype_and_shape(tmp_path: Path) -> None:
    shared = torch.arange(12.0).view(3, 4)
    tensors = {"a": shared, "b": shared.T, "c": shared[1], "d": torch.zeros(0, 2), "e": torch.tensor(True)}
    runs.save_tensors(tmp_path / "t.safetensors", tensors, {"key": "é"})
    found, metadata = runs.load_tensors(tmp_path / "t.safetensors")
    assert metadata == {"key": "é"}
    for name, tensor in tensors.items():
        assert torch.equal(found[name], tensor)


def test_a_truncated_file_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "t.safetensors"
    runs.save_tensors(path, {"a": torch.zeros(100)})
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(UserError, match="is not a whole safetensors file"):
        runs.load_tensors(path)


def test_a_failed_write_leaves_the_old_file_and_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "f.txt"
    runs.write_text(path, "old")
    monkeypatch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(UserError, match=r"cannot write .*f.txt: no space left on device"):
        runs.write_text(path, "new")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_full_disk_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "f.bin"
    runs.write_bytes(path, b"old")
    child = os.fork()
    if child == 0:  # the file size limit of a process is a disk that is full for it alone
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
        import signal

        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        try:
            runs.write_bytes(path, b"x" * 5000)
        except UserError:
            os._exit(7)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_difference_names_the_first_setting() -> None:
    there, here = {"train": {"epochs": 10, "decay": 0.2}}, {"train": {"epochs": 12, "decay": 0.2}}
    assert runs.difference(there, here) == "train.epochs: 10 there, 12 here"
    assert runs.difference(here, here) == ""
    assert runs.difference({}, {"a": 1}) == "a: null there, 1 here"


def test_bad_json_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text("{")
    with pytest.raises(UserError, match="is not valid JSON"):
        runs.read_json(tmp_path / "x.json")
    with pytest.raises(UserError, match=r"cannot read .*: no such file"):
        runs.read_json(tmp_path / "y.json")
