"""Anchoring: the pair, reference masking, the mean over K references, references saved with the model.

Letters: B batch, C image channels, H×W image size, K references, N classes, α mask probability.
Sources: docs/explanation/method.md; arXiv 2406.00529.
"""

import contextlib
import warnings
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch._compile import _disable_dynamo
from torch.nn import functional

from anchored.errors import UserError
from anchored.method import collectives
from anchored.method import stem as stems
from anchored.method.devices import to_device

untraced = _disable_dynamo
"""``torch.compiler.disable``, as torch decorates its own: ``torch._dynamo``, a second to import, comes with a call."""
MaskUnit = Literal["batch", "process", "image"]
GROUP = 32
"""Images of a draw of mask unit ``process``: those of one process where the published ImageNet runs were made."""


def pair(images: Tensor, references: Tensor, masked: Tensor | None = None, dim: int = 1) -> Tensor:
    """``[r, x − r]``: images (B,C,H,W) and references (B or 1,C,H,W) to pairs (B,2C,H,W), along ``dim``.

    Where ``masked`` (B,) is true the reference is replaced by zeros *after* the residual was computed: ``[0, x − r]``.
    Zero is the mean image in normalised space.
    """
    residuals = images - references
    if masked is not None:
        references = references * ~masked.view(-1, *[1] * (references.dim() - 1))
    return torch.cat([references.expand_as(residuals), residuals], dim=dim)


@contextlib.contextmanager
def frozen_statistics(network: nn.Module) -> Iterator[None]:
    """Within it, batch norm normalises by the batch in training mode but leaves its running statistics alone."""
    layers = _tracking_norms(network)
    _track(layers, False)
    try:
        yield
    finally:
        _track(layers, True)


def _tracking_norms(network: nn.Module) -> list[nn.modules.batchnorm._BatchNorm]:
    return [m for m in network.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.track_running_stats]


def _track(layers: list[nn.modules.batchnorm._BatchNorm], tracking: bool) -> None:
    for layer in layers:
        layer.track_running_stats = tracking


@untraced
def _freeze_in_backward(network: nn.Module, logits: Tensor, frozen: list[nn.modules.batchnorm._BatchNorm]) -> None:
    """Leave running statistics alone in the backward pass too, where checkpointed layers of the network run again.

    ``frozen``: layers that are frozen now; those of a backward pass that an error ended stay in it.
    """
    layers = _tracking_norms(network)
    if not layers or not logits.requires_grad:
        return

    def freeze(_: Tensor) -> None:
        _track(layers, False)
        frozen.extend(layers)
        torch.autograd.Variable._execution_engine.queue_callback(lambda: _thaw(frozen))

    logits.register_hook(freeze)  # type: ignore[no-untyped-call]


def _thaw(frozen: list[nn.modules.batchnorm._BatchNorm]) -> None:
    _track(frozen, True)
    frozen.clear()


@dataclass
class _Draw:
    """What a training pass drew, kept for its recomputation."""

    means: Tensor  # (B,) of the images, which it is known by
    order: Tensor  # (B,) int64
    masked: Tensor  # (B,) bool
    whole: bool  # whether the whole batch is masked
    repeated_in: int = -1  # the backward pass that repeated it last

    def is_of(self, means: Tensor) -> bool:
        return self.means.shape == means.shape and torch.allclose(self.means, means, rtol=1e-3, atol=1e-6)


@torch.no_grad()
def average_statistics(network: nn.Module) -> None:
    """Make batch norm's running statistics the mean of those of all processes that train together, one by one."""
    for layer in network.modules() if collectives.get_world_size() > 1 else ():
        if isinstance(layer, nn.modules.batchnorm._BatchNorm) and layer.training and layer.running_mean is not None:
            assert layer.running_var is not None
            for statistic in (layer.running_mean, layer.running_var):
                statistic.copy_(collectives.all_reduce(statistic) / collectives.get_world_size())


