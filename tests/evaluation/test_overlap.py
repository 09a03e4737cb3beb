"""Outliers to train on are none that are measured, by name, file and content."""

import shutil
from pathlib import Path

import pytest
from fixtures.own_images import photographs

from anchored.config.recipe import Recipe
from anchored.config.settings import Data, Evaluation, Grid, Validation
from anchored.errors import UserError
from anchored.evaluation.holdout import check_training_outliers
from anchored.evaluation.overlap import check_outliers

DATA = Data("fashion-mini-known")


@pytest.mark.parametrize(
    ("outliers", "settings", "where"),
    [
        ("photos", Evaluation(ood=("photos",)), "photos of evaluate.ood"),
        ("fashion-mnist-novel", Evaluation(ood=("fashion-mini-novel",)), "fashion-mini-novel of evaluate.ood"),
        ("digits", Evaluation(adaptation=("digits",)), "digits of evaluate.adaptation"),
        ("digits", Evaluation(shifted=("digits",)), "digits of evaluate.shifted"),
        ("textures", Evaluation(held_out="textures"), "textures of evaluate.held_out"),
        ("fashion-mnist", Evaluation(), "fashion-mini-known of data.train"),
        ("jigsaw", Evaluation(ood=("jigsaw",)), "jigsaw of evaluate.ood"),
    ],
)
def test_what_is_measured_is_refused(outliers: str, settings: Evaluation, where: str) -> None:
    with pytest.raises(UserError, match=f"train.outliers is {outliers}, which shares images with {where}"):
        check_outliers(outliers, settings, DATA)


def test_others_pass_and_unknown_ones_are_named() -> None:
    settings = Evaluation(ood=("photos", "blobs"), adaptation=("digits",))
    for outliers in ("", "textures", "fashion-mini-novel", "jigsaw"):
        check_outliers(outliers, settings, DATA)
    with pytest.raises(UserError, match=r"train\.outliers is 'jigsw': name a row of the catalog"):
        check_outliers("jigsw", settings, DATA)


def test_own_images_are_known_again_by_content(tmp_path: Path) -> None:
    photographs(tmp_path / "one", 3)
    shutil.copytree(tmp_path / "one", tmp_path / "copy")
    with pytest.raises(UserError, match="shares images"):
        check_outliers(str(tmp_path / "one"), Evaluation(ood=(str(tmp_path / "copy"),)), DATA)


def test_what_a_knob_is_chosen_on_is_refused_too() -> None:
    made = Recipe(
        data=Data("fashion-mini-known", validation=0.1),
        grid=Grid(networks=("small",), methods=("outlier_exposure",), alphas=(0.1, 0.2)),
        evaluate=Evaluation(ood=("blobs",)), choose="alpha", validate=Validation(),
    )  # fmt: skip
    with pytest.raises(UserError, match=r"train\.outliers is jigsaw, which shares images with jigsaw of validate\.ood"):
        check_training_outliers(made)
