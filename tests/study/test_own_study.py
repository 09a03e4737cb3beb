"""Own images, the whole way: a study of a folder, and a trained network's word on new images, as a CSV and a page."""

import csv
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from fixtures.browser import HOSTILE, Page, opened
from fixtures.own_images import class_folders, photographs
from PIL import Image

import anchored
from anchored.cli.main import main
from anchored.config.settings import Data
from anchored.data import datasets
from anchored.data.preprocessing import to_input
from anchored.data.user_data import index as own
from anchored.errors import UserError
from anchored.method.anchoring import AnchoredModel, pair
from anchored.metrics import ood_scores
from anchored.models import folder as model
from anchored.report import image_report
from anchored.report.image_report import Prediction
from anchored.store import files as disk
from anchored.store.layout import Run, StudyFolder
from anchored.store.rows import read_rows

RECIPE = """
title: My own images
data: {train: images/, test_share: 0.25}
grid: {networks: [small], protocols: [ram], alphas: [0.25]}
anchoring: {references: 3}
train: {epochs: 2, batch_size: 16, learning_rate: 0.05, schedule: one_cycle, crop_padding: 2, accelerator: cpu}
evaluate:
  ood: [odd/, digits]
  corruptions: [gaussian_noise]
  severities: [1, 5]
  adaptation: [tasks/]
  bootstrap: 100
"""


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with own images of several kinds, a finished study of them, and a standard network."""
    folder = tmp_path_factory.mktemp("home")
    class_folders(folder / "images", 40)
    photographs(folder / "odd", 20)
    class_folders(folder / "tasks", 15, first=100)
    (folder / "own.yaml").write_text(RECIPE)
    before = Path.cwd()
    os.chdir(folder)
    try:
        assert main(["study", "own.yaml", "-o", "study"]) == 0
        assert main(["train", "own.yaml", "-o", "standard", "--grid.protocols", "[standard]"]) == 0
    finally:
        os.chdir(before)
    return folder


@pytest.fixture(autouse=True)
def there(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(home)


MASKED, STANDARD = Run(Path("study/runs/small-ram-0.25-seed0")), Run(Path("standard"))


def test_a_trial_of_a_folder_has_batches_that_fit() -> None:
    words = ["--scale", "0.2", "--train.batch_size", "64", "--grid.protocols", "[standard]"]
    assert main(["train", "own.yaml", "-o", "trial", *words]) == 0
    settings = disk.read_json(Run(Path("trial")).cell_file)
    assert settings["train"]["batch_size"] == 18  # of 120 images, 90 to train on, a fifth of them
    assert settings["data"]["fraction"] == pytest.approx(0.2)


def test_the_study_measures_everything(home: Path) -> None:
    rows = read_rows(StudyFolder(Path("study")).results_file)
    assert {row.trained_on for row in rows} == {"images"}
    sets = {(row.metric, row.dataset) for row in rows}
    for wanted in (
        ("accuracy", "images"), ("accuracy", "images-C"), ("auroc", "odd"), ("auroc", "MNIST digits"),
        ("linear_probe_accuracy", "tasks"),
    ):  # fmt: skip
        assert wanted in sets
    (clean,) = [row for row in rows if (row.metric, row.dataset) == ("accuracy", "images")]
    assert clean.n == 30
    page = Path("study/report.html").read_text(encoding="utf-8")
    assert "My own images" in page
    assert "The networks see 28 × 28 pixels in grey: images of that size as they are" in page
    assert "odd" in page
    kept = model.read_config(MASKED)
    row = datasets.training_row(Data("images/", test_share=0.25))
    assert (kept.trained_on, kept.classes) == ("images/", row.classes)
    assert (kept.mean, kept.std) == (row.mean, row.std)
    assert disk.read_json(MASKED.cell_file)["data"]["content"] == own.find_user_data("images/", 0.25).content


def test_rows_can_be_had_again_from_the_files() -> None:
    run = MASKED
    network, config = anchored.load(run.path), model.read_config(run)
    files = [Path("images") / key for key in own.find_user_data("images/", 0.25).split("test").keys]
    pixels = torch.stack([torch.from_numpy(np.asarray(Image.open(file)).copy())[None] for file in files])
    with torch.no_grad():
        logits = network(to_input(pixels, config.mean, config.std))
    truth = torch.tensor([config.classes.index(file.parent.name) for file in files])
    (row,) = [row for row in read_rows(run.rows_file) if row.metric == "accuracy" and row.dataset == "images"]
    assert row.value == pytest.approx(100 * (logits.argmax(1) == truth).double().mean().item())


def test_a_changed_folder_is_another_study(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    extra = home / "images" / "Trouser" / "extra.png"
    extra.write_bytes((home / "images" / "Trouser" / "000.png").read_bytes())
    try:
        assert main(["study", "own.yaml", "-o", "study"]) == 2
        assert "holds another study (data.content: " in capsys.readouterr().err
        assert main(["evaluate", str(MASKED.path)]) == 2
        assert "are not those that this training began with" in capsys.readouterr().err
    finally:
        extra.unlink()
    odd = home / "odd" / "extra.jpg"
    odd.write_bytes((home / "odd" / "photo 0.jpg").read_bytes())
    try:  # other images to measure with: measured anew, not trained anew
        before = MASKED.weights_file.stat().st_mtime_ns
        assert main(["evaluate", str(MASKED.path)]) == 0
        (row,) = [
            row
            for row in read_rows(MASKED.rows_file)
            if (row.metric, row.dataset, row.score) == ("auroc", "odd", "energy")
        ]
        assert row.n == 30 + 21
        assert MASKED.weights_file.stat().st_mtime_ns == before
    finally:
        odd.unlink()


# --- What cannot be trained on


def test_own_sets_that_do_not_fit_are_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    for change, said in (
        (["--data.train", "odd/"], "odd/: photo 0.jpg has no class"),
        (["--data.train", "nowhere/"], "nowhere/ is not a folder"),
        (["--evaluate.adaptation", "[odd/]"], "odd/: photo 0.jpg has no class"),
        (["--evaluate.ood", "[odd/, ./odd]"], "two sets of one suite are called 'odd'"),
        (["--data.test_share", "1.5"], "data.test_share is 1.5"),
        (["--data.crop", "2"], "data.crop is 2"),
    ):
        assert main(["study", "own.yaml", "-o", "other", *change]) == 2
        captured = capsys.readouterr().err
        assert said in captured
        assert captured.count("\n") == 1
        assert not Path("other").exists()


# --- anchored predict


def predicted(*arguments: str) -> list[dict[str, str]]:
    with Path("seen/predictions.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_predictions_are_the_models(capsys: pytest.CaptureFixture[str]) -> None:
    run = MASKED
    files = ["images/Trouser/003.png", "images/T-shirt/001.png", "images/Trouser/003.png"]
    assert main(["predict", str(run.path), *files, "odd/", "-o", "seen"]) == 0
    assert "seen/gallery.html" in capsys.readouterr().out
    rows = predicted()
    assert [row["file"] for row in rows[:3]] == [*files[:2], "odd/photo 0.jpg"]
    assert len(rows) == 22
    network, config = anchored.load(run.path), model.read_config(run)
    assert isinstance(network, AnchoredModel)
    assert network.references is not None
    pixels = torch.stack([torch.from_numpy(np.asarray(Image.open(file)).copy())[None] for file in files[:2]])
    inputs = to_input(pixels, config.mean, config.std)
    with torch.no_grad():
        logits = network(inputs)
        each = torch.stack([network.network(pair(inputs, reference[None])) for reference in network.references])
    inside = ood_scores.energy(disk.load_tensors(run.outputs_file("test"))[0]["logits"])
    for i, row in enumerate(rows[:2]):
        label = int(logits[i].argmax())
        energy = -torch.logsumexp(logits[i].double(), 0).item()
        assert row["class"] == config.classes[label]
        assert float(row["confidence"]) == pytest.approx(logits[i].softmax(0)[label].item(), rel=1e-5)
        assert float(row["energy"]) == pytest.approx(energy, rel=1e-5)
        assert float(row["spread"]) == pytest.approx(each[:, i].softmax(1)[:, label].numpy().std(), abs=1e-6)
        lower = [(inside < energy + shift).double().mean().item() * 100 for shift in (-1e-5, 1e-5)]
        assert lower[0] - 1e-9 <= float(row["percentile"]) <= lower[1] + 1e-9  # sums round differently
        assert row["problem"] == ""


def test_spread_without_several_references(tmp_path: Path) -> None:
    standard = image_report.predict_images(STANDARD, ["odd"], tmp_path / "a")
    assert all(each.spread is None for each in standard.predictions)
    assert "A standard network has no references" in standard.page.read_text(encoding="utf-8")
    single = Run(tmp_path / "single")
    for file in (MASKED.model_file, MASKED.weights_file, MASKED.cell_file):
        disk.write_bytes(single.path / file.name, file.read_bytes())
    tensors, _ = disk.load_tensors(single.weights_file)
    disk.save_tensors(single.weights_file, {**tensors, "references": tensors["references"][:1]})
    disk.write_json(single.model_file, {**disk.read_json(single.model_file), "references": 1})
    made = image_report.predict_images(single, ["odd"], tmp_path / "b")
    assert all(each.spread is not None and each.spread > 0 for each in made.predictions)
    assert all(each.percentile is None for each in made.predictions)  # never evaluated
    page = made.page.read_text(encoding="utf-8")
    assert "over 8 training images as references (the model itself has one)" in page
    assert "No percentiles" in page
    single.cell_file.unlink()
    made = image_report.predict_images(single, ["odd"], tmp_path / "c")
    assert all(each.spread is None for each in made.predictions)
    assert "other training images cannot be had" in made.page.read_text(encoding="utf-8")


def test_unreadable_images_are_listed_and_the_rest_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = photographs(tmp_path / "some", 3)
    (folder / "photo 1.jpg").write_bytes(b"no image at all")
    assert main(["predict", str(STANDARD.path), str(folder / "*.jpg"), "-o", str(tmp_path / "seen")]) == 1
    assert "photo 1.jpg is not an image" in capsys.readouterr().err
    with (tmp_path / "seen" / "predictions.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [bool(row["class"]) for row in rows] == [True, False, True]
    assert "is not an image" in rows[1]["problem"]
    assert "Could not be read" in (tmp_path / "seen" / "gallery.html").read_text(encoding="utf-8")


def test_names_that_are_not_utf_8_and_what_a_kill_left(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, seen = photographs(tmp_path / "some", 2), tmp_path / "seen"
    (folder / "photo 1.jpg").rename(folder / os.fsdecode(b"\xe9.jpg"))
    assert main(["predict", str(STANDARD.path), str(folder), "-o", str(seen)]) == 0
    half = seen / f".gallery.html.abc{disk.UNFINISHED}"
    half.write_text("half")
    assert main(["predict", str(STANDARD.path), str(folder), "-o", str(seen)]) == 0
    assert not half.exists()
    capsys.readouterr()
    with (seen / "predictions.csv").open(newline="", encoding="utf-8") as file:
        names = [row["file"] for row in csv.DictReader(file)]
    assert len(names) == 2
    assert all(text.isprintable() and text.encode("utf-8") for text in names)
    odd = folder / os.fsdecode(b"\xe9.jpg")
    assert main(["predict", str(STANDARD.path), str(odd), "-o", str(tmp_path / "one")]) == 0


def test_a_carriage_return_in_a_name_splits_no_row(tmp_path: Path) -> None:
    folder, seen = photographs(tmp_path / "some", 1), tmp_path / "seen"
    (folder / "photo 0.jpg").rename(folder / "a\rb.jpg")
    assert main(["predict", str(STANDARD.path), str(folder), "-o", str(seen)]) == 0
    with (seen / "predictions.csv").open(newline="", encoding="utf-8") as file:
        assert [Path(row["file"]).name for row in csv.DictReader(file)] == ["a\rb.jpg"]


def test_predictions_of_another_run_or_of_other_images_stay(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first, second = photographs(tmp_path / "first", 2), photographs(tmp_path / "second", 2)
    seen = tmp_path / "seen"
    assert main(["predict", str(STANDARD.path), str(first), "-o", str(seen)]) == 0
    before = {file.name: file.read_bytes() for file in seen.iterdir()}
    for run, images, said in (
        (MASKED, first, f"holds predictions of {STANDARD.path.absolute()}: choose another folder with -o"),
        (STANDARD, second, "holds predictions of other images: choose another folder with -o"),
    ):
        capsys.readouterr()
        assert main(["predict", str(run.path), str(images), "-o", str(seen)]) == 2
        assert said in capsys.readouterr().err
        assert {file.name: file.read_bytes() for file in seen.iterdir()} == before
    assert main(["predict", str(STANDARD.path), str(first), "-o", str(seen)]) == 0


def test_bad_requests_are_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run, nothing = str(STANDARD.path), tmp_path / "nothing"
    nothing.mkdir()
    (tmp_path / "text.png").write_text("x")
    for arguments, said in (
        ([run, "nowhere.png"], "nowhere.png: there is no such file"),
        ([run, str(nothing)], "no images in this folder"),
        ([run, str(tmp_path / "*.gif")], "there is no such file"),
        (["nowhere", "odd"], "nowhere is not a trained run"),
        ([run, str(tmp_path / "text.png")], "none of the 1 images can be read; the first: "),
        ([run, "odd", "--batch_size", "0"], "--batch_size is 0"),
        ([run], "images"),
    ):
        assert main(["predict", *arguments, "-o", str(tmp_path / "seen")]) == 2
        captured = capsys.readouterr().err
        assert said in captured
        assert captured.count("\n") == 1
        assert not (tmp_path / "seen").exists()


def test_only_the_most_foreign_have_cards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_report, "GALLERY", 4)
    made = image_report.predict_images(STANDARD, ["odd"], tmp_path)
    highest = sorted(made.predictions, key=lambda each: -(each.energy or 0))[:4]
    page = made.page.read_text(encoding="utf-8")
    places = [page.index(f'data-file="{each.file}"') for each in highest]
    assert places == sorted(places)
    assert page.count('<li class="image"') == 4
    assert "The 4 highest scores of 20 images" in page


def test_text_is_never_a_formula_of_a_spreadsheet() -> None:
    hostile = [Prediction("=1+1.png", "+x", 0.5, -3.5, 2.0, -0.25, ""), Prediction("a.png", "cat", problem="@x")]
    lines = image_report._csv(hostile).splitlines()[1:]
    assert lines == ["'=1+1.png,'+x,0.5,-3.5,2.0,-0.25,,,,", "a.png,cat,,,,,,,,'@x"]


# --- The page in a browser


def card(number: int, file: str, label: str) -> tuple[Prediction, str]:
    prediction = Prediction(file, label, 0.5, -float(number), 99.0 - 10 * number, 0.1)
    return prediction, image_report._thumbnail(Image.new("RGB", (300, 200), (9 * number, 0, 0)))


def test_the_page_filters_offline_and_never_takes_names_for_markup(tmp_path: Path) -> None:
    cards = [card(0, HOSTILE, "cat"), card(1, "b.png", HOSTILE), card(2, "photos/c.png", "cat")]
    problems = [Prediction(HOSTILE, problem=HOSTILE)]
    text = image_report.render_gallery(HOSTILE, [HOSTILE], cards, problems, 3)
    page = Page(text)
    assert [address for address in page.loaded if not address.startswith("data:image/jpeg;base64,")] == []
    assert page.tags.count("script") == 1
    assert "<script>alert" not in text
    path = tmp_path / "gallery.html"
    path.write_text(text, encoding="utf-8")
    dom, console = opened(path, tmp_path / "profile")
    assert console == []
    assert "3 of 3 shown" in dom
    assert Page(dom).tags.count("img") == 3
    # a test's own script is not allowed to run, so the page is asked through its form's first values
    narrowed = text.replace('<input id="text" type="search"', '<input id="text" type="search" value="PHOTOS/"')
    path.write_text(narrowed, encoding="utf-8")
    dom, console = opened(path, tmp_path / "profile")
    assert console == []
    assert "1 of 3 shown" in dom
    path.write_text(text.replace('<option value="90">', '<option value="90" selected>'), encoding="utf-8")
    assert "1 of 3 shown" in opened(path, tmp_path / "profile")[0]
    path.write_text(text.replace("</main>", "<script>alert(1)</script></main>"), encoding="utf-8")
    assert any("Content Security Policy" in line for line in opened(path, tmp_path / "profile")[1])


def test_nothing_is_known_of_nothing() -> None:
    with pytest.raises(UserError, match="there is no such file"):
        image_report.find_images(["*.none"])
