"""What ``fuzz.py`` spoils: one small valid file of every kind that anchored reads, and how it is read."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import tarfile
import tempfile
import warnings
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytorch_lightning as pl
import torch
import yaml
from PIL import Image

import anchored
from anchored.config.recipe import Cell, Recipe, canonical
from anchored.config.settings import Data, Evaluation, Grid, Training
from anchored.data import corrupted_copy, image_sources, originals
from anchored.data.catalog import registry as catalog
from anchored.data.catalog.row import File
from anchored.data.image_sources import FileSource, ImageIndex, TarSource, ZipSource, index_files
from anchored.data.readers import arrays, tars, unpack
from anchored.data.user_data import index as own
from anchored.errors import UserError
from anchored.evaluation import suites
from anchored.models import folder as model
from anchored.models.decision import Decision, fit_decision
from anchored.models.initialisation import model_config
from anchored.report import formats
from anchored.report.choice import choice_tables, find_choices
from anchored.report.paper import paper_tables
from anchored.report.published_figures import published_tables
from anchored.report.reading import read_summary
from anchored.report.tables import result_tables
from anchored.store import files as disk
from anchored.store import layout
from anchored.store.layout import Run, StudyFolder
from anchored.store.rows import Row, read_rows, write_rows
from anchored.study import jobs, study
from anchored.training import fit

Kind = Literal["bytes", "json", "yaml"]


@dataclass(frozen=True)
class Target:
    """One kind of file: how a valid one is made, what is spoilt, and how it is read."""

    name: str
    make: Callable[[Path], Path]  # writes what is needed into a folder; the file to spoil
    read: Callable[[Path], object]  # reads the spoilt file
    kind: Kind = "bytes"
    share: float = 1.0  # of the cases that a target gets; less where one is slow
    writes: tuple[str, ...] = ()  # names that reading may leave: caches


class Finding(Exception):
    """What must not happen."""


RECIPE = Recipe(
    data=Data("fashion-mini-known", 0.02),
    grid=Grid(networks=("small",), protocols=("standard", "ram"), seeds=(0, 1)),
    train=Training(epochs=1, batch_size=32),
    evaluate=Evaluation(ood=("blobs",), corruptions=("contrast",), severities=(1,)),
)
ROW = Row(
    "Fashion-MNIST (mini), seven classes", "ResNet-8", "ram", 0.25, "auroc", "Blobs", None, 97.4, None, 3, "", "energy",
    97.0, 97.8, 10, "small-ram-0.25-seed0",
)  # fmt: skip
PIXELS = np.arange(6 * 8 * 8, dtype=np.uint8).reshape(6, 8, 8)


def written(path: Path, content: bytes | str) -> Path:
    """Write a file and return its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def packed(save: Callable[[io.BytesIO], object]) -> bytes:
    """The bytes that a function writes."""
    stream = io.BytesIO()
    save(stream)
    return stream.getvalue()


def rows_file(folder: Path) -> Path:
    """Rows as a run has them."""
    plain = replace(ROW, protocol="standard", alpha=None, metric="accuracy", score="", dataset=ROW.trained_on)
    corrupt = replace(plain, dataset=f"{ROW.trained_on}-C", corruption="contrast", severity=1)
    write_rows(folder / "results.csv", [ROW, plain, replace(plain, seed=4), corrupt])
    return folder / "results.csv"


def study_folder(folder: Path) -> StudyFolder:
    """A study with rows, a cell that is done and one that is under way."""
    there = StudyFolder(folder)
    settings = json.loads(json.dumps(dataclasses.asdict(RECIPE)))
    disk.write_json(there.study_file, {"recipe": settings, "made": {"torch": "2"}})
    rows_file(folder)
    first, *_ = RECIPE.cells()
    run = there.run(first.name)
    disk.write_json(run.cell_file, json.loads(json.dumps(dataclasses.asdict(first))))
    keeper = jobs.StateWriter(run, lambda state: None)
    keeper.end("failed", "no luck", "somewhere")
    run.lock_file.touch()
    return there


def of_study(name: str) -> Callable[[Path], Path]:
    """Makes a study's folder and gives one of its files."""

    def make(folder: Path) -> Path:
        there = study_folder(folder)
        run = there.run(next(iter(RECIPE.cells())).name)
        found = {
            "study": there.study_file,
            "results": there.results_file,
            "state": run.state_file,
            "cell": run.cell_file,
        }
        return found[name]

    return make


def shown(path: Path) -> None:
    """A study's state and its tables on the terminal."""
    there = StudyFolder(path if (path / "study.json").exists() else path.parents[2])
    study.status(there.path)


