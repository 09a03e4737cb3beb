"""Checkpoints as people have them: every format and layout is read to the same weights, and nothing in one is run."""

import argparse
import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytorch_lightning
import safetensors.torch
import timm
import torch
from timm.utils import CheckpointSaver, ModelEmaV2
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from anchored.errors import UserError
from anchored.models import checkpoint as reader
from anchored.models import registry as networks
from anchored.models.checkpoint import Checkpoint, read_checkpoint
from anchored.models.weights import fit_weights, match_weights


def network(seed: int = 0, classes: int = 3) -> nn.Module:
    return networks.build_network("small", channels=3, classes=classes, seed=seed).eval()


def loaded(read: Checkpoint, which: str = "") -> dict[str, Tensor]:
    module = network(seed=9)
    fit_weights(module, read.tensors, read.title, which=which)
    return module.state_dict()


def same(state: dict[str, Tensor], module: nn.Module) -> bool:
    return all(torch.equal(tensor, state[name]) for name, tensor in module.state_dict().items())


def prefixed(state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {f"{prefix}{name}": tensor for name, tensor in state.items()}


OPTIONS = argparse.Namespace(model="small", lr=0.1, mean=(0.5,), opt_betas=None)


def training_state(state: dict[str, Tensor]) -> dict[str, Any]:
    """What a script saves beside its weights: an optimiser's state, options, NumPy's numbers and random states."""
    module = nn.Linear(2, 2)
    optimiser = torch.optim.Adam(module.parameters())
    module(torch.zeros(1, 2)).sum().backward()
    optimiser.step()
    return {
        "epoch": 7,
        "args": OPTIONS,
        "best": np.float64(93.25),
        "hits": np.int64(12),
        "where": Path("runs/one"),
        "version": torch.__version__,
        "optimizer": optimiser.state_dict(),
        "numpy_rng": np.random.RandomState(0).get_state(),  # as scripts do
        "model": state,
    }


def save_sharded(folder: Path, state: dict[str, Tensor], ending: str) -> Path:
    folder.mkdir()
    names = list(state)
    files: dict[str, str] = {}
    for number, part in enumerate((names[:5], names[5:])):
        file = f"model-0000{number + 1}-of-00002.{ending}"
        tensors = {name: state[name] for name in part}
        torch.save(tensors, folder / file) if ending == "bin" else safetensors.torch.save_file(tensors, folder / file)
        files |= dict.fromkeys(part, file)
    index = folder / f"model.{ending}.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": files}))
    return index


WRITERS: dict[str, Callable[[Path, dict[str, Tensor]], Path | None]] = {
    "plain.pth": lambda path, state: torch.save(state, path),
    "legacy.pt": lambda path, state: torch.save(state, path, _use_new_zipfile_serialization=False),
    "state.ckpt": lambda path, state: torch.save({"state_dict": state, "epoch": 3}, path),
    "training.pth": lambda path, state: torch.save(training_state(state), path),
    "legacy-training.tar": lambda path, state: torch.save(
        training_state(state), path, _use_new_zipfile_serialization=False
    ),
    "nested.pt": lambda path, state: torch.save({"model": {"state_dict": state}, "iteration": 1}, path),
    "parallel.pth": lambda path, state: torch.save({"net": prefixed(state, "module."), "acc": 93.1}, path),
    "compiled.pth": lambda path, state: torch.save(prefixed(state, "module._orig_mod."), path),
    "backbone.pth": lambda path, state: torch.save({"model_state": prefixed(state, "backbone.")}, path),
    "module.pt": lambda path, state: torch.save({"module": prefixed(state, "network."), "n_averaged": 3}, path),
    "plain.safetensors": lambda path, state: safetensors.torch.save_file(state, path),
    "no-ending": lambda path, state: safetensors.torch.save_file(state, path),
    "half.bin": lambda path, state: torch.save(state, path),
    "sharded": lambda path, state: save_sharded(path, state, "safetensors"),
    "sharded-bin": lambda path, state: save_sharded(path, state, "bin"),
}


@pytest.mark.parametrize("name", WRITERS)
def test_formats_and_wrappings_give_the_weights(name: str, tmp_path: Path) -> None:
    given = network()
    WRITERS[name](tmp_path / name, given.state_dict())
    read = read_checkpoint(tmp_path / name)
    assert same(loaded(read), given)


def test_what_stands_beside_the_weights_is_plain_data(tmp_path: Path) -> None:
    torch.save(training_state(network().state_dict()), tmp_path / "training.pth")
    read = read_checkpoint(tmp_path / "training.pth")
    assert read.place == "model"
    assert read.metadata["args"] == {"model": "small", "lr": 0.1, "mean": [0.5], "opt_betas": None}
    assert (read.metadata["epoch"], read.metadata["best"], read.metadata["hits"]) == (7, 93.25, 12)
    assert (read.metadata["where"], read.metadata["version"]) == ("runs/one", str(torch.__version__))
    assert "optimizer" not in read.metadata


