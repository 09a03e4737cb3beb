"""One pass over a set, in parts or whole, interrupted or not, alone or shared, from memory or a stream: one result."""

import multiprocessing
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
import safetensors.torch
import torch
from fixtures.own_images import class_folders
from torch import Tensor
from torch import distributed as dist

from anchored.config.recipe import Cell, Recipe
from anchored.config.settings import Data
from anchored.corruptions import registry as corruptions
from anchored.data import datasets
from anchored.data.image_sets import ImageSet, ImageStream, LabelledImages
from anchored.data.preprocessing import InputFormat, to_input
from anchored.data.user_data import index as own
from anchored.errors import UserError
from anchored.evaluation import inference
from anchored.evaluation.classifier import Classifier
from anchored.evaluation.inference import Outputs, Pass, load_outputs, save_outputs
from anchored.models import folder as models
from anchored.models.folder import ModelConfig
from anchored.models.initialisation import model_config
from anchored.store import files
from anchored.store.layout import Run

KEY = "these weights, this set"


def config() -> ModelConfig:
    cell = next(Recipe().cells())
    return model_config(Cell(**{**vars(cell), "network": "small", "data": Data("fashion-mini")}))


def work(images: LabelledImages | None = None, features: bool = True, batch_size: int = 16) -> Pass:
    made = config()
    whole = datasets.take_fraction(datasets.load_split("fashion-mini", "test"), 0.05)
    return Pass(Classifier.of(models.build_model(made, seed=3), made), images or whole, batch_size, features)


def module_of(todo: Pass) -> torch.nn.Module:
    assert isinstance(todo.classifier.function, torch.nn.Module)
    return todo.classifier.function


def with_module(todo: Pass, module: torch.nn.Module) -> Pass:
    return replace(todo, classifier=replace(todo.classifier, function=module))


def passed(run: Run, name: str, key: str, begin: Callable[[], Pass]) -> Outputs:
    save_outputs(run, name, key, begin)
    outputs = load_outputs(run, name, key)
    assert outputs is not None
    return outputs


def equal(one: Outputs, other: Outputs) -> bool:
    assert one.features is not None
    assert other.features is not None
    return (
        torch.equal(one.logits, other.logits)
        and torch.equal(one.labels, other.labels)
        and torch.equal(one.features, other.features)
    )


@pytest.fixture(scope="module")
def whole() -> Outputs:
    return inference.compute_outputs(work())


def test_outputs_are_the_models(whole: Outputs) -> None:
    todo = work()
    assert isinstance(todo.images, ImageSet)
    with torch.inference_mode():
        logits = module_of(todo).eval()(to_input(todo.images.images, config().mean, config().std))
    torch.testing.assert_close(whole.logits, logits)
    assert whole.labels.tolist() == todo.images.labels.tolist()