def reported(path: Path) -> None:
    """The tables of a study on the terminal."""
    summary = read_summary(StudyFolder(path.parent))
    for table in (
        *result_tables(summary),
        *choice_tables(list(find_choices(summary))),
        *paper_tables(summary),
        *published_tables(summary),
    ):
        formats.terminal(table, 100)


def options(arguments: Sequence[str]) -> Recipe:
    """The recipe of a command line, checked."""
    from anchored.cli.parser import parse_arguments
    from anchored.cli.verbs import VERBS

    recipe: Recipe = parse_arguments("study", VERBS["study"], arguments)["recipe"]
    return recipe


def model_folder(folder: Path) -> Run:
    """A trained network's folder."""
    run, cell = Run(folder), next(cell for cell in RECIPE.cells() if cell.protocol == "ram")
    config = model_config(cell)
    made = model.build_model(config)
    made.set_references(torch.zeros(1, config.channels, config.size, config.size))  # type: ignore[operator]
    model.save_model(run, made, config)
    return run


def decision_file(folder: Path) -> Path:
    """A network's decision on seven classes."""
    logits = torch.randn(60, 7, generator=torch.Generator().manual_seed(0))
    rule = fit_decision(logits, logits.argmax(1), classes=tuple("abcdefg"), weights="0" * 16, error=0.2, by_class=False)
    rule.save(folder / "decision.json")
    return folder / "decision.json"


def decided(path: Path) -> None:
    """What a decision says of itself and of two images."""
    rule = Decision.read(path)
    str(rule)
    found = rule.decide(torch.randn(2, len(rule.classes), generator=torch.Generator().manual_seed(1)))
    assert len(found.names) == len(found.set_names) == 2


def tree_file(folder: Path) -> Path:
    """What checkpoints are made of."""
    tree = {"epoch": 1, "history": [{"loss": 0.5}], "state": {"a": torch.arange(4.0), 3: (1, None, True)}}
    disk.save_tree(folder / "checkpoint.safetensors", tree)
    return folder / "checkpoint.safetensors"


def npz_file(folder: Path) -> Path:
    """Own images as an npz."""
    labels = np.array(["cat", "dog"] * 3)
    return written(folder / "own.npz", packed(lambda out: np.savez_compressed(out, images=PIXELS, labels=labels)))


def npy_file(folder: Path) -> Path:
    """Images as a npy file."""
    return written(folder / "own.npy", packed(lambda out: np.save(out, PIXELS)))


def cifar_c(folder: Path) -> Path:
    """A block of CIFAR-10-C."""
    row = CIFAR_C
    labels = np.tile(np.arange(2), 5)
    written(folder / row.folder / "CIFAR-10-C/labels.npy", packed(lambda out: np.save(out, labels)))
    blocks = np.zeros((10, 32, 32, 3), np.uint8)
    return written(folder / row.folder / "CIFAR-10-C/contrast.npy", packed(lambda out: np.save(out, blocks)))


CIFAR_C = replace(catalog.get_dataset("cifar10-c"), test=2, test_files=())
CIFAR = replace(
    catalog.get_dataset("cifar10"),
    train_files=(File(name="cifar-10-batches-bin/data_batch_1.bin", bytes=3073 * 2),),
    parts=(File(name="cifar-10-binary.tar.gz"),),
)
IDX = replace(
    catalog.get_dataset("fashion-mnist"),
    test_files=(File(name="t10k-images-idx3-ubyte"), File(name="t10k-labels-idx1-ubyte")),
)


def idx_file(folder: Path) -> Path:
    """MNIST's images."""
    written(folder / IDX.folder / IDX.test_files[1].name, bytes([0, 0, 8, 1, 0, 0, 0, 6, *range(6)]))
    head = bytes([0, 0, 8, 3, 0, 0, 0, 6, 0, 0, 0, 8, 0, 0, 0, 8])
    return written(folder / IDX.folder / IDX.test_files[0].name, head + PIXELS.tobytes())


def tar_of(files: dict[str, bytes], mode: str, form: int = tarfile.PAX_FORMAT) -> bytes:
    """A tar of files."""

    def save(out: io.BytesIO) -> None:
        with tarfile.open(fileobj=out, mode=mode, format=form) as tar:  # type: ignore[call-overload]
            for name, content in files.items():
                member = tarfile.TarInfo(name)
                member.size, member.mtime = len(content), 1.5
                tar.addfile(member, io.BytesIO(content))

    return packed(save)


def zip_of(files: dict[str, bytes]) -> bytes:
    """A zip of files."""

    def save(out: io.BytesIO) -> None:
        with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as packing:
            for name, content in files.items():
                packing.writestr(name, content)

    return packed(save)