def test_timms_own_checkpoints(tmp_path: Path) -> None:
    given = timm.create_model("test_resnet", num_classes=3)
    average: Any = ModelEmaV2(given, decay=0.5)  # type: ignore[no-untyped-call]
    for parameter in average.module.parameters():
        nn.init.constant_(parameter, 0.25)
    optimiser = torch.optim.SGD(given.parameters(), lr=0.1, momentum=0.9)
    save: Any = CheckpointSaver
    saver = save(given, optimiser, args=OPTIONS, model_ema=average, checkpoint_dir=str(tmp_path))
    saver.save_checkpoint(0, metric=1.0)
    for which, source in (("", given), ("ema", average.module)):
        read = read_checkpoint(tmp_path / "last.pth.tar", which)
        module = timm.create_model("test_resnet", num_classes=3)
        fit_weights(module, read.tensors, read.title)
        assert same(module.state_dict(), source)
        assert read.metadata["args"]["lr"] == 0.1


class Lightning(pytorch_lightning.LightningModule):
    def __init__(self, lr: float = 0.1) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.model = network()
        self.criterion = nn.CrossEntropyLoss(weight=torch.ones(3))

    def training_step(self, batch: Any, index: int) -> Tensor:
        loss: Tensor = self.criterion(self.model(batch[0]), batch[1])
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=self.hparams["lr"])


@pytest.mark.filterwarnings("ignore")
def test_lightnings_own_checkpoints(tmp_path: Path) -> None:
    module = Lightning()
    data = torch.utils.data.TensorDataset(torch.zeros(2, 3, 8, 8), torch.tensor([0, 1]))
    trainer = pytorch_lightning.Trainer(
        max_steps=1, logger=False, enable_progress_bar=False, enable_model_summary=False, accelerator="cpu",
        default_root_dir=tmp_path, enable_checkpointing=False,
    )  # fmt: skip
    trainer.fit(module, torch.utils.data.DataLoader(data, batch_size=2))
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    read = read_checkpoint(tmp_path / "last.ckpt")
    assert same(loaded(read), module.model)
    fit = match_weights(network(), read.tensors, read.title)
    assert fit.prefix == "model."
    assert fit.left_out == {"criterion.weight": "3"}
    assert read.metadata["hyper_parameters"] == {"lr": 0.1}


def test_averages_are_taken_when_asked_for(tmp_path: Path) -> None:
    trained, averaged = network(1), network(2)
    kept = AveragedModel(averaged).state_dict()
    torch.save(
        {"model_ema": kept, "model": trained.state_dict()}, tmp_path / "a.pth"
    )  # torchvision's, and the authors'
    together = prefixed(averaged.state_dict(), "ema_model.module.") | prefixed(trained.state_dict(), "model.")
    torch.save(together, tmp_path / "b.pth")
    for file in ("a.pth", "b.pth"):
        assert same(loaded(read_checkpoint(tmp_path / file)), trained)
        assert same(loaded(read_checkpoint(tmp_path / file, "ema"), "ema"), averaged)
    assert read_checkpoint(tmp_path / "a.pth").others == ("model_ema",)
    assert "n_averaged" in str(match_weights(network(), read_checkpoint(tmp_path / "a.pth", "ema").tensors))
    torch.save({"teacher": trained.state_dict(), "student": averaged.state_dict()}, tmp_path / "c.pth")
    with pytest.raises(UserError, match="several sets of weights, teacher, student: say which"):
        read_checkpoint(tmp_path / "c.pth")
    assert same(loaded(read_checkpoint(tmp_path / "c.pth", "student")), averaged)
    with pytest.raises(UserError, match="has no weights 'pupil': it has 'teacher', 'student'"):
        read_checkpoint(tmp_path / "c.pth", "pupil")


# --- what is refused ----------------------------------------------------------------------------------------------


class Evil:
    """Runs a command where it is unpickled."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.reduced = (function, arguments)

    def __reduce__(self) -> Any:
        return self.reduced


class Own:
    """A class of somebody's code."""


