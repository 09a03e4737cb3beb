"""What is done with trained networks after training: temperature scaling, deep ensembles, MC dropout.

Each is the subject of an evaluator like any network. Temperature scaling and ensembles are made of outputs on disk,
without a pass; MC dropout passes every set several times. Legend: T predictions, B or M images, N classes, D features.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path

import torch
from torch import Tensor, nn

from anchored.config.methods import after_training
from anchored.config.recipe import AfterCell, Cell, derived_seed
from anchored.config.settings import Evaluation
from anchored.errors import UserError
from anchored.evaluation import inference
from anchored.evaluation.classifier import Classifier
from anchored.evaluation.evaluator import EvaluationSet, Evaluator, Progress, Subject, evaluator_of
from anchored.evaluation.inference import Outputs
from anchored.method.collectives import from_rank_zero
from anchored.metrics.conformal import fit_temperature
from anchored.models import folder as models
from anchored.models.features import network_behind, penultimate_features
from anchored.models.initialisation import model_config
from anchored.store import files
from anchored.store.layout import Run

_DROPOUT = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d)


def mean_prediction(predictions: Iterable[Tensor]) -> Tensor:
    """Logits (M,N) of T predictions' logits (M,N) each: of their mean probabilities, and of their mean energy.

    ``log p̄ + mean_t logsumexp(z_t)``, with ``p̄ = mean_t softmax(z_t)``: softmax gives p̄, as in a deep ensemble
    (Lakshminarayanan et al. 2017, arXiv 1612.01474), logsumexp the mean over t, which log p̄ alone would lose. float32.
    """
    probabilities = energies = torch.empty(0)
    count = 0
    for logits in predictions:
        energy = logits.double().logsumexp(1, keepdim=True)
        log_p = logits.double() - energy
        probabilities = torch.logaddexp(probabilities, log_p) if count else log_p
        energies, count = energies + energy if count else energy, count + 1
    return (probabilities - math.log(count) + energies / count).float()


# --- Made of outputs on disk --------------------------------------------------------------------------------------


@dataclass
class CombinedEvaluator(Evaluator):
    """Evaluates what is made of other networks' outputs: their mean, or one network's at another temperature."""

    members: Sequence[Evaluator] = ()

    def save_outputs(self) -> None:
        """Make the outputs of all sets from those of the members, which are computed where they are not there."""
        for member in self.members:
            member.save_outputs()
        super().save_outputs()

    def _save(self, images: EvaluationSet) -> None:
        def keep() -> None:  # on rank 0 alone, which tells the others nothing but that it is done
            inference.load_or_compute(*self._kept_as(images), partial(self._combined, images))

        from_rank_zero(keep)

    def _combined(self, images: EvaluationSet) -> Outputs:
        first = self.members[0].outputs(images)
        if len(self.members) == 1:
            return replace(first, logits=first.logits / self.temperature)
        rest = [member.outputs(images) for member in self.members[1:]]
        features = [each.features for each in (first, *rest) if each.features is not None]
        return Outputs(
            mean_prediction(each.logits for each in (first, *rest)),
            first.labels,
            torch.cat(features, dim=1) if features else None,
        )

    @cached_property
    def temperature(self) -> float:
        """That at which the held-out images have the least NLL."""
        held_out = self.held_out()
        if held_out is None:
            raise UserError("temperature scaling is fitted on held-out images: give, say, --data.validation 0.1")
        outputs = self.members[0].outputs(held_out)
        return fit_temperature(outputs.logits, outputs.labels)


# --- MC dropout ---------------------------------------------------------------------------------------------------


def dropout_layers(network: nn.Module) -> dict[str, nn.Module]:
    """The dropout layers of a network that drop something, by name."""
    return {name: layer for name, layer in network.named_modules() if isinstance(layer, _DROPOUT) and layer.p > 0}


@contextmanager
def dropped(network: nn.Module, seed: int, number: int) -> Iterator[None]:
    """A context in which the network, in evaluation mode, drops out what ``seed`` and the pass's ``number`` say.

    All images have the same masks, so that each pass is one network drawn from those that dropout trains, and no
    output depends on how images are put into batches. Layers of whole channels drop whole channels.
    """

    def hook(name: str, layer: nn.Module, _: object, output: Tensor) -> Tensor:
        shape = output.shape[1:] if isinstance(layer, nn.Dropout) else (output.shape[1], *[1] * (output.dim() - 2))
        generator = torch.Generator().manual_seed(derived_seed(seed, "mc dropout", name, number))
        share = float(layer.p)  # type: ignore[arg-type]  # a number, whatever a module's attribute may be
        kept = torch.rand(shape, generator=generator) >= share
        return output * (kept / (1 - share)).to(output)

    with ExitStack() as hooks:
        for name, layer in dropout_layers(network).items():
            hooks.callback(layer.register_forward_hook(partial(hook, name)).remove)
        yield


class DropoutPasses:
    """Images to the mean of several passes with dropout: a function as :class:`Classifier` takes it.

    Gal and Ghahramani 2016, arXiv 1506.02142. ``UserError`` for a network that drops nothing.
    """

    def __init__(self, model: nn.Module, passes: int, seed: int) -> None:
        refuse_no_dropout(model)
        self.model, self.passes, self.seed = model.eval().to(memory_format=torch.channels_last), passes, seed

    @torch.inference_mode()
    def __call__(self, images: Tensor) -> dict[str, Tensor]:
        """Inputs (B,C,H,W) on the CPU -> "logits" (B,N), and "features" (B,D), their mean over passes."""
        images, logits = images.to(next(self.model.parameters()).device), list[Tensor]()
        network = network_behind(self.model)
        with penultimate_features(network) as seen:
            for number in range(self.passes):
                with dropped(network, self.seed, number):
                    self.model.eval()  # what a hidden layer keeps of references is of another pass
                    logits.append(self.model(images).float().cpu())
            self.model.eval()
        features = torch.cat(seen).view(-1, len(images), seen[0].shape[1]).mean(dim=0)
        return {"logits": mean_prediction(logits), "features": features.float()}


def refuse_no_dropout(network: nn.Module) -> None:
    """``UserError`` for a network that drops nothing."""
    if not dropout_layers(network):
        raise UserError(
            "MC dropout needs a network that is trained with dropout: set train.dropout, or take wrn40_2_dropout"
        )


def check_after(cell: AfterCell) -> None:
    """Refuse, before anything is trained, what could not be done after training."""
    if after_training(cell.method)[0] == "mc_dropout":
        refuse_no_dropout(models.build_plain_network(model_config(cell.first), allow_import=True))


# --- Evaluators ---------------------------------------------------------------------------------------------------


def after_evaluator(
    run: Run,
    cell: AfterCell,
    members: Sequence[Run],
    settings: Evaluation,
    progress: Progress = lambda share, what: None,
    root: Path | None = None,
) -> Evaluator:
    """The evaluator of what is done after training; ``members``: the runs of its trainings, which are complete."""
    parts = [evaluator_of(each, of, settings, root=root) for each, of in zip(members, cell.members, strict=True)]
    way, _ = after_training(cell.method)
    first, made_of = parts[0], [way, *(part.subject.weights for part in parts)]
    if way == "mc_dropout":
        made_of.append(str(settings.dropout_passes))
        load = partial(_dropping, first.subject, settings.dropout_passes, cell.first)
        subject = replace(first.subject, load=load, weights=_digest(made_of), method=cell.method)
        return Evaluator(run, subject, first.images, settings, progress)
    if way == "temperature" and settings.held_out:
        made_of += [settings.held_out, first.images.content(settings.held_out)]
    subject = replace(first.subject, load=_no_network, weights=_digest(made_of), method=cell.method)
    return CombinedEvaluator(run, subject, first.images, settings, progress, members=parts)


def _digest(made_of: Sequence[str]) -> str:
    return files.digest(json.dumps(made_of).encode())


def _dropping(subject: Subject, passes: int, cell: Cell) -> Classifier:
    classifier = subject.load()
    assert isinstance(classifier.function, nn.Module)
    return replace(classifier, function=DropoutPasses(classifier.function, passes, cell.seed))


def _no_network() -> Classifier:
    raise UserError("what is done after training is made of the outputs of trained networks, not of one network")