def png(number: int, kind: str = "PNG") -> bytes:
    """An encoded image."""
    pixels = np.random.default_rng(number).integers(0, 255, (12, 9, 3), np.uint8)
    return packed(lambda out: Image.fromarray(pixels).save(out, kind))


PICTURES = {name: png(number) for number, name in enumerate(("set/é/a.png", "set/b/b.png", "set/b/c.png"))}
RECORDS = {CIFAR.train_files[0].name: bytes(3073 * 2)}
PACKED = File(name="set.tar", makes=("set",))


def unpacked(path: Path) -> None:
    """Unpack an archive: all of it, or nothing."""
    with tempfile.TemporaryDirectory() as place:
        try:
            unpack.unpack(path, PACKED, Path(place))
        except UserError:
            if left := sorted(Path(place).rglob("*")):
                raise Finding(f"refused, but left {left[:3]}") from None
            raise


def members(path: Path) -> None:
    """Read every image of an archive in place."""
    tars.members.cache_clear()
    image_sources._open_zip.cache_clear()
    source = (ZipSource if path.suffix == ".zip" else TarSource)(path, "set/")
    keys = source.keys()
    index = ImageIndex(source, keys, np.zeros(len(keys), np.int64), "digits")
    for number in range(len(index)):
        with contextlib.suppress(UserError):
            index.decode(number)


def own_listing(path: Path) -> None:
    """Own images, found and decoded."""
    own.find_user_data.cache_clear()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of equal images, which spoilt files may well hold
        found = own.find_user_data(str(path), 0.3)
    for index in found.splits.values():
        for number in range(min(3, len(index))):
            with contextlib.suppress(UserError):
                index.decode(number)


def csv_file(folder: Path) -> Path:
    """Own images as a list."""
    for number in range(4):
        written(folder / f"{number}.png", png(number))
    lines = "".join(
        f"{number}.png,{'cat' if number % 2 else 'dog'},{'train' if number < 2 else 'test'}\n" for number in range(4)
    )
    return written(folder / "own.csv", f"path,label,split\n{lines}")


def picture(kind: str) -> Target:
    """An encoded image, as data sets and as users bring it."""

    def read(path: Path) -> None:
        with contextlib.suppress(UserError):
            ImageIndex(FileSource(Path()), [str(path)], np.zeros(1, np.int64), "digits").decode(0)
        index_files([path]).decode(0)

    return Target(f"image {kind}", lambda folder: written(folder / f"a.{kind.lower()}", png(1, kind)), read)


def corrupted_folder(folder: Path) -> Path:
    """What a corrupted copy keeps of its progress."""
    place = layout.CorruptedFolder(folder)
    request = corrupted_copy.Request("own", "", 6, ("contrast",), (1,), 0, "folders", 0)
    disk.write_json(place.request_file, dataclasses.asdict(request))
    disk.write_json(place.done_file, {"images": 3})
    return place.done_file


def claimed(path: Path) -> None:
    """Take up a corrupted copy."""
    request = corrupted_copy.Request("own", "", 6, ("contrast",), (1,), 0, "folders", 0)
    corrupted_copy._claim(layout.CorruptedFolder(path.parent), request)


def recipe_text() -> str:
    """A recipe that says a little of everything."""
    return yaml.safe_dump(
        {
            "base": "demo",
            "title": "A title",
            "data": {"train": "fashion-mini-known", "fraction": 0.1, "mean": [0.3], "std": [0.3]},
            "grid": {"networks": ["small"], "alphas": [0.25], "per_network": {"small": {"train": {"epochs": 2}}}},
            "train": {"epochs": 3, "milestones": [0.3, 0.6], "rates": {"stem": 0.1}, "average": 0.5},
            "evaluate": {"ood": ["blobs"], "corruptions": ["c15"], "severities": [1, 2]},
        }
    )


def evaluated(path: Path) -> None:
    """What ``anchored evaluate`` reads before it works."""
    cell = Cell.parse(disk.read_json(path), path)
    suites.check_recipe(Recipe(data=cell.data, grid=Grid(networks=(cell.network,))), None)


def records(path: Path) -> None:
    """CIFAR's records."""
    root = path.parents[1 if path.suffix == ".gz" else 2]
    arrays.READERS["cifar_binary"](CIFAR, "train", root)


CHECKPOINTED = replace(
    next(RECIPE.cells()), train=replace(RECIPE.train, epochs=2, accelerator="cpu", checkpoint_minutes=0)
)


class Stop(pl.Callback):
    """Breaks a training off within its second epoch."""

    def on_train_batch_start(self, trainer: pl.Trainer, *_: Any) -> None:
        """Stop after the sixth step."""
        if trainer.global_step == 6:
            raise KeyboardInterrupt


