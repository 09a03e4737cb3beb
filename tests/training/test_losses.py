"""Methods beside masking: against published implementations on the same inputs, by hand, and beside anchoring."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
import pytorch_lightning as pl
import torch
from fixtures.small_trainings import cell, same_weights
from timm.loss import JsdCrossEntropy
from torch import Tensor, nn
from torch.nn import functional

from anchored import anchor
from anchored.config.methods import METHODS
from anchored.config.settings import Data, Evaluation, Tail, Training
from anchored.errors import UserError
from anchored.evaluation.evaluator import evaluator_of
from anchored.method.anchoring import AnchoredModel
from anchored.method.hard_delta import Residuals, uniform_cross_entropy
from anchored.store import files
from anchored.store.layout import Run
from anchored.training.checkpoints import TensorCheckpoints
from anchored.training.fit import CheckpointCallback, train
from anchored.training.losses import jensen_shannon, normalised_logits
from anchored.training.mixup import mix
from anchored.training.optimiser import averaging_callbacks
from anchored.training.sharpness import moved_uphill
from anchored.training.step import TrainingStep

ORACLES: dict[str, Any] = json.loads((Path(__file__).parent / "method_oracles.json").read_text(encoding="utf-8"))
LOGITS, LABELS = torch.tensor(ORACLES["logits"]), torch.tensor(ORACLES["labels"])  # (2B,N), (B,)
PIXELS = torch.tensor(ORACLES["images"])  # (B,1,4,4)
IMAGES, CLASSES = len(PIXELS), LOGITS.shape[1]
TEMPERATURE = 0.04
TINY = Training(epochs=2, batch_size=32, learning_rate=0.05, crop_padding=2, accelerator="cpu")


def of(method: str, **changes: Any) -> Training:
    return replace(TINY, **{**METHODS[method].train, **changes})


def step_of(train_settings: Training, model: nn.Module, **changes: Any) -> TrainingStep:
    """A step outside of a Trainer, its sums at zero."""
    made = TrainingStep(model, cell(train_settings, tail_weight=0.0, **changes), CLASSES)
    made.generators.begin(0)
    made._sums, made._finite = torch.zeros(3), torch.zeros(())
    return made


class Seen(nn.Module):
    """A network whose logits are sums of its input, which it keeps."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.head = nn.Linear(channels * 16, CLASSES)
        self.inputs: list[Tensor] = []

    def forward(self, images: Tensor) -> Tensor:
        self.inputs.append(images.detach())
        logits: Tensor = self.head(images.flatten(1))
        return logits


def anchored_seeing(alpha: float = 0.0, **changes: Any) -> AnchoredModel:
    torch.manual_seed(0)
    return anchor(Seen(1), alpha, stem="head", example=torch.zeros(2, 1, 4, 4), **changes).train()


def shown(model: AnchoredModel) -> Tensor:
    """The pairs (B,2C,H,W) that the network was shown last."""
    assert isinstance(model.network, Seen)
    return model.network.inputs[-1]


def views(count: int) -> tuple[Tensor, Tensor]:
    images = torch.cat([PIXELS + i for i in range(count)])
    return images, LABELS


def test_consistency_is_that_of_augmix() -> None:
    """timm's JsdCrossEntropy, after the authors' code: cross-entropy of the clean view, and 12 times the divergence."""
    logits = torch.cat([LOGITS, LOGITS[:IMAGES].flip(1)])
    labels = LABELS
    theirs: Any = JsdCrossEntropy
    expected = theirs(num_splits=3, alpha=12, smoothing=0)(logits, labels)
    ours = functional.cross_entropy(logits[:IMAGES], labels) + 12 * jensen_shannon(logits.view(3, IMAGES, -1))
    assert ours.item() == pytest.approx(expected.item(), rel=1e-5)
    same = logits[:IMAGES].expand(3, -1, -1)
    assert jensen_shannon(same).item() == pytest.approx(0, abs=1e-6)
    sure = 1000 * torch.eye(3)[:, None]
    assert jensen_shannon(sure).item() == pytest.approx(torch.tensor(3.0).log().item(), rel=1e-5)
    certain = torch.tensor([[0.0, 200.0], [0.0, 0.0], [200.0, 0.0]])[:, None].requires_grad_()
    (gradient,) = torch.autograd.grad(jensen_shannon(certain), certain)
    assert gradient.isfinite().all()
    close = (LOGITS[:IMAGES] + torch.tensor([0.0, 0.02, -0.02]).view(3, 1, 1) * LOGITS[IMAGES:]).bfloat16()
    assert jensen_shannon(close).item() == pytest.approx(jensen_shannon(close.float()).item(), rel=1e-6)


