"""Detectors through the adapter: as pytorch-ood called directly on the same outputs, and a caller's own."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import pytorch_ood.detector as library
import torch
from rich.console import Console
from torch import Tensor, nn

from anchored.config.recipe import Recipe
from anchored.config.settings import Anchoring, Data, Evaluation, Grid, Training
from anchored.errors import UserError
from anchored.evaluation import suites
from anchored.evaluation.classifier import Classifier
from anchored.evaluation.detectors import MeasuredNetwork, features_of
from anchored.evaluation.evaluator import Evaluator, evaluator_of
from anchored.evaluation.inference import Outputs
from anchored.evaluation.pytorch_ood_detectors import find_detector, given_detector
from anchored.method.anchoring import anchor
from anchored.metrics.ood_scores import SCORES
from anchored.store import files
from anchored.store.layout import Run
from anchored.study import study

STD = (0.4, 0.6)
WIDTH, CLASSES = 10, 4


class Net(nn.Module):
    """Two channels of 6 × 6 to four logits, by ten features that are not negative."""

    def __init__(self, channels: int = 2) -> None:
        super().__init__()
        self.body = nn.Conv2d(channels, WIDTH, 3)
        self.head = nn.Linear(WIDTH, CLASSES)

    def features(self, images: Tensor) -> Tensor:
        """Images (B,2,6,6) to features (B,10)."""
        features: Tensor = self.body(images).relu().mean(dim=(2, 3))
        return features

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.head(self.features(images))
        return logits


@pytest.fixture(scope="module")
def net() -> Net:
    """One that says each class now and then: its head is of four directions about the features' mean."""
    torch.manual_seed(0)
    made = Net().eval()
    with torch.no_grad():
        mean = made.features(images(200, 0)).mean(0)
        made.head.weight.mul_(20)
        made.head.bias.copy_(-made.head.weight @ mean)
    return made


