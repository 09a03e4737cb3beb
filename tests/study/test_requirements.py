"""anchored doctor: what is missing, how much there is to download, how long it takes; measured on a toy recipe."""

import io
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from fixtures.catalog_copies import cifar_c, dtd, write
from PIL import Image
from rich.console import Console
from torch import Tensor, nn

from anchored.cli.main import main
from anchored.config.recipe import Recipe
from anchored.config.settings import Data, Evaluation, Grid, PerNetwork, References, Training, Validation
from anchored.data.catalog import registry as catalog
from anchored.data.catalog.registry import CATALOG
from anchored.errors import UserError
from anchored.study import cost as forecast
from anchored.study import requirements
from anchored.study.cost import Cost


def recipe(ood: Sequence[str] = (), **changes: object) -> Recipe:
    """Seven known classes of Fashion-MNIST's mini set, the small network, two seeds."""
    whole = Recipe(
        name="toy",
        data=Data(train="fashion-mini-known", fraction=0.1),
        grid=Grid(networks=("small",), protocols=("standard", "anchored", "ram"), alphas=(0.1, 0.2), seeds=(0, 1)),
        train=Training(epochs=3, batch_size=64),
        evaluate=Evaluation(ood=tuple(ood)),
    )
    return replace(whole, **changes)  # type: ignore[arg-type]


@pytest.fixture(autouse=True)
def quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forecast, "SECONDS", 2.0)


def test_what_a_knob_is_chosen_on_counts_too() -> None:
    settings = Evaluation(ood=("digits",), corruptions=("brightness",), severities=(1, 5))
    data = Data(train="fashion-mini-known", fraction=0.1, validation=0.2)
    chosen = Validation(ood=("jigsaw", "textures"), corruptions=("lines", "ripple"))
    plain = recipe(evaluate=settings, data=data, validate=chosen)
    choosing = replace(plain, choose="alpha")
    # 140 held-out images: clean, under two corruptions at two severities, as a jigsaw; a tenth of 1,000 textures
    images = [forecast._evaluated(each, 64)[0] for each in (plain, choosing)]
    assert images[1] - images[0] == 140 * (1 + 4 + 1) + 100
    needs = [{need.name: need.use for need in requirements.needs(each)} for each in (plain, choosing)]
    assert "textures" not in needs[0]
    assert needs[1]["textures"] == "choosing alpha"


