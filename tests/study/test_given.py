"""Models that were trained elsewhere, beside a study's networks and alone, by the command."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from fixtures.small_studies import MASKED

from anchored.cli.main import main
from anchored.data import datasets
from anchored.models import registry as networks
from anchored.report.reading import read_summary
from anchored.store.layout import StudyFolder
from anchored.store.rows import read_rows

QUICK = ["--evaluate.bootstrap", "100", "--evaluate.adaptation", "[]"]
TINY = ["--scale", "0.02", *MASKED, "--train.accelerator", "cpu", *QUICK]
TINY += ["--evaluate.corruptions", "[fog]", "--evaluate.severities", "[2]", "--evaluate.ood", "[blobs]"]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights of a network of the demo's kind, as a plain loop saves them."""
    file = tmp_path_factory.mktemp("theirs") / "mine.pth"
    network = networks.build_network("small", channels=1, classes=7, seed=3)
    torch.save({"epoch": 3, "model_state_dict": {f"module.{k}": v for k, v in network.state_dict().items()}}, file)
    return file


def test_a_given_model_stands_beside_trained_ones(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = tmp_path / "mine.yaml"
    recipe.write_text(
        "base: demo\ngrid:\n  protocols: [ram]\n  given:\n"
        f"    mine: {{model: small, checkpoint: {checkpoint}, like: fashion-mini-known}}\n"
    )
    study = StudyFolder(tmp_path / "study")
    command = ["study", str(recipe), *TINY, "-o", str(study.path)]
    assert main(command) == 0
    rows = read_rows(study.results_file)
    assert {(row.architecture, row.protocol, row.run) for row in rows} == {
        ("ResNet-8", "ram", "small-ram-0.25-seed0"),
        ("mine", "given", "given-mine"),
    }
    summary = read_summary(study)
    trained, given = summary.variants
    assert (trained.title, given.title) == ("RAM α=0.25", "mine")
    assert summary.base(trained) == given
    assert all(summary.difference(trained, measure) is not None for measure in summary.measures)
    page = study.report_file.read_text(encoding="utf-8")
    assert "RAM α=0.25 against mine" in page
    assert "Trained elsewhere" in page
    capsys.readouterr()
    assert main(command) == 0
    assert "2 of 2 trainings are done already" in capsys.readouterr().out
    assert main(["study", str(recipe), *TINY, "-o", str(study.path), "--status"]) == 0
    assert "mine" in capsys.readouterr().out
    network = networks.build_network("small", channels=1, classes=7, seed=4)
    torch.save(network.state_dict(), checkpoint.with_name("other.pth"))
    changed = recipe.read_text().replace("mine.pth", "other.pth")
    recipe.write_text(changed)
    assert main(command) == 2
    assert "holds another model" in capsys.readouterr().err


def test_code_that_a_recipe_names_is_not_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "program.pt2").write_bytes(b"")
    for model in ("python:made.up:factory", "program.pt2", f"{tmp_path}/program.pt2/", f"{tmp_path}/program.PT2/./"):
        recipe = tmp_path / "theirs.yaml"
        recipe.write_text(f"base: demo\ngrid: {{given: {{theirs: {{model: '{model}'}}}}}}\n")
        assert main(["study", str(recipe), "-o", str(tmp_path / "out")]) == 2
        assert "which is code" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "MODEL --test DATA"),
        (["small", "--test", "fashion-mini-known"], "what its weights are for is not known"),
        (["no-such-network", "--test", "fashion-mini-known"], "no network"),
        (["small", "--checkpoint", "CHECKPOINT", "--like", "fashion-mini-known", "--test", "no-such-set"], "catalog"),
        (["small", "--checkpoint", "CHECKPOINT", "--like", "digits", "--test", "fashion-mini-known"], "mine.pth"),
        (["small", "--checkpoint", "nowhere.pth", "--like", "digits", "--test", "digits"], "nowhere.pth"),
        (["--outputs", "nowhere"], "not a folder of outputs"),
        (["small", "--outputs", "nowhere"], "either a model or outputs"),
    ],
)
def test_what_cannot_be_measured_is_one_line_and_nothing_is_written(
    words: list[str], message: str, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [str(checkpoint) if word == "CHECKPOINT" else word for word in words]
    assert main(["evaluate", *words, "-o", str(tmp_path / "out"), *QUICK]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_a_folder_without_splits_is_measured_whole(checkpoint: Path, tmp_path: Path) -> None:
    from torchvision.transforms.v2.functional import to_pil_image

    images = datasets.load_split("fashion-mini-known", "test")
    for label, name in enumerate(images.classes):
        folder = tmp_path / "photos" / name.replace("/", " ")
        folder.mkdir(parents=True)
        for i, place in enumerate((images.labels == label).nonzero()[:3]):
            to_pil_image(images.images[int(place)]).save(folder / f"{i}.png")
    (tmp_path / "photos" / "T-shirt top").rename(tmp_path / "photos" / "T-shirt")
    classes = "[T-shirt, Trouser, Pullover, Dress, Sneaker, Bag, Ankle boot]"
    command = ["evaluate", "small", "--checkpoint", str(checkpoint), "--like", "fashion-mini-known"]
    command += ["--classes", classes, "--test", f"{tmp_path / 'photos'}/", "--evaluate.corruptions", "[]", *QUICK]
    assert main([*command, "-o", str(tmp_path / "out"), "--label", "theirs"]) == 0
    rows = read_rows(tmp_path / "out" / "results.csv")
    assert {(row.n, row.architecture, row.trained_on.endswith("photos")) for row in rows} == {(21, "theirs", True)}


def test_outputs_in_a_study_are_of_its_test_images(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    test = datasets.take_fraction(datasets.load_split("fashion-mini-known", "test"), 0.02, 10)
    folder = tmp_path / "outputs"
    folder.mkdir()
    logits = np.random.default_rng(0).normal(size=(len(test), 7))
    np.savez(folder / "test.npz", logits=logits, labels=test.labels.numpy())
    study = StudyFolder(tmp_path / "study")
    given = f"{{theirs: {{outputs: {folder}}}}}"
    assert main(["study", "demo", *TINY, "--grid.given", given, "-o", str(study.path)]) == 0
    rows = [row for row in read_rows(study.results_file) if row.protocol == "given"]
    assert {row.metric for row in rows} >= {"accuracy", "smooth_ece"}
    assert {row.trained_on for row in rows} == {rows[0].trained_on}
    assert replace(rows[0], run="").n == len(test)


def test_results_never_lie_among_the_images_that_are_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from PIL import Image

    monkeypatch.chdir(tmp_path)
    for name in ("cat", "dog"):
        Path("pics", name).mkdir(parents=True)
        Image.new("L", (8, 8)).save(f"pics/{name}/1.png")
    Path("link").symlink_to("pics")
    for command in (
        ["corrupt", "pics", "-o", "pics/c"],
        ["corrupt", "pics/", "-o", "link/c"],
        ["study", "demo", "--data.train", "pics/", "-o", "pics/st"],
        ["study", "demo", "--evaluate.ood", "[pics/]", "-o", "pics/cat/st"],
        ["train", "demo", "--grid.protocols", "[standard]", "--data.train", "pics/", "-o", "pics/run"],
    ):
        assert main(command) == 2
        assert re.search(r"is in .*pics/?, whose images are read", capsys.readouterr().err)
    assert {each.name for each in Path("pics").rglob("*")} == {"cat", "dog", "1.png"}


def test_a_run_is_not_measured_on_its_training_images_nor_with_what_it_does_not_take(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    draw = np.random.default_rng(0)
    images, labels = draw.integers(0, 256, (60, 8, 8), dtype=np.uint8), np.arange(60) % 3
    np.savez("a.npz", images=images, labels=labels)
    np.savez("b.npz", images=255 - images, labels=labels)
    train = ["train", "demo", "--data.train", "a.npz", "--grid.protocols", "[ram]", "--grid.tail_weights", "[0.0]"]
    train += ["--train.batch_size", "8", "--train.epochs", "1", "--train.accelerator", "cpu", "-o", "ram"]
    outliers = ["--train.outliers", "a.npz", "--train.outlier_weight", "1"]
    assert main([*train, *outliers]) == 2
    assert "a.npz, which shares images with a.npz of data.train" in capsys.readouterr().err
    assert not Path("ram").exists()
    assert main(train) == 0
    measure = [*QUICK, "--evaluate.corruptions", "[]", "--evaluate.ood", "[]"]
    capsys.readouterr()
    for words, said in (
        (["ram", "--test", "a.npz", "-o", "out"], "ram was trained on images of a.npz: measure it on others"),
        (
            ["ram", "--test", "b.npz", "-o", "out", "--size", "99"],
            "which has its own weights, input and classes: leave size",
        ),
        (["ram", "--checkpoint", "nosuch.pth"], "ram is a run, .* leave --checkpoint out"),
        (["ram", "-o", "elsewhere"], "ram is a run, .* leave --output out"),
    ):
        assert main(["evaluate", *words, *measure]) == 2
        assert re.search(said, capsys.readouterr().err)
    assert {each.name for each in Path().iterdir()} == {"a.npz", "b.npz", "ram"}
    assert main(["evaluate", "ram", "--test", "b.npz", "-o", "out", *measure]) == 0
    assert main(["convert", "ram", "--pretrained", "-o", "wide"]) == 2
    assert "leave pretrained out" in capsys.readouterr().err
    Path("given.yaml").write_text("base: demo\ndata: {train: b.npz}\ngrid: {networks: [], given: {m: {model: ram}}}\n")
    assert main(["doctor", "given.yaml", *measure]) == 0