REFUSED: dict[str, Callable[[Path], Any]] = {
    "torch.nn.modules.linear.Linear": lambda mark: nn.Linear(2, 2),
    f"{__name__}.Own": lambda mark: {"config": Own(), "model": {"weight": torch.zeros(1)}},
    "posix.system": lambda mark: {"weight": torch.zeros(1), "x": Evil(os.system, f"touch {mark}")},
    "eval": lambda mark: Evil(eval, f"open({str(mark)!r}, 'w')"),
    "getattr": lambda mark: {"args": Evil(getattr, OPTIONS, "model")},
    "pathlib.Path.write_text": lambda mark: Evil(Path.write_text, mark, "x"),
}


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("wanted", REFUSED)
def test_what_is_more_than_plain_data_is_refused_by_name_and_never_runs(
    wanted: str, legacy: bool, tmp_path: Path
) -> None:
    mark = tmp_path / "mark"
    torch.save(REFUSED[wanted](mark), tmp_path / "a.pth", _use_new_zipfile_serialization=not legacy)
    with pytest.raises(UserError) as caught:
        read_checkpoint(tmp_path / "a.pth")
    told = str(caught.value)
    assert wanted.rpartition(".")[2] in told or "getattr" in told
    assert "torch.save(model.state_dict()" in told
    assert "\n" not in told
    assert not [word for word in ("delete", "remove", "replace") if word in told]
    assert not mark.exists()
    assert (tmp_path / "a.pth").exists()


def test_harmless_classes_are_never_made(tmp_path: Path) -> None:
    """Options are read as what the file says: whatever it says, no code of argparse, pathlib or NumPy runs."""

    class Loud(argparse.Namespace):
        def __reduce__(self) -> Any:
            return argparse.Namespace, (), {"__class__": "Evil", "__reduce__": "system", "lr": 1}

    mark = tmp_path / "mark"
    objects: Any = np.dtype("O"), Evil(os.system, f"touch {mark}")
    torch.save({"model": {"w": torch.zeros(1)}, "args": Loud()}, tmp_path / "a.pth")
    assert read_checkpoint(tmp_path / "a.pth").metadata["args"]["lr"] == 1
    value: Any = np.float64(0)
    scalar = value.__reduce__()[0]
    torch.save({"model": {"w": torch.zeros(1)}, "x": Evil(scalar, *objects)}, tmp_path / "b.pth")
    with pytest.raises(UserError, match="system"):
        read_checkpoint(tmp_path / "b.pth")
    assert not mark.exists()
    made = reader.load_plainly(tmp_path / "a.pth")["args"]
    assert type(made).__mro__[1] is reader._Record
    assert not set(torch.serialization.get_safe_globals()) & {*reader._HARMLESS}  # nothing is left behind


def write(path: Path, content: bytes) -> None:
    path.write_bytes(content)


def truncated(path: Path) -> None:
    torch.save(network().state_dict(), path)
    write(path, path.read_bytes()[:-2000])


def flipped(path: Path) -> None:
    torch.save(network().state_dict(), path)
    content = bytearray(path.read_bytes())
    start = content.index(b"_rebuild_tensor") - 4  # within the pickle
    content[start : start + 40] = b"\xff" * 40
    write(path, bytes(content))


def save_script(path: Path) -> None:
    script: Any = torch.jit
    script.save(script.script(nn.Linear(1, 1)), path)


DAMAGED: dict[str, tuple[Callable[[Path], Any], str]] = {
    "empty": (lambda path: write(path, b""), "is empty"),
    "zeros": (lambda path: write(path, b"\0" * 5000), "holds zeros alone"),
    "html": (lambda path: write(path, b"<!doctype html><p>Sign in"), "is a page or text"),
    "lfs": (lambda path: write(path, b"version https://git-lfs.github.com/spec/v1\noid"), "a pointer of Git LFS"),
    "noise": (lambda path: write(path, bytes(range(256)) * 20), "is not a whole file|holds more than tensors"),
    "truncated": (truncated, "is not a whole file"),
    "flipped": (flipped, "is not a whole file|holds more than tensors"),
    "missing": (lambda path: None, "cannot read"),
    "folder": (lambda path: path.mkdir(), "is a folder without weights"),
    "pipe": (os.mkfifo, "is not a regular file"),
    "list": (lambda path: torch.save([1, 2], path), "holds no weights"),
    "tensor": (lambda path: torch.save(torch.zeros(3), path), "holds no weights"),
    "numbers": (lambda path: torch.save({"epoch": 3}, path), "holds no weights"),
    "script": (save_script, "is a TorchScript program"),
}


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning", "ignore:.*torch.jit:FutureWarning")
@pytest.mark.parametrize("kind", DAMAGED)
def test_files_that_are_no_checkpoints_are_one_line(kind: str, tmp_path: Path) -> None:
    make, told = DAMAGED[kind]
    make(tmp_path / "a.pth")
    with pytest.raises(UserError, match=told) as caught:
        read_checkpoint(tmp_path / "a.pth")
    assert "\n" not in str(caught.value)
    assert "a.pth" in str(caught.value)