def test_logitnorm_and_its_gradient_are_pytorch_oods() -> None:
    logits, labels = LOGITS, LABELS
    logits = logits[:IMAGES].clone().requires_grad_()
    loss = functional.cross_entropy(normalised_logits(logits, TEMPERATURE), labels)
    (gradient,) = torch.autograd.grad(loss, logits)
    assert loss.item() == pytest.approx(ORACLES["logit_norm"], rel=1e-5)
    torch.testing.assert_close(gradient, torch.tensor(ORACLES["logit_norm_gradient"]), rtol=1e-3, atol=1e-5)
    assert (gradient * logits).sum(1).abs().max() < 1e-5  # the length of the logits gets no gradient


def test_outlier_exposure_is_pytorch_oods() -> None:
    logits, labels = LOGITS, LABELS
    ours = functional.cross_entropy(logits[:IMAGES], labels) + 0.5 * uniform_cross_entropy(logits[IMAGES:])
    assert ours.item() == pytest.approx(ORACLES["outlier_exposure"], rel=1e-6)


def test_regmixup_shows_the_images_and_torch_uncertaintys_mixtures(monkeypatch: pytest.MonkeyPatch) -> None:
    """With its λ: the images, then their mixtures, with targets; the loss is the mean over both."""
    model = Seen(1)
    step = step_of(of("regmixup"), model, protocol="standard", mask_probability=0.0)
    monkeypatch.setattr(step.generators, "mixing", type("", (), {"beta": lambda self, a, b: 0.75})())
    images, labels = views(1)
    loss = step.training_step((images, labels), 0)
    torch.testing.assert_close(model.inputs[0].flatten(1), torch.tensor(ORACLES["regmixup_images"]))
    targets = torch.tensor(ORACLES["regmixup_targets"])
    torch.testing.assert_close(loss, functional.cross_entropy(model(model.inputs[0]), targets))


def test_label_smoothing_by_hand() -> None:
    """0.1 of the label over 5 classes: 0.92 on its own, 0.02 on each other."""
    logits, labels = LOGITS, LABELS
    model = Seen(1)
    step = step_of(of("label_smoothing"), model)
    smooth = torch.full((IMAGES, CLASSES), 0.02).scatter(1, labels[:, None], 0.92)
    expected = -(smooth * logits[:IMAGES].log_softmax(1)).sum(1).mean()
    found = step._loss(logits[:IMAGES], labels, torch.zeros(0), IMAGES)
    torch.testing.assert_close(found, expected)


def test_views_share_their_references_and_masks() -> None:
    """AugMix's three views of an image are shown [r, x − r] with one clean r, all masked or none."""
    model = anchored_seeing(0.5, mask_unit="image")
    images, labels = views(3)
    step = step_of(of("augmix"), model)
    step.training_step((images, labels), 0)
    references, residuals = shown(model).chunk(2, dim=1)
    expected = images[:IMAGES][model.order].repeat(3, 1, 1, 1)
    torch.testing.assert_close(residuals, images - expected)
    masked = model.masked.repeat(3)
    assert 0 < model.masked.sum() < IMAGES
    torch.testing.assert_close(references, torch.where(masked.view(-1, 1, 1, 1), 0.0, expected))


def test_a_step_of_augmix_has_its_loss() -> None:
    """Of the network's own logits for the three views, by timm."""
    model, theirs = Seen(1), cast(Any, JsdCrossEntropy)
    images, labels = views(3)
    loss = step_of(of("augmix"), model, protocol="standard", mask_probability=0.0).training_step((images, labels), 0)
    torch.testing.assert_close(loss, theirs(num_splits=3, alpha=12, smoothing=0)(model(images), labels))


def test_images_are_mixed_before_they_are_anchored() -> None:
    """The pair that the network sees is [r, x − r] of mixed images x and r."""
    model = anchored_seeing()
    step = step_of(of("mixup"), model)
    images, labels = views(1)
    step.training_step((images, labels), 0)
    step.generators.begin(0)
    onehot = functional.one_hot(labels, CLASSES).float()
    mixed, _ = mix(images, onehot, mixup=1.0, cutmix=0, generator=step.generators.mixing)
    assert not torch.equal(mixed, images)
    references, residuals = shown(model).chunk(2, dim=1)
    torch.testing.assert_close(references, mixed[model.order])
    torch.testing.assert_close(residuals, mixed - mixed[model.order])