def test_costs_are_those_of_the_grid() -> None:
    wanted = recipe(
        ["digits"],
        evaluate=Evaluation(ood=("digits",), corruptions=("brightness",), severities=(1, 5), adaptation=("digits",)),
    )
    found = forecast.costs(wanted)
    assert [(cost.protocol, cost.trainings) for cost in found] == [("standard", 2), ("anchored", 2), ("ram", 4)]
    standard, anchored, ram = found
    assert ram.step == anchored.step  # the same work: measured once
    for cost in found:
        assert cost.steps == 3 * (700 // 64)
        # test images clean and under two severities, digits as foreign, digits' two splits to adapt to; a tenth of each
        assert cost.images == 140 * 3 + 200 + 200 + 200
        assert 2 <= cost.measured <= cost.batch == 64
        assert 0 < cost.step < 10
        assert 0 < cost.passes < 1
        assert cost.training == cost.step * cost.steps
    weights = 4 * 77_936  # of the small network with one input channel and seven classes, within a tenth
    outputs = 4 * (1020 * 7 + (140 + 400) * 64)
    assert standard.outputs == pytest.approx(weights + outputs, rel=0.1)


def test_a_method_is_measured_with_all_that_its_step_shows() -> None:
    methods = ("plain", "augmix", "outlier_exposure", "sam", "label_smoothing")
    grid = Grid(networks=("small",), protocols=("standard",), seeds=(0,), methods=methods)
    plain, augmix, exposed, sharp, smooth = forecast.costs(recipe(grid=grid))
    assert [each.batch for each in (plain, augmix, exposed)] == [64, 3 * 64, 2 * 64]
    assert (sharp.step, sharp.batch) == (2 * plain.step, 64)  # two passes of the same images
    assert smooth.step == plain.step


def test_more_work_takes_longer() -> None:
    once = requirements.examine(recipe())
    assert once.ready
    double = replace(once, costs=[replace(cost, trainings=2 * cost.trainings) for cost in once.costs])
    assert double.seconds == pytest.approx(2 * once.seconds)
    assert requirements.Diagnosis(recipe(), [], once.costs, 100.0).seconds == pytest.approx(once.seconds + 8 * 100.0)
    assert forecast.corrupting(recipe()) == 0
    severe = [Evaluation(corruptions=("contrast",), severities=tuple(range(1, n + 1))) for n in (1, 5)]
    assert all(forecast.corrupting(recipe(evaluate=settings)) > 0 for settings in severe)


def test_each_set_is_named_once_with_what_brings_it(tmp_path: Path) -> None:
    wanted = recipe(evaluate=Evaluation(ood=("digits", "dtd-textures", "isun"), adaptation=("dtd", "digits")))
    found = {need.name: need for need in requirements.needs(wanted, tmp_path)}
    assert list(found) == ["fashion-mini-known", "digits", "dtd-textures", "isun", "dtd"]
    assert found["digits"].use == "out-of-distribution, adaptation"
    assert found["digits"].missing == ()
    assert found["dtd"].missing == ("dtd/images", "dtd/labels")
    whole = requirements.Diagnosis(wanted, list(found.values()), [], 0.0, tmp_path)
    assert [file.name for file in whole.files] == ["dtd-r1.0.1.tar.gz", "iSUN.tar.gz"]  # DTD's archive once
    assert whole.unpacked == 2 * 625_239_812
    learning = replace(wanted, train=replace(wanted.train, outliers="lsun-r"))
    held = replace(learning, evaluate=replace(learning.evaluate, held_out="cifar10"))
    uses = {need.name: need.use for need in requirements.needs(held, tmp_path) if need.missing}
    assert uses["lsun-r"] == "outliers to learn from"
    assert uses["cifar10"] == "decisions"
    dtd(tmp_path)
    assert [need.name for need in requirements.needs(wanted, tmp_path) if need.missing] == ["isun"]


def test_archives_of_corrupted_images_are_asked_for_only_where_they_are_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(CATALOG, "imagenet", replace(CATALOG["imagenet"], size=32))
    kinds = ("fog", "frost", "contrast", "caustic_refraction")
    settings = Evaluation(corruptions=kinds, corruption_source="archive")
    wanted = recipe(data=Data(train="imagenet", size=224), evaluate=settings)
    found = {need.name: need for need in requirements.needs(wanted, tmp_path)}
    assert list(found) == ["imagenet", "imagenet-c", "imagenet-c-bar"]
    assert "log in at image-net.org" in found["imagenet"].remedy
    assert [file.name for file in found["imagenet-c"].files] == ["weather.tar", "digital.tar"]
    write(tmp_path / "imagenet-c/weather.tar", b"")
    found = {need.name: need for need in requirements.needs(wanted, tmp_path)}
    assert found["imagenet-c"].missing == ("contrast",)
    generated = replace(wanted, evaluate=replace(settings, corruption_source="generated"))
    assert [need.name for need in requirements.needs(generated, tmp_path)] == ["imagenet"]
    cifar_c(tmp_path, "cifar10-c", packed=True)
    small = recipe(data=Data(train="cifar10"), evaluate=Evaluation(corruptions=("fog",), corruption_source="archive"))
    assert [need.name for need in requirements.needs(small, tmp_path) if need.missing] == ["cifar10"]


def test_own_images_that_are_not_there_are_a_line(tmp_path: Path) -> None:
    found = requirements.examine(recipe(data=Data(train=str(tmp_path / "photos"))), root=tmp_path)
    assert not found.ready
    assert "photos" in found.needs[0].remedy
    assert found.costs == []


def test_too_little_room_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = requirements.examine(recipe(), tmp_path / "runs", tmp_path)
    assert list(found.shortages()) == []
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage._replace(free=1000))
    monkeypatch.setattr(requirements, "_available", lambda: 5_000_000)
    disk, memory = found.shortages()
    assert disk.startswith("results need ")
    assert disk.endswith("where 1 kB are free")
    assert "5 MB are free: lower data.memory" in memory
    assert not found.ready


