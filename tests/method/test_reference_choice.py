"""Choices of references: by hand, and that a draw is balanced, without repetition and the same for a seed."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import anchored
from anchored.method.reference_choice import CHOICES, Choice, choose_references

LINE = torch.tensor([0.0, 1.0, 2.0, 3.0, 10.0])[:, None]  # mean 3.2
LABELS = torch.tensor([0, 0, 0, 1, 1])


def chosen(choice: Choice, count: int, seed: int = 0) -> list[int]:
    generator = torch.Generator().manual_seed(seed)
    return choose_references(choice, count, labels=LABELS, points=LINE, generator=generator).tolist()


def test_random_is_a_permutation_as_it_was() -> None:
    expected = torch.randperm(5, generator=torch.Generator().manual_seed(3))[:2]
    assert chosen("random", 2, seed=3) == expected.tolist()


def test_k_centre_by_hand() -> None:
    # Nearest to 3.2 is 3; then the farthest, 10; then 0 (3 away); then 1 and 2 tie at 1: the first.
    assert chosen("k_centre", 5) == [3, 4, 0, 1, 2]


def test_herding_by_hand() -> None:
    # Means: 3 is nearest to 3.2. Of (3 + x) / 2, x = 3.4 would do: 2 (it is not repeated). (3 + 2 + x) / 3: x = 4.6,
    # so 1 (3.6 away) before 10. (3 + 2 + 1 + x) / 4: x = 6.8: 10.
    assert chosen("herding", 4) == [3, 2, 1, 4]


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**31), count=st.integers(1, 30))
def test_class_balanced_takes_as_many_of_each(seed: int, count: int) -> None:
    labels = torch.tensor([2] * 20 + [5] * 10 + [9] * 10)
    generator = torch.Generator().manual_seed(seed)
    places = choose_references("class_balanced", count, labels=labels, generator=generator)
    assert len(set(places.tolist())) == count
    counts = [(labels[places] == label).sum().item() for label in (2, 5, 9)]
    assert max(counts) - min(counts) <= 1


def test_class_balanced_goes_on_where_a_class_is_empty() -> None:
    assert sorted(chosen("class_balanced", 5)) == [0, 1, 2, 3, 4]
    firsts = {chosen("class_balanced", 1, seed)[0] for seed in range(60)}
    assert firsts == {0, 1, 2, 3, 4}  # whose turn is first is drawn


@pytest.mark.parametrize("choice", CHOICES)
def test_fewer_are_the_first_ones_and_equal_images_do_not_repeat(choice: Choice) -> None:
    assert chosen(choice, 2) == chosen(choice, 4)[:2]
    same = torch.zeros(4, 3)
    places = choose_references(choice, 4, labels=LABELS[:4], points=same, generator=torch.Generator())
    assert sorted(places.tolist()) == [0, 1, 2, 3]


def test_refusals() -> None:
    generator = torch.Generator()
    with pytest.raises(anchored.UserError, match="6 references of 5 images"):
        chosen("random", 6)
    with pytest.raises(anchored.UserError, match="'nicest'"):
        chosen("nicest", 1)  # type: ignore[arg-type]
    with pytest.raises(anchored.UserError, match="goes by distances"):
        choose_references("herding", 1, labels=LABELS, generator=generator)