def test_indices_that_lie_are_refused(tmp_path: Path) -> None:
    index = save_sharded(tmp_path / "m", network().state_dict(), "safetensors")
    described = json.loads(index.read_text())
    name = next(iter(described["weight_map"]))
    for changed, told in (
        ({**described["weight_map"], name: "../secret.safetensors"}, "have to lie beside their index"),
        ({**described["weight_map"], "absent": "model-00001-of-00002.safetensors"}, "has no tensor 'absent'"),
        ({**described["weight_map"], name: "gone.safetensors"}, "cannot read"),
        ([], "has no weight_map"),
    ):
        index.write_text(json.dumps({"weight_map": changed}))
        with pytest.raises(UserError, match=told):
            read_checkpoint(tmp_path / "m")


def test_an_old_torch_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.save(network().state_dict(), tmp_path / "a.pth")
    monkeypatch.setattr(torch, "__version__", "2.5.1+cpu")
    with pytest.raises(UserError, match=r"torch 2\.5\.1\+cpu .*CVE-2025-32434"):
        read_checkpoint(tmp_path / "a.pth")


# --- what fits ----------------------------------------------------------------------------------------------------


def test_one_table_says_what_was_found_left_out_and_missing() -> None:
    state = prefixed(network().state_dict(), "module.net.") | {"n_averaged": torch.tensor(3)}
    state.pop("module.net.head.bias")
    state["module.net.extra.weight"] = torch.zeros(2, 5)
    state["module.net.head.weight"] = torch.zeros(7, 64)
    table = str(match_weights(network(), state, "a.pth"))
    for told in ("a.pth", "'module.net.'", "n_averaged", "head.bias 3", "extra.weight 2×5", "head.weight 7×64"):
        assert told in table
    with pytest.raises(UserError, match=r"'head\.bias' is missing; \d+ of its \d+ tensors fit"):
        fit_weights(network(), state, "a.pth")


def test_a_larger_network_is_not_taken_for_a_part_of_itself() -> None:
    """ResNet-34 has all of ResNet-18's tensors, by name and shape."""
    larger, smaller = (timm.create_model(name, num_classes=2) for name in ("resnet34", "resnet18"))
    with pytest.raises(UserError, match="is not one of its weights"):
        fit_weights(smaller, larger.state_dict(), "a.pth")


def test_a_head_for_other_classes_is_replaced_where_that_is_asked_for() -> None:
    module, state = network(), network(1, classes=10).state_dict()
    with pytest.raises(UserError, match=r"'head\.weight' is 10×64, not 3×64"):
        fit_weights(module, state, "a.pth")
    fit_weights(module, state, "a.pth", replace_head=True)
    assert not module.state_dict()["head.weight"].any()


def test_names_of_another_author_are_taken_by_order_and_said() -> None:
    given = network(4)
    state = given.state_dict()
    layers = {name: number for number, name in enumerate(dict.fromkeys(n.rpartition(".")[0] for n in state))}
    theirs = {f"net.layer_{layers[n.rpartition('.')[0]]}.{n.rpartition('.')[2]}": t for n, t in state.items()}
    module = network(9)
    fit = fit_weights(module, theirs, "a.pth")
    assert same(module.state_dict(), given)
    assert "by their order" in str(fit)
    names = list(theirs)
    names[1], names[2] = names[2], names[1]
    with pytest.raises(UserError, match="does not fit"):
        fit_weights(network(9), {name: theirs[name] for name in names}, "a.pth")


def test_nan_is_refused_and_double_precision_is_narrowed() -> None:
    state = {name: t.double() if t.is_floating_point() else t for name, t in network().state_dict().items()}
    module = network(9)
    fit_weights(module, state, "a.pth")
    assert same(module.state_dict(), network())
    with pytest.raises(UserError, match="is float64, not float32"):
        fit_weights(module, state, "a.pth", strict=True)
    state["head.bias"] = torch.tensor([1.0, float("nan"), 0.0])
    with pytest.raises(UserError, match=r"'head\.bias' holds NaN"):
        fit_weights(module, state, "a.pth")
    assert same(module.state_dict(), network())


def test_only_places_are_compared(tmp_path: Path) -> None:
    torch.save(network().state_dict(), tmp_path / "a.pth")
    read = read_checkpoint(tmp_path / "a.pth")
    assert read.title == str(tmp_path / "a.pth")
    assert replace(read, place="ema").title.endswith("(ema)")


def test_a_small_file_that_names_one_list_a_million_times_is_read_at_once(tmp_path: Path) -> None:
    within = dict[str, Any]()
    weights = networks.build_network("small", channels=1, classes=3, seed=0).state_dict()
    many: Any = [0]
    for _ in range(9):
        many = [many] * 10
    wide: Any = {str(i): {} for i in range(30)}
    for _ in range(5):
        wide = {str(i): wide for i in range(30)}
    within["itself"] = within
    torch.save({"model": weights, "epoch": 3, "many": many, "wide": wide, "within": within}, tmp_path / "mine.pt")
    found = read_checkpoint(tmp_path / "mine.pt", which="model")
    assert found.tensors.keys() == weights.keys()
    assert found.metadata["epoch"] == 3