@pytest.mark.parametrize(
    ("settings", "said"),
    [({"accelerator": "cuda"}, "accelerator is cuda"), ({"precision": "16-mixed"}, "needs a GPU")],
)
def test_what_the_machine_lacks_is_said(
    settings: dict[str, Any], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    wanted = recipe(train=Training(epochs=1, batch_size=64, **settings))
    diagnosis = requirements.Diagnosis(wanted, [], [], 0.0, tmp_path, tmp_path)
    assert [said in line for line in diagnosis.shortages()] == [True]
    assert not diagnosis.ready


def test_a_step_that_does_not_fit_on_the_device_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = forecast._step

    def step(model: nn.Module, inputs: Tensor, *rest: Any) -> None:
        if len(inputs) > 8:
            raise torch.cuda.OutOfMemoryError
        whole(model, inputs, *rest)

    monkeypatch.setattr(forecast, "_step", step)
    monkeypatch.setattr(forecast, "SECONDS", 60.0)  # enough to come to a step of 32
    found = requirements.examine(recipe(grid=Grid(networks=("small",), protocols=("standard",))))
    assert list(found.shortages()) == [
        "a step of 64 images of small, standard, runs out of the device's memory (8 do not): lower train.batch_size"
    ]
    assert not found.ready


def test_unknown_names_are_refused_before_anything_is_measured() -> None:
    with pytest.raises(UserError, match="no network 'smal'"):
        requirements.examine(recipe(grid=Grid(networks=("smal",))))
    own = {"smal": PerNetwork(alphas=(0.1,))}  # settings that would never be used
    with pytest.raises(UserError, match="no network 'smal'"):
        requirements.examine(recipe(grid=Grid(networks=("small",), per_network=own)))
    with pytest.raises(UserError, match="did you mean isun"):
        requirements.examine(recipe(["isum"]))


def test_a_slow_machine_s_table_fits_a_narrow_terminal(tmp_path: Path) -> None:
    cost = Cost("resnet18_imagenet", "anchored", 3, 4096, 2, 4890.4, 93_600, 0.3, 7_300_000, 1)
    found = requirements.Diagnosis(recipe(), [], [cost], 0.0, tmp_path)
    console = Console(width=80, record=True, file=io.StringIO())
    found.show(console)
    line = next(line for line in console.export_text().splitlines() if "anchored" in line)
    assert line.split() == [
        "resnet18_imagenet", "anchored", "3", "81.5", "min*", "14.5", "years", "25.3", "days", "43.7", "years",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.004, "4 ms"),
        (40, "40 s"),
        (119, "119 s"),
        (720, "12 min"),
        (19_800, "5.5 h"),
        (276_480, "3.2 days"),
        (441_804_000, "14 years"),
    ],
)
def test_times_are_written_as_people_do(seconds: float, text: str) -> None:
    assert forecast.duration(seconds) == text


