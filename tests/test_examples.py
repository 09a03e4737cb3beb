"""The examples run, learn, and give models that fold; mixing comes before anchoring. Code of adapters.md runs."""

import importlib.util
import re
import warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

import anchored
from anchored.cli.main import main
from anchored.data import datasets
from anchored.data.image_sets import ImageSet
from anchored.data.preprocessing import to_input
from anchored.method.anchoring import AnchoredModel
from anchored.models import folder as models
from anchored.models import registry as networks
from anchored.models.folder import ModelConfig
from anchored.store.layout import Run

EXAMPLES = Path(__file__).parent.parent / "examples"
DOCS = EXAMPLES.parent / "docs"


def example(name: str) -> Any:
    """The module of an example."""
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def images() -> ImageSet:
    return datasets.take_fraction(datasets.load_split("fashion-mini-known", "train"), 0.1)


@pytest.mark.parametrize("name", ["plain_loop", "lightning", "hugging_face_trainer", "timm_pieces"])
def test_in_other_peoples_loops(name: str, images: ImageSet) -> None:
    network = networks.build_network("small", channels=1, classes=7, seed=0)
    torch.manual_seed(0)
    model = example(name).train(network, images, epochs=6)
    assert isinstance(model, AnchoredModel)
    assert model.references is not None
    inputs = to_input(images.images, (0.286,), (0.353,))
    with torch.no_grad():
        logits = model(inputs)
        assert functional.cross_entropy(logits, images.labels) < functional.cross_entropy(
            network(inputs), images.labels
        )
        assert (logits.argmax(dim=1) == images.labels).float().mean() > 0.4
        assert torch.allclose(anchored.fold(model)(inputs), logits, atol=1e-4)


def test_timms_mixup_comes_before_anchoring(images: ImageSet, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the network sees adds up to mixed images: [r, x − r] with x and r both out of the mixed batch."""
    module = example("timm_pieces")
    mixed: list[Tensor] = []
    seen: list[Tensor] = []

    class Watched(module.Mixup):  # type: ignore[misc, name-defined]
        def __call__(self, inputs: Tensor, labels: Tensor) -> Any:
            result = super().__call__(inputs, labels)
            mixed.append(result[0].clone())
            return result

    monkeypatch.setattr(module, "Mixup", Watched)
    network = networks.build_network("small", channels=1, classes=7, seed=0)
    honest = AnchoredModel._logits

    def watched(self: AnchoredModel, pairs: Tensor) -> Tensor:
        seen.append(pairs.detach().clone())
        return honest(self, pairs)

    monkeypatch.setattr(AnchoredModel, "_logits", watched)
    module.train(network, images, epochs=1)
    unmasked = 0
    for batch, pairs in zip(mixed, seen[1:], strict=True):  # the first pass sets the reference
        references, residuals = pairs.chunk(2, dim=1)
        if references.any():
            unmasked += 1
            assert torch.allclose(references + residuals, batch, atol=1e-6)
            assert all((reference == batch).flatten(1).all(dim=1).any() for reference in references)
    assert unmasked >= 2


def blocks(page: str) -> Iterator[str]:
    """Python code of a page of the docs."""
    yield from re.findall(r"^```python\n(.*?)^```", (DOCS / page).read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, images: ImageSet) -> Path:
    """A folder with the models that docs/how-to/adapters.md names, and the folder that its command writes."""
    place = tmp_path_factory.mktemp("docs")
    grey = ModelConfig("small", "ram", 0.25, 1, 28, (0.3,), (0.3,), images.classes, "", references=0)
    vit = replace(grey, network="timm:vit_tiny_patch16_224", channels=3, size=48, mean=(0.5,) * 3, std=(0.5,) * 3)
    for name, config in (("ram", grey), ("vit", replace(vit, references=1))):
        model = models.build_model(config, seed=0)
        if config.references and isinstance(model, AnchoredModel):
            model.set_references(torch.rand(1, 3, 48, 48, generator=torch.Generator().manual_seed(0)))
        models.save_model(Run(place / "runs" / name), model, config)
    return place


@pytest.mark.parametrize("number", range(5))
def test_the_page_on_adapters_runs(number: int, runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(runs)
    code = list(blocks("how-to/adapters.md"))
    assert len(code) == 5
    if "shared/vit" in code[number] and not Path("shared").exists():
        assert main(["export", "runs/vit", "timm:shared/vit"]) == 0
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*does not have many workers.*")
        exec(compile(code[number], f"how-to/adapters.md, block {number}", "exec"), {"__name__": "docs"})
    written = {1: "maite.html", 3: "report.html", 4: "shared/vit/config.json"}
    assert number not in written or Path(written[number]).exists()
