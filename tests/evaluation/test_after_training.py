"""Temperature scaling, deep ensembles, MC dropout: by hand, and against torch's own dropout."""

import math

import pytest
import torch
from torch import Tensor, nn

from anchored.errors import UserError
from anchored.evaluation.after_training import DropoutPasses, dropout_layers, dropped, mean_prediction
from anchored.method.anchoring import anchor
from anchored.metrics import ood_scores


def logs(*values: float) -> Tensor:
    return torch.tensor([[math.log(value) for value in values]])


def test_an_ensemble_by_hand() -> None:
    """Probabilities (3/4, 1/4) and (1/2, 1/2): the mean is (5/8, 3/8). Energies −ln 4 and −ln 2: −ln √8."""
    found = mean_prediction([logs(3, 1), logs(1, 1)])
    assert found.softmax(1)[0].tolist() == pytest.approx([5 / 8, 3 / 8])
    assert ood_scores.energy(found).item() == pytest.approx(-math.log(math.sqrt(8)))
    assert found.dtype == torch.float32


def test_a_member_s_energy_does_not_change_what_the_ensemble_predicts() -> None:
    found = mean_prediction([logs(3, 1), logs(1, 1) + 10])
    assert found.softmax(1)[0].tolist() == pytest.approx([5 / 8, 3 / 8])
    assert ood_scores.energy(found).item() == pytest.approx(-math.log(math.sqrt(8)) - 5)


def test_one_prediction_is_itself_and_large_logits_do_not_overflow() -> None:
    logits = torch.tensor([[1e4, -1e4, 0.0], [1.0, 2.0, 3.0]])
    assert torch.allclose(mean_prediction([logits]), logits)
    assert torch.allclose(mean_prediction([logits] * 3), logits)


# --- MC dropout


def network(layer: nn.Module) -> nn.Sequential:
    """One image (1,2,2) to 4 ones, dropped, to 2 logits."""
    last = nn.Linear(4, 2)
    with torch.no_grad():
        last.weight.copy_(torch.tensor([[1.0, 2.0, 4.0, 8.0], [0.0, 0.0, 0.0, 0.0]]))
        last.bias.zero_()
    return nn.Sequential(nn.Flatten(), layer, last).eval()


def test_what_is_dropped_follows_from_seed_and_pass_and_not_from_the_batch() -> None:
    made, images = network(nn.Dropout(0.5)), torch.ones(6, 1, 2, 2)

    def passed(seed: int, number: int, batch: int = 6) -> Tensor:
        with dropped(made, seed, number):
            found: Tensor = torch.cat([made(part) for part in torch.split(images, batch)])[:, 0].detach()
        return found

    sums = {number: passed(0, number) for number in range(40)}
    assert all(len(set(found.tolist())) == 1 for found in sums.values())  # one mask for all images
    kept = {float(found[0]) / 2 for found in sums.values()}  # 2 = 1 / (1 − p): the sum of the kept weights
    assert kept <= set(range(16))
    assert len(kept) > 8
    assert torch.equal(passed(0, 3, batch=2), sums[3])
    assert not torch.equal(torch.stack([passed(1, number) for number in range(5)]), torch.stack([*sums.values()][:5]))
    assert made(images)[0, 0] == 15  # outside the context nothing is dropped


def test_whole_channels_are_dropped_where_the_layer_does() -> None:
    made = nn.Sequential(nn.Dropout2d(0.5)).eval()
    with dropped(made, 0, 0):
        found = made(torch.ones(3, 64, 2, 2))
    assert set(found.unique().tolist()) == {0.0, 2.0}
    assert torch.equal(found, found[:1, :, :1, :1].expand_as(found))


def test_the_mean_over_passes_is_that_of_torch_s_own_dropout() -> None:
    """An independent oracle: torch's dropout in training mode, 20,000 draws of one image."""
    made, draws = network(nn.Dropout(0.3)), 20_000
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        theirs = made.train()(torch.ones(draws, 1, 2, 2)).softmax(1)[:, 0]
    passes = 1_500
    ours = DropoutPasses(made, passes, seed=0)(torch.ones(1, 1, 2, 2))["logits"].softmax(1)[0, 0]
    error = float(theirs.std()) / math.sqrt(passes)
    assert abs(float(ours) - float(theirs.mean())) < 4 * error


def test_references_of_a_hidden_layer_have_each_pass_s_own_masks() -> None:
    torch.manual_seed(0)
    front = nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Dropout(0.5))
    plain = nn.Sequential(front, nn.Conv2d(8, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))
    images = torch.randn(5, 1, 8, 8)
    made = anchor(plain, 0.0, at="1", example=images).eval()
    for weight in made.network.parameters():  # with kept weights no reference changes an answer
        nn.init.normal_(weight)
    references = torch.randn(2, 1, 8, 8)
    made.set_references(references)
    before, logits = made(images), []
    for number in range(3):
        with torch.no_grad(), dropped(made.network, 7, number):
            logits.append(made.with_references(references)(images))  # nothing kept
    assert torch.allclose(DropoutPasses(made, 3, seed=7)(images)["logits"], mean_prediction(logits), atol=1e-6)
    assert torch.allclose(made(images), before, rtol=1e-4)


def test_logits_and_features_are_means_over_passes_also_of_an_anchored_network() -> None:
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Conv2d(1, 4, 2), nn.Flatten(), nn.Dropout(0.5), nn.Linear(4, 3))
    made = anchor(plain, 0.0, fresh_stem=False, example=torch.zeros(1, 1, 2, 2))
    made.set_references(torch.randn(2, 1, 2, 2))
    images, seen = torch.randn(5, 1, 2, 2), []
    assert list(dropout_layers(made.network)) == ["2"]
    found = DropoutPasses(made, 3, seed=7)(images)
    logits = []
    layer = made.network.get_submodule("3")
    with torch.no_grad(), dropped(made.network, 7, 0):
        hook = layer.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
        logits.append(made(images))
        hook.remove()
    for number in (1, 2):
        with torch.no_grad(), dropped(made.network, 7, number):
            logits.append(made(images))
    assert torch.allclose(found["logits"], mean_prediction(logits))
    assert found["features"].shape == (5, 4)
    one = DropoutPasses(made, 1, seed=7)(images)["features"]
    assert torch.allclose(one, torch.cat(seen).view(-1, 5, 4).mean(0), atol=1e-6)


def test_a_network_that_drops_nothing_is_refused() -> None:
    for layer in (nn.Identity(), nn.Dropout(0.0)):
        with pytest.raises(UserError, match="MC dropout needs a network that is trained with dropout"):
            DropoutPasses(network(layer), 2, seed=0)