def images(count: int, seed: int) -> Tensor:
    return torch.randn(count, 2, 6, 6, generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def outputs(net: Net, inputs: Tensor) -> Outputs:
    """What a pass keeps; the labels are what the network says."""
    features = net.features(inputs)
    logits = net.head(features)
    return Outputs(logits, logits.argmax(1), features)


def measured(model: nn.Module, test: Outputs) -> MeasuredNetwork:
    return MeasuredNetwork(lambda: Classifier(model, lambda raw: raw, std=STD), test)


Direct = Callable[[Net, Outputs, Outputs], Tensor]  # network, training and test outputs -> scores


def of_logits(make: Callable[[], Any]) -> Direct:
    return lambda net, train, test: make().fit_logits(train.logits, train.labels).predict_logits(test.logits)


def of_features(make: Callable[[Net], Any]) -> Direct:
    def scores(net: Net, train: Outputs, test: Outputs) -> Tensor:
        found: Tensor = make(net).fit_features(train.features, train.labels).predict_features(test.features)
        return found

    return scores


def of_maps(make: Callable[[nn.Module], Any]) -> Direct:
    def scores(net: Net, train: Outputs, test: Outputs) -> Tensor:
        assert train.features is not None
        assert test.features is not None
        detector = make(nn.Sequential(nn.Flatten(1), net.head))
        detector.fit_feature_maps(train.features[:, :, None, None], train.labels)
        found: Tensor = detector.predict_feature_maps(test.features[:, :, None, None])
        return found

    return scores


DIRECT: dict[str, Direct] = {
    "gen": of_logits(lambda: library.GEN(None)),
    "klmatching": of_logits(lambda: library.KLMatching(None)),
    "temperaturescaling": of_logits(lambda: library.TemperatureScaling(None)),
    "mahalanobis": of_features(lambda net: library.Mahalanobis(None)),
    "rmd": of_features(lambda net: library.RMD(None)),
    "gmm": of_features(lambda net: library.GMM(None)),
    "knn": of_features(lambda net: library.KNN(None)),
    "knn:k=7,normalize=false": of_features(lambda net: library.KNN(None, k=7, normalize=False)),
    "vim": of_features(lambda net: library.ViM(None, WIDTH // 2, net.head.weight, net.head.bias)),
    "vim:d=3": of_features(lambda net: library.ViM(None, 3, net.head.weight, net.head.bias)),
    "dice": of_features(lambda net: library.DICE(None, net.head.weight, net.head.bias, 0.9)),
    "she": of_features(lambda net: library.SHE(None, net.head)),
    "nnguide": of_features(lambda net: library.NNGuide(None, net.head)),
    "fdbd": of_features(lambda net: library.fDBD(None, net.head)),
    "nci": of_features(lambda net: library.NCI(None, net.head)),
    "pnml": of_features(lambda net: library.PNML(None, net.head)),
    "lts": of_features(lambda net: library.LTS(None, net.head)),
    "react": of_maps(lambda head: library.ReAct(None, head)),
    "react:percentile=0.7": of_maps(lambda head: library.ReAct(None, head, percentile=0.7)),
    "ash": of_maps(lambda head: library.ASH(None, head)),
    "ash:variant=ash-p": of_maps(lambda head: library.ASH(None, head, variant="ash-p")),
    "scale": of_maps(lambda head: library.SCALE(None, head)),
    "vra": of_maps(lambda head: library.VRA(None, head)),
}


@pytest.mark.parametrize("name", DIRECT)
def test_from_outputs_as_called_directly(net: Net, name: str) -> None:
    train, test = outputs(net, images(300, 1)), outputs(net, images(80, 2))
    detector = find_detector(name)
    assert not detector.through_network
    ready = detector.ready(measured(net, test), train)
    found = replace(ready, rows=33).scores(test, "test")  # in blocks, which no image's score depends on
    torch.testing.assert_close(found, DIRECT[name](net, train, test).detach().double(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "direct"),
    [
        ("odin", lambda net, train: library.ODIN(net, norm_std=[*STD])),
        ("odin:eps=0.05,temperature=1", lambda net, train: library.ODIN(net, None, 0.05, 1, [*STD])),
        ("gradnorm", lambda net, train: library.GradNorm(net)),
        (
            "mahalanobisodin",
            lambda net, train: library.MahalanobisODIN(net.features, norm_std=[*STD]).fit_features(
                train.features, train.labels
            ),
        ),
    ],
)
def test_through_the_network_as_called_directly(net: Net, name: str, direct: Callable[[Net, Outputs], Any]) -> None:
    train, inputs = outputs(net, images(300, 1)), images(40, 2)
    detector = find_detector(name)
    assert detector.through_network
    ready = detector.ready(measured(net, outputs(net, inputs)), train if detector.needs_fit else None)
    expected = direct(net, train).predict(inputs.clone()).detach().double()
    torch.testing.assert_close(ready.predict(inputs), expected, rtol=1e-5, atol=1e-6)


def test_behind_an_anchored_network_stand_the_means_over_its_references(net: Net) -> None:
    model = anchor(net, example=images(2, 5)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    model.set_references(images(3, 5))  # which now matter
    inputs = images(50, 6)
    classifier = Classifier(model, lambda raw: raw, std=STD)
    logits, features = classifier(inputs, features=True)
    test = Outputs(logits, logits.argmax(1), features)
    ready = find_detector("vim").ready(measured(model, test), test)
    network: Any = model.network
    direct = library.ViM(None, WIDTH // 2, network.head.weight, network.head.bias)
    direct.fit_features(features, test.labels)
    torch.testing.assert_close(ready.scores(test, "test"), direct.predict_features(features).double())
    odin = find_detector("odin").ready(measured(model, test), None)
    expected = library.ODIN(model, norm_std=[*STD]).predict(inputs).detach().double()
    torch.testing.assert_close(odin.predict(inputs), expected)


# --- What cannot be


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("vmi", "'vmi': there are ash, dice"),
        ("energy", "energy, a score of the logits"),
        ("gram", "gram, which needs feature_layers and num_classes: make it yourself"),
        ("rankfeat", "whole feature maps"),
        ("mcd", "at random"),
        ("knn:neighbours=3", "knn:neighbours=3': there are k, normalize to give"),
        ("knn:k", "KEY=VALUE"),
        ("vim:w=1", "there are d to give"),
    ],
)
def test_a_name_that_says_nothing_is_refused(name: str, text: str) -> None:
    with pytest.raises(UserError, match=text) as error:
        find_detector(name)
    assert "\n" not in str(error.value)


def test_without_the_library_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pytorch_ood", None)
    with pytest.raises(UserError, match=r"pip install 'anchored\[ood\]'"):
        find_detector("vim")


def test_what_goes_wrong_is_one_line(net: Net) -> None:
    few, test = outputs(net, images(20, 1)), outputs(net, images(30, 2))
    with pytest.raises(UserError, match=r"'knn' cannot be fitted on 20 training images: k=50 exceeds"):
        find_detector("knn").ready(measured(net, test), few)
    other = replace(test, logits=test.logits + 1)
    with pytest.raises(UserError, match="'vim' cannot be made for this network: it needs a linear last layer"):
        find_detector("vim").ready(measured(net, other), few)
    with pytest.raises(UserError, match=r"'mahalanobis' cannot be fitted .* which these outputs lack"):
        find_detector("mahalanobis").ready(measured(net, test), replace(few, features=None))
    with pytest.raises(UserError, match=r"'odin' cannot be made for this network: .* torch module"):
        find_detector("odin").ready(MeasuredNetwork(lambda: Classifier(lambda x: x, lambda raw: raw), test), None)
    dead = replace(test, features=torch.zeros(30, WIDTH))
    with pytest.raises(UserError, match="'scale' cannot score ood-blobs: it gives nan"):
        find_detector("scale").ready(measured(net, test), None).scores(dead, "ood-blobs")


# --- A caller's own


class Nearest:
    """The distance to the nearest training image's features."""

    bank: Tensor | None = None

    def fit(self, features: Tensor, labels: Tensor) -> None:
        assert len(features) == len(labels)
        self.bank = features

    def __call__(self, features: Tensor) -> Any:
        assert self.bank is not None
        return torch.cdist(features, self.bank).min(dim=1).values.numpy()


def test_a_callers_callables_get_what_their_parameters_name(net: Net) -> None:
    train, inputs = outputs(net, images(300, 1)), images(40, 2)
    test = outputs(net, inputs)
    own, means = Nearest(), given_detector("mean", lambda images: images.mean(dim=(1, 2, 3)), "")
    nearest, both = (
        given_detector("nearest", own, ""),
        given_detector("both", lambda logits, features: logits[:, 0], ""),
    )
    assert (nearest.needs_fit, nearest.needs_features, nearest.through_network) == (True, True, False)
    assert (both.needs_fit, means.through_network, means.needs_features) == (False, True, False)
    found = nearest.ready(measured(net, test), train).scores(test, "test")
    torch.testing.assert_close(found, torch.cdist(features_of(test), features_of(train)).min(1).values.double())
    assert own.bank is None  # a copy was fitted
    assert torch.equal(both.ready(measured(net, test), None).scores(test, "test"), test.logits[:, 0].double())
    torch.testing.assert_close(
        means.ready(measured(net, test), None).predict(inputs), inputs.mean(dim=(1, 2, 3)).double()
    )


def test_an_object_of_the_librarys_is_fitted_where_it_has_no_network_of_its_own(net: Net) -> None:
    train, inputs = outputs(net, images(300, 1)), images(40, 2)
    test, bare = outputs(net, inputs), library.KNN(None, k=3)
    found = given_detector("mine", bare, "").ready(measured(net, test), train).scores(test, "test")
    with pytest.raises(Exception, match="fit"):
        bare.predict_features(test.features)  # theirs is as it was
    whole = library.KNN(net.features, k=3)
    whole.fit_features(train.features, train.labels)
    detector = given_detector("whole", whole, "")
    assert (detector.needs_fit, detector.through_network) == (False, True)
    torch.testing.assert_close(detector.ready(measured(net, test), None).predict(inputs), found, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "given", "text"),
    [
        ("energy", lambda logits: logits, "as a score of the logits"),
        ("own", lambda x: x, "takes x: name its parameters out of images, logits, features"),
        ("own", lambda: 0, "takes nothing"),
        ("own", lambda images, logits: 0, "one or the other"),
        ("own", library.KNN, "give an object that can be called"),
        ("own", 3, "give an object that can be called"),
        ("own", lambda logits: logits[:3, 0], "it gives 3 scores for 30 images"),
        ("own", lambda logits: logits[:, 0] / 0, "it gives -?inf"),
        ("own", lambda logits: {"b": logits}["a"], "cannot score test"),
    ],
)
def test_a_callable_that_fits_nothing_is_refused(net: Net, name: str, given: Any, text: str) -> None:
    test = outputs(net, images(30, 2))
    with pytest.raises(UserError, match=text):
        given_detector(name, given, "").ready(measured(net, test), None).scores(test, "test")


# --- In a study

TINY = Recipe(
    name="tiny",
    data=Data("fashion-mini-known", 0.05, validation=0.2),
    grid=Grid(networks=("small",), protocols=("ram",)),
    anchoring=Anchoring(references=2),
    train=Training(epochs=1, batch_size=32, learning_rate=0.05, schedule="one_cycle", accelerator="cpu"),
    evaluate=Evaluation(ood=("blobs", "fashion-mini-novel"), bootstrap=100),
)
DETECTORS = ("vim", "knn:k=5", "gen", "odin")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Run:
    run = Run(tmp_path_factory.mktemp("run") / "ram")
    study.train_one(TINY, run, Console(quiet=True))
    return run


def bench(run: Run, **changes: Any) -> Evaluator:
    (cell,) = TINY.cells()
    return evaluator_of(run, cell, replace(TINY.evaluate, **changes))


def test_rows_of_detectors_stand_beside_the_others_which_are_as_they_were(trained: Run) -> None:
    plain = suites.measure(bench(trained))
    kept = {path.name: path.read_bytes() for path in trained.outputs_file("test").parent.iterdir()}
    names = ("test", "held-out", "ood-blobs", "ood-fashion-mini-novel")
    assert set(kept) == {f"{name}.safetensors" for name in names}
    assert not {"detectors", "detector_images"} & set(files.read_json(trained.evaluation_file)["settings"])
    evaluator = bench(trained, detectors=DETECTORS)
    assert not suites.is_evaluated(evaluator)
    rows = suites.measure(evaluator)
    assert [row for row in rows if row.score in ("", *SCORES)] == plain
    sets = ["Blobs", "Fashion-MNIST (mini), novel classes", "mean-near", "mean-synthetic", "mean"]
    for name in DETECTORS:
        found = [row for row in rows if row.score == name]
        assert [row.dataset for row in found] == [*sets, *sets, *sets]
        assert all(row.low <= row.value <= row.high for row in found)
    assert suites.is_evaluated(bench(trained, detectors=DETECTORS))
    again = suites.measure(bench(trained))
    assert again == plain
    assert {name: (trained.outputs_file("test").parent / name).read_bytes() for name in kept} == kept


def test_they_are_fitted_on_training_images_alone(trained: Run) -> None:
    evaluator = bench(trained, detectors=("knn:k=5",))
    evaluator.save_outputs()
    training = evaluator.outputs(evaluator.training())
    shown = evaluator.images.open("fashion-mini-known", "train")
    assert len(training.labels) == len(shown) == 280  # of 350; the others are held out
    assert torch.equal(training.labels, shown.labels)
    fewer = bench(trained, detectors=("knn:k=5",), detector_images=100)
    fewer.save_outputs()
    some = fewer.outputs(fewer.training())
    places = torch.linspace(0, 279, 100, dtype=torch.float64).round().long()
    torch.testing.assert_close(some.logits, training.logits[places], rtol=1e-4, atol=1e-5)
    assert torch.equal(some.labels, training.labels[places])


def test_scores_through_the_network_are_kept(trained: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    first = bench(trained, detectors=("odin",))
    first.save_outputs()
    monkeypatch.setattr(library.ODIN, "predict", lambda *_: pytest.fail("computed again"))
    again = bench(trained, detectors=("odin",))
    again.save_outputs()
    ((name, scores),) = again.detector_scores()
    assert name == "odin"
    assert [len(each) for each in scores] == [70, 100, 30]
    assert all(each.dtype == torch.float64 for each in scores)


def test_nothing_is_imported_before_it_is_asked_for() -> None:
    code = "import sys, anchored, anchored.evaluation.suites as s; print('pytorch_ood' in sys.modules)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert found.strip() == "False"


def test_importing_it_unpickles_and_downloads_nothing(tmp_path: Path) -> None:
    code = """
import sys, torch, torchvision, scipy.stats, sklearn.neighbors
seen = []
sys.addaudithook(lambda event, _: seen.append(event) if event.startswith(("pickle", "socket", "urllib")) else None)
import pytorch_ood.detector
print(seen)
"""
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path)
    assert found.stdout.strip() == "[]"