def test_parts_make_the_same_file_and_leave_nothing(
    whole: Outputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Run(tmp_path)
    monkeypatch.setattr(inference, "PART", 9_000)  # two batches a part
    written = []
    save = files.save_tensors

    def noted(path: Path, *rest: dict[str, Tensor]) -> None:
        written.append(path.name)
        save(path, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(files, "save_tensors", noted)
    assert equal(passed(run, "test", KEY, work), whole)
    assert written == [f"{start:09d}.safetensors" for start in (0, 32, 64, 96)]
    assert [file.name for file in run.outputs_file("test").parent.iterdir()] == ["test.safetensors"]
    stored = safetensors.torch.load_file(run.outputs_file("test"))
    assert stored.keys() == {"logits", "labels", "features"}
    assert torch.equal(stored["logits"], whole.logits)
    again = passed(run, "test", KEY, lambda: pytest.fail("it is there already"))
    assert equal(again, whole)


class Dying:
    """Images that are not there any more after some batches, as in a kill."""

    def __init__(self, images: ImageSet, after: int) -> None:
        self.images, self.after, self.given = images, after, 0
        self.name, self.labels, self.classes = images.name, images.labels, images.classes

    def __len__(self) -> int:
        return len(self.images)

    def parts(self, batches: tuple[Tensor, ...], augmentation: None = None) -> Iterator[Tensor]:
        for part in self.images.parts(batches):
            if self.given == self.after:
                raise RuntimeError("killed")
            self.given += 1
            yield part


def test_a_killed_pass_goes_on_after_its_last_part(
    whole: Outputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Run(tmp_path)
    monkeypatch.setattr(inference, "PART", 9_000)
    images = work().images
    assert isinstance(images, ImageSet)
    with pytest.raises(RuntimeError, match="killed"):
        passed(run, "test", KEY, lambda: work(Dying(images, 5)))  # type: ignore[arg-type]
    assert list(run.part_files("test")) == [0, 32]
    with pytest.raises(RuntimeError, match="killed"):  # other weights begin again
        passed(run, "test", "other", lambda: work(Dying(images, 1)))  # type: ignore[arg-type]
    rest = Dying(images, 99)
    assert equal(passed(run, "test", KEY, lambda: work(rest)), whole)  # type: ignore[arg-type]
    assert rest.given == 7 - 4
    assert not run.part_file("test", 0).parent.exists()


def test_streams_and_corruptions_do_not_depend_on_where_images_are(tmp_path: Path) -> None:
    folder = class_folders(tmp_path / "images", 12)
    found = own.find_user_data(str(folder), 0.5).split("test")
    labels = torch.from_numpy(found.labels)
    stream = ImageStream("mine", found, ("a", "b", "c"), InputFormat(1, 28), torch.arange(len(found)), workers=2)
    (pixels,) = stream.parts([torch.arange(len(found))])
    memory = ImageSet("mine", pixels, labels, stream.classes)

    def change(images: Tensor, places: Tensor) -> Tensor:
        return corruptions.corrupt(images, "gaussian_noise", 3, seed=1, indices=places)

    model = Classifier.of(models.build_model(config()), config())
    expected = ImageSet("mine", corruptions.corrupt(pixels, "gaussian_noise", 3, seed=1), labels, stream.classes)
    kinds = [Pass(model, expected, 5, True), Pass(model, stream, 5, True, change)]
    kinds.append(Pass(model, memory, 5, True, change))
    first, second, third = map(inference.compute_outputs, kinds)
    assert equal(first, second)
    assert equal(first, third)


def share(rank: int, folder: str) -> None:
    meeting = f"file://{folder}/meeting"
    dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=2, timeout=timedelta(minutes=3))
    try:
        save_outputs(Run(Path(folder) / "run"), "test", KEY, work)
    finally:
        dist.destroy_process_group()


def test_two_processes_share_a_set_and_the_first_joins_it_in_order(
    whole: Outputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = multiprocessing.get_context("spawn").Process(target=share, args=(1, str(tmp_path)))
    other.start()
    joined: list[list[int]] = []
    join = inference._join_parts

    def noted(run: Run, name: str, key: str, parts: dict[int, int], images: int) -> None:
        joined.append(list(parts))
        join(run, name, key, parts, images)

    monkeypatch.setattr(inference, "_join_parts", noted)
    share(0, str(tmp_path))
    other.join(60)
    assert other.exitcode == 0
    assert [len(parts) for parts in joined] == [2]
    outputs = load_outputs(Run(tmp_path / "run"), "test", KEY)
    assert outputs is not None
    assert equal(outputs, whole)
    assert [file.name for file in (tmp_path / "run" / "outputs").iterdir()] == ["test.safetensors"]


def test_images_that_do_not_fit_and_damaged_weights_are_one_line() -> None:
    small = ImageSet("small", torch.zeros(2, 1, 20, 20, dtype=torch.uint8), torch.zeros(2).long(), ("a",))
    with pytest.raises(UserError, match=r"images are 1×20×20, the network takes 1×28×28"):
        inference.compute_outputs(work(small))
    broken = work()
    torch.nn.init.constant_(module_of(broken).head.bias, float("nan"))  # type: ignore[arg-type, union-attr]
    with pytest.raises(UserError, match="logits are not finite"):
        inference.compute_outputs(broken)


def test_joined_tensors_are_read_by_the_format_itself(tmp_path: Path) -> None:
    parts = []
    for number, rows in enumerate((3, 1, 2)):
        tensors = {"b": torch.randn(rows, 5), "a": torch.arange(rows) + 10 * number, "c": torch.rand(rows, 2, 2).half()}
        files.save_tensors(tmp_path / f"{number}", tensors)
        parts.append(tensors)
    files.join_tensors(tmp_path / "all", [tmp_path / f"{number}" for number in range(3)], {"key": "é ∆"})
    whole, metadata = files.load_tensors(tmp_path / "all")
    assert metadata == {"key": "é ∆"}
    for name in "abc":
        assert torch.equal(whole[name], torch.cat([part[name] for part in parts]))
        assert whole[name].dtype == parts[0][name].dtype


class Hungry(torch.nn.Module):
    """A network that has the memory for five images."""

    def __init__(self, network: torch.nn.Module, most: int) -> None:
        super().__init__()
        self.network, self.most = network, most
        self.sizes: list[int] = []

    def forward(self, images: Tensor) -> Tensor:
        """Images (B,C,H,W) to logits (B,N)."""
        self.sizes.append(len(images))
        if len(images) > self.most:
            torch.empty(1 << 58, dtype=torch.uint8)
        logits: Tensor = self.network(images)
        return logits


def test_a_batch_that_does_not_fit_is_halved_with_a_note(caplog: pytest.LogCaptureFixture) -> None:
    todo = work(features=False)
    hungry = Hungry(module_of(todo).eval(), 5)
    found = inference.compute_outputs(with_module(todo, hungry))
    torch.testing.assert_close(found.logits, inference.compute_outputs(todo).logits)
    assert hungry.sizes[:7] == [16, 8, 4, 4, 4, 4, 4]  # and stays there
    assert [record.message for record in caplog.records] == [
        "memory ran out: 8 images at once instead of 16", "memory ran out: 4 images at once instead of 8"
    ]  # fmt: skip
    with pytest.raises(UserError, match="memory runs out on a single image"):
        inference.compute_outputs(with_module(todo, Hungry(module_of(todo), 0)))


def test_other_errors_are_not_taken_for_want_of_memory() -> None:
    class Broken(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = torch.nn.Linear(1, 1)

        def forward(self, images: Tensor) -> Tensor:
            raise RuntimeError("shapes do not fit")

    with pytest.raises(RuntimeError, match="shapes do not fit"):
        inference.compute_outputs(with_module(work(features=False), Broken()))