@pytest.mark.parametrize(("threads", "said"), [(1, ", 1 thread;"), (2, ", 2 threads;")])
def test_numbers_of_threads_are_english(threads: int, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    assert said in requirements._devices()


def test_the_command_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ANCHORED_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("COLUMNS", "200")
    assert main(["doctor", "demo", "--scale", "0.1", "--evaluate.corruptions", "[contrast]"]) == 0
    printed = capsys.readouterr().out
    assert "ready: anchored study demo --scale 0.1 --evaluate.corruptions '[contrast]'" in printed
    for part in ("fashion-mini-known", "standard", "anchored", "ram", "memory", "torch", "cores"):
        assert part in printed
    changes = ["--evaluate.ood", "[isun, dtd-textures]", "--evaluate.adaptation", "[stanford-cars]"]
    assert main(["doctor", "demo", "--evaluate.corruptions", "[]", *changes]) == 1
    printed = capsys.readouterr().out
    assert "run: anchored data fetch isun dtd-textures stanford-cars" in printed
    assert catalog.get_dataset("stanford-cars").manual[:40] in printed
    assert list(tmp_path.iterdir()) == []  # nothing is written


def own_images(folder: Path, *, broken: int = -1) -> Path:
    """Two classes of twelve grey images; one of them may be no image."""
    for i in range(24):
        file = folder / "own" / ("cat", "dog")[i % 2] / f"{i:02d}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        if i == broken:
            file.write_bytes(b"no image")
        else:
            Image.new("L", (32, 32), 10 * i).save(file)
    return folder / "own"


OWN = "data: {train: ./own}\ngrid: {networks: [small], protocols: [ram]}\ntrain: {epochs: 1, batch_size: 8}\n"


def test_the_hint_is_the_command_that_runs_the_study(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    own_images(tmp_path)
    (tmp_path / "mine.yaml").write_text(OWN)
    assert main(["doctor", "mine.yaml", "--train.rates", "{head: 2.0}", "-o", "out"]) == 0
    assert "ready: anchored study mine.yaml --train.rates '{head: 2.0}' -o out" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("broken", "changed", "said"),
    [
        (0, [], "00.png is not"),
        (17, [], "17.png is not"),
        (-1, ["--train.batch_size", "64"], "fewer than train.batch_size 64"),
        (-1, ["-o", "taken"], "not the folder of a study"),
        (-1, ["--evaluate.score", "luck"], "evaluate.score is 'luck'"),
        (-1, ["--evaluate.ood", "[digits, digits]"], "two sets of one suite"),
    ],
)
def test_what_a_study_would_refuse_is_not_ready(
    broken: int,
    changed: list[str],
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    own_images(tmp_path, broken=broken)
    (tmp_path / "mine.yaml").write_text(OWN)
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "thesis.tex").write_text("precious")
    assert main(["doctor", "mine.yaml", *changed]) == 1
    assert said in " ".join(capsys.readouterr().out.split())
    assert main(["study", "mine.yaml", *changed]) == 2
    assert said in capsys.readouterr().err


def test_what_is_done_after_training_costs_its_passes_and_no_training() -> None:
    methods = ("temperature", "ensemble", "mc_dropout")
    grid = Grid(networks=("small",), protocols=("standard",), methods=methods, seeds=(0, 1, 2))
    recipe = Recipe(data=Data("fashion-mini-known"), grid=grid, evaluate=Evaluation(dropout_passes=7))
    plain = Cost("small", "standard", 3, 128, 128, 0.1, 600, 0.01, 1000, 1)
    trained = {("small", "standard", method): plain for method in ("", "dropout")}
    found = {cost.protocol: cost for cost in forecast._after(recipe, trained)}
    assert [(name, cost.trainings) for name, cost in found.items()] == [
        ("standard, Temperature scaling", 3), ("standard, Deep ensemble", 1), ("standard, MC dropout", 3),
    ]  # fmt: skip
    assert {cost.training for cost in found.values()} == {0.0}
    assert [cost.evaluation for cost in found.values()] == pytest.approx([0.0, 0.0, 7 * plain.evaluation])


def test_passes_over_references_are_counted_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """They are measured of what is trained, and of nothing that is done after it."""
    monkeypatch.setattr(forecast, "_measured", lambda *_: forecast._Timing(8, 0.1, 0.01, 100, 64, True))
    grid = Grid(networks=("small",), protocols=("anchored",), methods=("dropout", "mc_dropout"), seeds=(0,))
    recipe = Recipe(data=Data("fashion-mini-known"), grid=grid, train=Training(dropout=0.1))
    plain = forecast.costs(recipe)
    found = forecast.costs(replace(recipe, references=References(count=20)))
    assert [cost.protocol for cost in found] == [cost.protocol for cost in plain]
    more = [after.images > before.images for before, after in zip(plain, found, strict=True)]
    assert more == ["MC" not in cost.protocol for cost in found]
    assert {False, True} == set(more)
