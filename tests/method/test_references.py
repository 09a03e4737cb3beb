"""Ways of inference over references: hand-worked cases, and one answer whatever computes the views."""

import math
from typing import get_args

import pytest
import torch
from torch import Tensor, nn

import anchored
from anchored.method.anchoring import AnchoredModel
from anchored.method.references import Way, combine, infer, nearest_reference, settled, spread, temperature
from anchored.models import registry as networks


def images(count: int = 6, seed: int = 0) -> Tensor:
    return torch.randn(count, 3, 12, 12, generator=torch.Generator().manual_seed(seed))


def anchored_model(references: int = 5) -> AnchoredModel:
    """A network whose answers differ by reference."""
    network = networks.build_network("small", channels=3, classes=5, seed=1)
    model = anchored.anchor(network, fresh_stem=True).eval()
    model.set_references(images(references, seed=9))
    return model


def stacked(model: AnchoredModel, shown: Tensor) -> Tensor:
    """Logits (K,B,N), computed by the model itself with one reference at a time."""
    assert model.references is not None
    references, views = model.references, []
    for reference in references:
        model.set_references(reference[None])
        views.append(model(shown))
    model.set_references(references)
    return torch.stack(views)


# Two references, one image, two classes: logits (0, ln 3), (ln 3, ln 3), whose logistic functions are (½, ¾), (¾, ¾).
TWO = torch.tensor([[[0.0, math.log(3)]], [[math.log(3), math.log(3)]]])


def test_by_hand_single_mean_and_mean_of_probabilities() -> None:
    single = combine(TWO, "single")
    torch.testing.assert_close(single.probabilities, torch.tensor([[0.25, 0.75]]))
    assert single.spread.tolist() == [[0.0, 0.0]]
    assert single.used.tolist() == [1]
    mean = combine(TWO, "mean")
    torch.testing.assert_close(mean.logits, torch.tensor([[math.log(3) / 2, math.log(3)]]))
    torch.testing.assert_close(mean.spread, torch.tensor([[0.25 / math.sqrt(2), 0.0]]))
    assert mean.used.tolist() == [2]
    mixed = combine(TWO, "mean_probabilities")
    torch.testing.assert_close(mixed.probabilities, torch.tensor([[0.375, 0.625]]))
    torch.testing.assert_close(mixed.logits, mixed.probabilities.log())


def test_by_hand_the_published_temperatures() -> None:
    c = 0.125 / math.sqrt(2)  # mean over classes of the spread
    mean = torch.tensor([[math.log(3) / 2, math.log(3)]])
    torch.testing.assert_close(combine(TWO, "calibrated").logits, mean / (1 + math.exp(c)))
    torch.testing.assert_close(combine(TWO, "calibrated", form="imagenet").logits, mean / c)
    alike = torch.stack([TWO[0], TWO[0]])
    torch.testing.assert_close(temperature(alike), torch.tensor([2.0]))
    assert temperature(alike, "imagenet").tolist() == pytest.approx([1e-6])
    with pytest.raises(anchored.UserError, match="two or more"):
        combine(TWO[:1], "calibrated")


def test_by_hand_the_sequential_test() -> None:
    # Margins of one rival, 3 and 5: mean 4, variance 2. After 2 of 4 references the standard error is √(2 (½ − ¼)) =
    # √½, and Student's t with one degree of freedom is tan(π (p − ½)): 1 at 0.75, 6.31 at 0.95.
    logits = torch.tensor([[[3.0, 0.0]], [[5.0, 0.0]]])
    assert settled(logits, 4, 0.75).tolist() == [True]
    assert 4 < math.tan(math.pi * 0.45) * math.sqrt(0.5) < 4.5
    assert settled(logits, 4, 0.95).tolist() == [False]
    assert settled(logits, 2, 0.95).tolist() == [True]  # nothing is left to draw
    assert settled(torch.zeros(2, 1, 2), 4, 0.75).tolist() == [False]  # a tie is not settled


def test_by_hand_adaptive_stops_where_all_that_is_left_cannot_matter() -> None:
    sure, torn = [9.0, 0.0], [[1.0, 0.0], [0.0, 1.0], [2.0, 0.0], [0.0, 1.0]]
    logits = torch.tensor([[sure, each] for each in torn])  # (4,2,2): one image all agree on, one they do not
    answer = combine(logits, "adaptive")
    assert answer.used.tolist() == [2, 4]
    torch.testing.assert_close(answer.logits, torch.tensor([[9.0, 0.0], [0.75, 0.5]]))
    assert combine(logits, "adaptive", least=3).used.tolist() == [3, 4]
    assert combine(logits[:1], "adaptive").used.tolist() == [1, 1]  # one reference is all there is


@pytest.mark.parametrize("way", ["single", "mean", "mean_probabilities", "calibrated", "adaptive"])
def test_no_images_give_no_answers(way: Way) -> None:
    assert combine(torch.zeros(3, 0, 2), way).logits.shape == (0, 2)