def checkpoint_text(folder: Path) -> Path:
    """The checkpoint of a training that was broken off: its tensors, and the tree that names them as JSON beside it."""
    run = Run(folder / "run")
    with contextlib.suppress(KeyboardInterrupt):
        fit.train(run, CHECKPOINTED, callbacks=[fit.CheckpointCallback(run, lambda share, what: None, 0), Stop()])
    tensors, metadata = disk.load_tensors(run.checkpoint_file)
    disk.save_tensors(folder / "tensors.safetensors", tensors)
    return written(folder / "tree.json", metadata["tree"])


def resumed(path: Path) -> None:
    """Go on from a checkpoint with that tree."""
    tensors, _ = disk.load_tensors(path.parent / "tensors.safetensors")
    with tempfile.TemporaryDirectory() as place:
        run = Run(Path(place))
        disk.write_json(run.cell_file, json.loads(canonical(CHECKPOINTED)))
        disk.save_tensors(run.checkpoint_file, tensors, {"tree": path.read_text(errors="replace")})
        fit.train(run, CHECKPOINTED)


def archive(name: str, content: bytes, into: str = "") -> Callable[[Path], Path]:
    """Makes an archive in a folder."""
    return lambda folder: written(folder / into / name, content)


def loaded(path: Path) -> None:
    """Load the model of a folder."""
    anchored.load(path.parent)


def arguments_of(path: Path) -> None:
    """A recipe with what the lines of a file say on the command line."""
    with contextlib.suppress(SystemExit):  # --help
        options(["demo", *path.read_text(errors="replace").split("\n")])


ARGUMENTS = (
    "--train.epochs\n3\n--grid.alphas\n[0.1, 0.2]\n--train.rates\n{stem: 0.1}\n--evaluate.ood=[blobs]\n--scale\n0.5"
)

TARGETS = (
    Target("rows", rows_file, read_rows),
    Target("results", of_study("results"), reported),
    Target("study.json", of_study("study"), lambda path: shown(path.parent), "json"),
    Target("study.json, report", of_study("study"), reported, "json"),
    Target("state.json", of_study("state"), shown, "json"),
    Target("cell.json", of_study("cell"), shown, "json"),
    Target("cell.json, evaluate", of_study("cell"), evaluated, "json", share=0.5),
    Target("recipe", archive("r.yaml", recipe_text().encode()), lambda path: options([str(path)]), "yaml", 0.1),
    Target("arguments", archive("arguments", ARGUMENTS.encode()), arguments_of, share=0.1),
    Target("model.json", lambda folder: model_folder(folder).model_file, loaded, "json", 0.5),
    Target("decision.json", decision_file, decided, "json"),
    Target("weights", lambda folder: model_folder(folder).weights_file, loaded, share=0.3),
    Target("tensors", tree_file, disk.load_tensors),
    Target("tree", tree_file, disk.load_tree),
    Target("checkpoint", checkpoint_text, resumed, "json", share=0.05),
    Target("own npz", npz_file, own_listing),
    Target("own npy", npy_file, lambda path: originals.open_originals(str(path), 0, True)),
    Target("own csv", csv_file, own_listing),
    Target("CIFAR-C npy", cifar_c, lambda path: arrays.corrupted_arrays(CIFAR_C, "contrast", 2, path.parents[2])),
    Target("idx", idx_file, lambda path: arrays.READERS["idx"](IDX, "test", path.parents[1])),
    Target("CIFAR binary", archive(CIFAR.train_files[0].name, bytes(3073 * 2), CIFAR.folder), records, share=0.5),
    Target("CIFAR tar.gz", archive(CIFAR.parts[0].name, tar_of(RECORDS, "w:gz"), CIFAR.folder), records, share=0.5),
    Target("tar unpacked", archive("set.tar", tar_of(PICTURES, "w")), unpacked),
    Target("GNU tar unpacked", archive("set.tar", tar_of(PICTURES, "w", tarfile.GNU_FORMAT)), unpacked),
    Target("tar.gz unpacked", archive("set.tar", tar_of(PICTURES, "w:gz")), unpacked, share=0.5),
    Target("zip unpacked", archive("set.zip", zip_of(PICTURES)), unpacked),
    Target("tar in place", archive("set.tar", tar_of(PICTURES, "w")), members, writes=(".set.tar.index",)),
    Target("zip in place", archive("set.zip", zip_of(PICTURES)), members),
    Target("corrupted copy", corrupted_folder, claimed, "json", share=0.5),
    *map(picture, ("PNG", "JPEG", "BMP", "PPM", "TIFF", "WEBP")),
)