def checked_references(images: Tensor) -> Tensor:
    """The images, if they can be references: finite floats (K,C,H,W), K at least 1; else ``UserError``."""
    if images.dim() < 2 or len(images) == 0 or not images.is_floating_point():
        raise UserError(f"references must be normalised images (K,C,H,W), not {tuple(images.shape)} {images.dtype}")
    if not torch.isfinite(images).all():
        raise UserError("references contain NaN or infinity: give finite training images")
    return images


def refuse_raw(images: Tensor) -> None:
    """``UserError`` for images that are no floats: differences to references would make floats of them unseen."""
    if not images.is_floating_point():
        raise UserError(f"images are {images.dtype}: give normalised floats, as the network was trained on")


class AnchoredModel(nn.Module):
    """Images (B,C,H,W) in, logits (B,N) out, through a network that sees ``[reference, image − reference]``.

    In training mode every image's reference is another image of its batch (a random permutation; an image may be its
    own), and with probability α the references are masked. In evaluation mode the output is deterministic: the
    mean of the logits over the K saved references. Make one with :func:`anchor`.

    Attributes:
        network: the network with 2C input channels.
        references: (K,C,H,W), a persistent buffer, or None until set. Unset, the first image of the first training
            batch becomes the reference, so that it always is a training image (under DistributedDataParallel one of
            each process's own, with a warning: set them before); a network that was never trained uses the zero
            reference.
        mask_probability: α in [0, 1).
        stem: the first layers, the only wide ones; None where the network was not widened by :func:`anchor`.
        training_references: (M,C,H,W), what training draws references from, each image one of its own, with
            replacement; None for the other images of the batch. Not saved. See :meth:`set_training_references`.
        masked: (B,) bool, which pairs of the last training pass were masked.
        order: (B,) int64, the last training pass's references by their places in the batch, or in
            ``training_references``.
        generator: source of permutations and masks; a CPU generator, so that draws are the same on every device. Under
            DistributedDataParallel every process has one of the same seed, and takes its own part of what is drawn.
    """

    references: Tensor | None

    def __init__(
        self,
        network: nn.Module,
        mask_probability: float = 0.0,
        *,
        mask_unit: MaskUnit = "batch",
        mask_group: int = GROUP,
        masked_target: Literal["label", "uniform"] = "label",
        batch_norm: Literal["unmasked", "all"] = "unmasked",
        generator: torch.Generator | None = None,
        stem: stems.Stem | None = None,
    ) -> None:
        super().__init__()
        if not 0 <= mask_probability < 1:  # also refuses NaN
            raise UserError(f"mask_probability is {mask_probability}: give a number in [0, 1)")
        for name, value, known in (
            ("mask_unit", mask_unit, get_args(MaskUnit)),
            ("masked_target", masked_target, ("label", "uniform")),
            ("batch_norm", batch_norm, ("unmasked", "all")),
        ):
            if value not in known:
                raise UserError(f"{name} is {value!r}: give {' or '.join(map(repr, known))}")
        if mask_group < 1:
            raise UserError(f"mask_group is {mask_group}: give the images that one draw masks, at least 1")
        self.network = network
        self.stem = stem
        self.mask_probability = mask_probability
        self.mask_unit = mask_unit
        self.mask_group = mask_group
        self.masked_target = masked_target
        self.batch_norm = batch_norm
        self.generator = torch.Generator().manual_seed(0) if generator is None else generator
        self.training_references: Tensor | None = None
        self.masked = torch.zeros(0, dtype=torch.bool)
        self.order = torch.zeros(0, dtype=torch.int64)
        self._warned_of_single_images = False
        self._draws: deque[_Draw] = deque(maxlen=64)  # newest first
        self._frozen: list[nn.modules.batchnorm._BatchNorm] = []
        self.register_buffer("references", None)

    def forward(self, images: Tensor, far: Tensor | None = None, own: int | None = None) -> Tensor:
        """Images (B,C,H,W), normalised floats, to logits (B,N).

        In training, residuals ``far`` (P,C,H,W) may be shown in the same pass, as ``[0, Δ]``: then logits are (B+P,N),
        and their loss is the caller's (:func:`anchored.method.hard_delta.uniform_cross_entropy`, for example). Only the
        first ``own`` images may be the batch that references and masks are drawn for, and references from: a further
        one, a view or an outlier, has the reference and the mask of the image at its place modulo ``own``.
        ``UserError`` for images or residuals of other sizes than the references', and for ``far`` in evaluation.
        """
        refuse_raw(images)
        if not self.training:
            if far is not None:
                raise UserError("far residuals are shown in training only: call train() first, or masked_pass()")
            return self._evaluation_pass(images)
        if self.references is None:
            self._take_reference(images)
        self.order, self.masked, whole = self._draw(images.detach()[:own])
        if far is not None and far.shape[1:] != images.shape[1:]:
            raise UserError(f"far residuals are {_size(far)}, images {_size(images)}: they need one size")
        # A whole masked batch has other activation statistics than the unmasked pairs of evaluation; in a batch with
        # some masked or far ones the ordinary ones are normalised by the mixture too, so there the mixture is right.
        if whole and self.batch_norm == "unmasked":
            with frozen_statistics(self.network):
                logits = self._training_pass(images, far)
            _freeze_in_backward(self.network, logits, self._frozen)
            return logits
        return self._training_pass(images, far)

    @untraced
    def _take_reference(self, images: Tensor) -> None:
        if collectives.get_world_size() > 1:
            warnings.warn(
                "every process takes the first image of its own first batch as its reference: set_references() on all "
                "of them, to the same training images, before training",
                stacklevel=4,
            )
        self.set_references(images[:1])

    def _training_pass(self, images: Tensor, far: Tensor | None) -> Tensor:
        """Logits (B+P,N) of images with the references and masks that were drawn, and of far residuals."""
        pairs = self._drawn_pairs(images)
        return self._logits(pairs if far is None else torch.cat([pairs, pair(far, torch.zeros_like(far))]))

    def _drawn_pairs(self, images: Tensor, dim: int = 1) -> Tensor:
        order, masked = self.order, self.masked
        if len(images) > len(order):  # further ones have the reference and the mask of the image at their place
            places = torch.arange(len(images), device=images.device) % len(order)
            order, masked = order[places], masked[places]
        references = images[order] if self.training_references is None else self._training_references(images, order)
        return pair(images, references, masked if self.mask_probability > 0 else None, dim)

    @untraced  # generators cannot be traced; the rest is one graph
    def _draw(self, images: Tensor) -> tuple[Tensor, Tensor, bool]:
        """Permutation (B,), masks (B,), and whether the whole batch is masked.

        Activation checkpointing runs a pass again within the backward pass: it is shown what it was shown at first. It
        is known by its images; of several passes over the same images the last is repeated first, as autograd does.
        """
        # The backward pass that runs now, a number; -1 outside of one. A forward pass within one is a recomputation.
        means, backward = images.flatten(1).mean(dim=1), int(torch._C._current_graph_task_id())
        if backward != -1:
            for draw in self._draws:
                if draw.repeated_in != backward and draw.is_of(means):
                    draw.repeated_in = backward
                    return draw.order, draw.masked, draw.whole
        else:
            _thaw(self._frozen)  # a backward pass before this one ended with an error
        order, masked, whole = self._drawn(len(images), images.device)
        self._draws.appendleft(_Draw(means, order, masked, whole))
        return order, masked, whole

    def _drawn(self, batch: int, device: torch.device) -> tuple[Tensor, Tensor, bool]:
        """Permutation (B,), masks (B,), and whether the whole batch is masked, from the generator.

        Processes that train together (with equal seeds and equally many images) draw for all of them, and each takes
        its own: references come from a process's own images, and a mask of the whole batch is one for all.
        """
        pool = self.training_references
        if batch == 1 and pool is None and not self._warned_of_single_images:
            self._warned_of_single_images = True
            warnings.warn(
                "a training batch of one image is its own reference, so its residual is zero: train on batches of two "
                "or more images per process",
                stacklevel=2,
            )
        rank, world, here = collectives.get_rank(), collectives.get_world_size(), self.generator.device
        if pool is None:
            orders = [torch.randperm(batch, generator=self.generator, device=here) for _ in range(world)]
        else:
            orders = [torch.randint(len(pool), (batch,), generator=self.generator, device=here) for _ in range(world)]
        together = world * batch  # the images of all processes, of which each draw masks a group
        group = {"batch": together, "process": self.mask_group, "image": 1}[self.mask_unit]
        masks = torch.rand(-(-together // group), generator=self.generator, device=here) < self.mask_probability
        masked = masks.repeat_interleave(group)[:together].view(world, batch)[rank]
        whole = bool(masked.all())
        return to_device(orders[rank], device), to_device(masked, device), whole

    def _training_references(self, images: Tensor, order: Tensor) -> Tensor:
        assert self.training_references is not None
        if self.training_references.shape[1:] != images.shape[1:]:
            raise UserError(
                f"images are {_size(images)} but the references of training are {_size(self.training_references)}: "
                "set_training_references() with images of their size"
            )
        return self.training_references[order.to(self.training_references.device)].to(images)

    def _evaluation_pass(self, images: Tensor) -> Tensor:
        references = images.new_zeros(1, *images.shape[1:]) if self.references is None else self.references
        self._check_size(images)
        total = self._logits(pair(images, references[:1]))
        for index in range(1, len(references)):
            total = total + self._logits(pair(images, references[index : index + 1]))
        return total / len(references)

    def _check_size(self, images: Tensor) -> None:
        if self.references is not None and self.references.shape[1:] != images.shape[1:]:
            raise UserError(
                f"images are {_size(images)} but the model's references are {_size(self.references)}: "
                "resize the images, or set_references() with training images of their size"
            )

    def _logits(self, pairs: Tensor) -> Tensor:
        logits: Tensor = self.network(pairs)
        return logits

    def masked_pass(self, residuals: Tensor) -> Tensor:
        """Logits (P,N) of ``[0, Δ]`` for residuals (P,C,H,W); batch norm's running statistics are left alone."""
        with frozen_statistics(self.network):
            return self._logits(pair(residuals, torch.zeros_like(residuals)))

    def set_references(self, images: Tensor) -> None:
        """Save training images (K,C,H,W), normalised like the inputs, as the references of evaluation.

        They are kept on the device and in the precision of the network's weights.
        """
        known = next((p for p in self.network.parameters() if p.is_floating_point()), images)
        self.references = checked_references(images.detach()).to(known.device, known.dtype, copy=True)

    def with_references(self, images: Tensor) -> "AnchoredModel":
        """The same network, shared, with other references (K,C,H,W), in evaluation mode."""
        model = AnchoredModel(self.network, stem=self.stem).eval()
        model.set_references(images)
        return model

    def set_training_references(self, images: Tensor | None) -> None:
        """Let training draw references from these images (M,C,H,W), normalised; None: from the batch, the default."""
        self.training_references = None if images is None else checked_references(images.detach())

    def targets(self, labels: Tensor, classes: int) -> Tensor:
        """What cross-entropy is trained towards after a training pass: labels (B,), or probabilities (B,N).

        ``labels`` may be probabilities already, of images that were mixed. With ``masked_target='uniform'`` the result
        is probabilities: uniform for the pairs that were masked, the label's (or the given ones) elsewhere.
        """
        if self.masked_target == "label":
            return labels
        if len(self.masked) != len(labels):
            raise UserError(f"targets for {len(labels)} labels, but the last training pass had {len(self.masked)}")
        soft = labels if labels.is_floating_point() else functional.one_hot(labels, classes)
        return torch.where(self.masked[:, None], 1 / classes, soft.to(torch.get_default_dtype()))

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        # The number of references is the saved model's, so the buffer takes its shape before torch compares shapes.
        saved = state_dict.get(f"{prefix}references")
        if saved is not None:
            device = next((p.device for p in self.network.parameters()), saved.device)
            self.references = torch.empty_like(saved, device=device)
        super()._load_from_state_dict(state_dict, prefix, *rest)

    def extra_repr(self) -> str:
        """The settings, for ``print(model)``."""
        count = 0 if self.references is None else len(self.references)
        return (
            f"mask_probability={self.mask_probability}, mask_unit={self.mask_unit}, "
            f"masked_target={self.masked_target}, batch_norm={self.batch_norm}, references={count}"
        )


def anchor(
    network: nn.Module,
    mask_probability: float = 0.0,
    *,
    fresh_stem: bool = False,
    stem: str | None = None,
    at: str | None = None,
    example: Tensor | None = None,
    mask_unit: MaskUnit = "batch",
    mask_group: int = GROUP,
    masked_target: Literal["label", "uniform"] = "label",
    batch_norm: Literal["unmasked", "all"] = "unmasked",
    generator: torch.Generator | None = None,
) -> AnchoredModel:
    """Anchor a network: the result takes the same images and, before training, gives the same logits.

    Args:
        network: any classifier of images (B,C,H,W) (or (B,C,L), (B,C,D,H,W), (B,C)) whose first layers are
            convolutions or linear layers, patch embeddings included. It is copied, not changed.
        mask_probability: α in [0, 1), the probability that training masks the references.
        fresh_stem: draw the wide first layer anew, for training from scratch. By default both its halves take the
            given weights, and the network's function is kept exactly, for every reference.
        stem: name of the first layer (``"features.0"``). By default every layer that meets the image is widened, found
            by running a copy of the network on random images (:mod:`anchored.method.stem`).
        at: name of the layer or block (``"layer3"``) whose input ``h`` is anchored, ``[r, h − r]``, in place of the
            image: what comes before it runs once for any number of references (:mod:`anchored.method.hidden`). It must
            be the only way from the image to the logits.
        example: a batch of images, of which only the shape matters, where the network does not run on a usual size.
        mask_unit: one mask draw for the whole ``"batch"`` (published for CIFAR), one per ``"image"``, or one for each
            ``"process"``: for every ``mask_group`` images of a step, as published for ImageNet.
        mask_group: images of a draw of ``"process"``, at least 1.
        masked_target: train masked pairs towards their ``"label"`` or the ``"uniform"`` distribution (then compute
            the loss with ``cross_entropy(logits, model.targets(labels, classes))``).
        batch_norm: ``"unmasked"`` keeps whole masked batches out of batch norm's running statistics; ``"all"`` is the
            published behaviour.
        generator: CPU generator of permutations, masks and the fresh stem; seed 0 by default.

    Raises:
        UserError: α outside [0, 1), an unknown setting, or a first layer (or the one named by ``at``) that cannot be
            found or widened: the widened network is compared with the given one, and refused where its logits differ.

    Example:
        >>> model = anchor(torchvision.models.resnet18(weights="DEFAULT"), mask_probability=0.25)
        >>> logits = model(images)  # in any training loop
    """
    if not isinstance(network, nn.Module):
        raise UserError(f"the network is a {type(network).__name__}: give a torch.nn.Module, such as torchvision's")
    generator = torch.Generator().manual_seed(0) if generator is None else generator
    if at is not None:
        from anchored.method import hidden, hidden_layer  # they build upon this module

        if stem is not None:
            raise UserError(f"stem='{stem}' and at='{at}': name one layer to anchor at")
        wide, where = hidden_layer.anchor_at(network, at, fresh=fresh_stem, generator=generator, example=example)
        return hidden.HiddenAnchoredModel(
            wide, where, mask_probability, mask_unit=mask_unit, mask_group=mask_group, masked_target=masked_target,
            batch_norm=batch_norm, generator=generator,
        ).train(network.training)  # fmt: skip
    wide, wide_stem = stems.widen_stem(network, stem, fresh=fresh_stem, generator=generator, example=example)
    return AnchoredModel(
        wide, mask_probability, mask_unit=mask_unit, mask_group=mask_group, masked_target=masked_target,
        batch_norm=batch_norm, generator=generator, stem=wide_stem,
    ).train(network.training)  # fmt: skip


def _size(images: Tensor) -> str:
    return "×".join(map(str, images.shape[1:]))