def test_mean_is_the_models_own_answer_to_the_last_bit() -> None:
    model = anchored_model()
    assert torch.equal(infer(model, images()).logits, model(images()))
    zero = anchored.anchor(networks.build_network("small", channels=3, classes=5, seed=1)).eval()
    assert torch.equal(infer(zero, images()).logits, zero(images()))


@pytest.mark.parametrize("way", [way for way in get_args(Way) if way != "nearest"])
def test_one_answer_from_the_model_its_folded_form_and_its_logits(way: Way) -> None:
    model, shown = anchored_model(), images(40)
    from_logits = combine(stacked(model, shown), way)
    for other in (infer(model, shown, way), infer(anchored.fold(model), shown, way)):
        torch.testing.assert_close(other.logits, from_logits.logits, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(other.spread, from_logits.spread, rtol=1e-3, atol=1e-6)
        torch.testing.assert_close(other.probabilities, other.logits.softmax(dim=1))
        assert torch.equal(other.used, from_logits.used)


def test_adaptive_is_of_each_image_alone_and_skips_passes() -> None:
    model, shown = anchored_model(8), images(30)
    folded = anchored.fold(model)
    together = infer(folded, shown, "adaptive", confidence=0.9)
    assert 2 <= together.used.min() < together.used.max() <= 8
    for place in (0, 7, 29):
        alone = infer(folded, shown[place : place + 1], "adaptive", confidence=0.9)
        assert alone.used.item() == together.used[place].item()
        torch.testing.assert_close(alone.logits[0], together.logits[place], rtol=1e-4, atol=1e-5)
    seen: list[int] = []
    model.network.register_forward_pre_hook(lambda _, inputs: seen.append(len(inputs[0])))
    answer = infer(model, shown, "adaptive", confidence=0.9)
    assert sum(seen) == int(answer.used.sum())


def test_nearest_by_hand_in_input_and_feature_space() -> None:
    points, references = torch.tensor([[0.0, 1.0], [4.0, 0.0]]), torch.tensor([[3.0, 0.0], [0.0, 0.0], [0.0, 2.0]])
    assert nearest_reference(points, references).tolist() == [1, 0]  # the first of two as near
    model, shown = anchored_model(), images()
    assert model.references is not None
    place = nearest_reference(shown.flatten(1), model.references.flatten(1))
    answer = infer(model, shown, "nearest")
    from_logits = combine(stacked(model, shown), "nearest", nearest=place)
    torch.testing.assert_close(answer.logits, from_logits.logits, rtol=1e-4, atol=1e-5)
    assert answer.used.tolist() == [1] * 6
    own = infer(model, model.references, "nearest")  # a reference is nearest to itself
    torch.testing.assert_close(own.logits, stacked(model, model.references).diagonal().T, rtol=1e-4, atol=1e-5)

    def brightness(pairs: Tensor) -> Tensor:
        return pairs.chunk(2, dim=1)[1].mean(dim=(2, 3))

    assert infer(model, shown, "nearest", features=brightness).used.tolist() == [2] * 6


def test_other_shapes_have_references_too() -> None:
    model = anchored.anchor(nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3)), fresh_stem=True).eval()
    points = torch.randn(7, 4, generator=torch.Generator().manual_seed(1))
    answer = infer(model, points, "adaptive", references=points[:4])
    assert answer.logits.shape == (7, 3)
    torch.testing.assert_close(infer(model, points, references=points).spread, spread(stacked_linear(model, points)))


def stacked_linear(model: AnchoredModel, points: Tensor) -> Tensor:
    return torch.stack([infer(model, points, "single", references=each[None]).logits for each in points])


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: infer(anchored_model().train(), images()), "call eval"),
        (lambda: infer(nn.Linear(2, 2).eval(), torch.zeros(1, 2)), "anchored model"),
        (lambda: infer(anchored_model(), images(), "median"), "'median'"),  # type: ignore[arg-type]
        (lambda: infer(anchored_model(), torch.zeros(1, 3, 8, 8)), "one size"),
        (lambda: infer(anchored.fold(anchored_model()), images(), "nearest"), "nearest"),
        (lambda: infer(anchored.fold(anchored_model()), images(), references=images()), "fold it with others"),
        (lambda: infer(anchored_model(), images(), "adaptive", least=1), "at least 2"),
        (lambda: infer(anchored_model(), images(), "adaptive", confidence=1.0), "confidence 1.0"),
        (lambda: infer(anchored_model(), images(), "calibrated", form="svhn"), "'svhn'"),  # type: ignore[arg-type]
        (lambda: combine(torch.zeros(2, 3)), "K,B,N"),
        (lambda: combine(TWO, "nearest"), "give nearest"),
    ],
)
def test_refusals(call: object, words: str) -> None:
    assert callable(call)
    with pytest.raises(anchored.UserError, match=words):
        call()