def test_outliers_are_seen_from_references_of_the_batch() -> None:
    """As at test time: an outlier's reference is a training image. It is trained to be uniform, and counts as none."""
    model = anchored_seeing()
    images, labels = views(2)
    step = step_of(of("outlier_exposure"), model)
    loss = step.training_step((images, labels), 0)
    references, residuals = shown(model).chunk(2, dim=1)
    torch.testing.assert_close(references[IMAGES:], images[:IMAGES][model.order])
    torch.testing.assert_close(residuals[IMAGES:], images[IMAGES:] - references[IMAGES:])
    logits = model.network(shown(model))
    expected = functional.cross_entropy(logits[:IMAGES], labels) + 0.5 * uniform_cross_entropy(logits[IMAGES:])
    torch.testing.assert_close(loss, expected)
    assert step._sums[2] == IMAGES


def test_mixtures_of_regmixup_have_their_images_reference_and_uniform_target() -> None:
    model = anchored_seeing(0.5, mask_unit="image", masked_target="uniform")
    step = step_of(of("regmixup"), model)
    images, labels = views(1)
    loss = step.training_step((images, labels), 0)
    step.generators.begin(0)
    onehot = functional.one_hot(labels, CLASSES).float()
    mixed, soft = mix(images, onehot, mixup=10.0, cutmix=0, generator=step.generators.mixing)
    _, residuals = shown(model).chunk(2, dim=1)
    torch.testing.assert_close(residuals[IMAGES:], mixed - images[model.order])
    masked = model.masked.repeat(2)[:, None]
    targets = torch.where(masked, 1 / CLASSES, torch.cat([onehot, soft]))
    logits = model.network(shown(model))
    torch.testing.assert_close(loss, functional.cross_entropy(logits, targets))


def test_hard_delta_is_fitted_to_the_batchs_own_residuals() -> None:
    """Not to further views of its images, nor to outliers."""
    model = anchored_seeing()
    images, labels = views(4)
    settings = of("augmix", outliers="jigsaw")
    made = TrainingStep(model, cell(settings), CLASSES, Residuals((1, 4, 4), 1))
    made.generators.begin(0)
    made._sums, made._finite = torch.zeros(3), torch.zeros(())
    made.training_step((images, labels), 0)
    assert made.residuals is not None
    alone = Residuals((1, 4, 4), 1)
    alone.observe(images[:IMAGES], model.order, labels)
    found, expected = made.residuals.state_dict(), alone.state_dict()
    assert expected
    assert all(torch.equal(value, expected[name]) for name, value in found.items())


def test_logitnorm_is_of_all_logits() -> None:
    """Those of outliers and of tail points too."""
    step = step_of(of("logitnorm", outliers="jigsaw"), anchored_seeing())
    step.cell = replace(step.cell, tail_weight=0.3)
    found = step._loss(LOGITS, LABELS, 2 * LOGITS[:3], IMAGES)
    images, outliers, far = (normalised_logits(each, 0.04) for each in (LOGITS[:IMAGES], LOGITS[IMAGES:], LOGITS[:3]))
    expected = functional.cross_entropy(images, LABELS) + 0.5 * uniform_cross_entropy(outliers)
    torch.testing.assert_close(found, expected + 0.3 * uniform_cross_entropy(far))


def test_uphill_is_along_the_gradient_by_the_radius_and_back_exactly() -> None:
    weights = [nn.Parameter(torch.tensor([1.0, 2.0])), nn.Parameter(torch.tensor([3.0])), nn.Parameter(torch.ones(1))]
    weights[0].grad, weights[1].grad = torch.tensor([3.0, 0.0]), torch.tensor([4.0])  # of length 5 together
    before = [each.detach().clone() for each in weights]
    with moved_uphill(weights, 0.5):
        assert weights[0].tolist() == pytest.approx([1.3, 2.0])
        assert weights[1].tolist() == pytest.approx([3.4])
        assert weights[2].tolist() == [1.0]
    assert all(torch.equal(each, value) for each, value in zip(weights, before, strict=True))


class Quadratic(nn.Module):
    """Two logits ±w²/2 for every image: cross-entropy towards class 0 is log(1 + exp(−w²))."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.tensor(2.0))

    def forward(self, images: Tensor) -> Tensor:
        return torch.stack([self.w**2 / 2, -(self.w**2) / 2]).expand(len(images), 2)


def test_a_step_of_sam_by_hand(tmp_path: Path) -> None:
    """The gradient −2w σ(−w²) is taken at w − ρ, since it is negative there, and applied at w."""
    settings = cell(
        replace(TINY, sam=0.05, epochs=1, momentum=0, weight_decay=0.0, learning_rate=0.5, schedule="steps"),
        protocol="standard", mask_probability=0.0, tail_weight=0.0,
    )  # fmt: skip
    step = TrainingStep(Quadratic(), settings, 2)
    batch = [(torch.zeros(4, 1, 2, 2), torch.zeros(4, dtype=torch.int64))]
    trainer = pl.Trainer(
        max_epochs=1, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, default_root_dir=tmp_path,
    )  # fmt: skip
    trainer.fit(step, torch.utils.data.DataLoader(batch, batch_size=None))  # type: ignore[arg-type]
    w = torch.tensor(1.95)
    expected = 2.0 + 0.5 * 2 * w * torch.sigmoid(-(w**2))
    assert step.model.get_parameter("w").item() == pytest.approx(expected.item(), rel=1e-5)
    assert step._sums[2] == 4  # images are counted once


class Stop(pl.Callback):
    """Breaks off within the second epoch, as a kill would."""

    def on_train_batch_start(self, trainer: pl.Trainer, *_: Any) -> None:
        if trainer.current_epoch == 1 and trainer.global_step % 2 == 1:
            raise RuntimeError("killed")


MIXED = {
    "views and outliers": {**METHODS["augmix"].train, "outliers": "phase", "random_erasing": 0.5, "repeats": 2},
    "mixtures uphill": {"regmixup": 10.0, "logit_norm": 0.04, "sam": 0.05, "policy": "pixmix", "average": 0.5},
}


@pytest.mark.parametrize("settings", MIXED.values(), ids=MIXED.keys())
def test_interrupted_training_ends_on_the_same_weights(tmp_path: Path, settings: dict[str, Any]) -> None:
    made = cell(
        replace(TINY, checkpoint_minutes=0, **settings), data=Data("fashion-mini-known", 0.01), tail=Tail(points=4)
    )
    whole, run = Run(tmp_path / "whole"), Run(tmp_path / "run")
    train(whole, made)
    callbacks: list[Any] = [CheckpointCallback(run, lambda share, what: None, 0), Stop()]
    if made.train.average:
        callbacks = [*averaging_callbacks(made.train), *callbacks]
    with pytest.raises(RuntimeError, match="killed"):
        train(run, made, callbacks=callbacks, plugins=[TensorCheckpoints()])
    assert files.load_tree(run.checkpoint_file)["within"]
    train(run, made)
    assert same_weights(run, whole)


def test_sams_passes_share_draws_and_statistics(tmp_path: Path) -> None:
    """With a radius of nearly nothing SAM is plain training: its second pass has the masks, references and mixtures of
    the first, and batch norm's running statistics count it once."""
    made = cell(
        replace(TINY, mixup=1.0, epochs=1), data=Data("fashion-mini-known", 0.01), network="small", tail_weight=0.0
    )
    plain, sharp = Run(tmp_path / "plain"), Run(tmp_path / "sharp")
    train(plain, made)
    train(sharp, replace(made, train=replace(made.train, sam=1e-30)))
    assert same_weights(plain, sharp)


def test_outliers_that_were_trained_on_are_not_measured(tmp_path: Path) -> None:
    run = Run(tmp_path / "run")
    made = cell(replace(TINY, epochs=1, outliers="textures"), data=Data("fashion-mini-known", 0.01), network="small")
    train(run, replace(made, tail_weight=0.0))
    evaluator_of(run, made, Evaluation(ood=("photos",)))
    with pytest.raises(UserError, match=r"train\.outliers is textures, which shares images with textures of evaluate"):
        evaluator_of(run, made, Evaluation(ood=("photos", "textures")))


def test_the_table_trains(tmp_path: Path) -> None:
    """Rows that nothing above trains."""
    for name in ("trivial_augment", "cutmix", "weight_averaging"):
        run = Run(tmp_path / name)
        train(run, cell(of(name, epochs=1), data=Data("fashion-mini-known", 0.01), network="small", tail_weight=0.0))
        assert run.weights_file.exists()
