"""The arguments of the command line's verbs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from anchored.config import recipe as recipes
from anchored.config import settings

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser


def recipe(parser: ArgumentParser) -> None:
    """A recipe, and every setting of it."""
    parser.add_argument("recipe", type=str, help=f"{', '.join(recipes.names())}, or the path of a .yaml file")
    parser.add_argument("-o", "--output", type=str, help="folder of the results")
    parser.add_argument(
        "--scale",
        type=float,
        default=1.0,
        help="shrink images, epochs and networks to this share, for a trial; in (0, 1]",
    )
    parser.add_class_arguments(recipes.Recipe, as_group=False)


def study(parser: ArgumentParser) -> None:
    """A recipe, and how its trainings are run."""
    at_once = "trainings at once, a process each; default 1, or as many as the Ray cluster has room for"
    parser.add_argument("--workers", type=int | None, default=None, help=at_once)
    cluster = "work on this Ray cluster: auto, or HOST:PORT; all its machines must see the folder of the results"
    parser.add_argument("--ray", type=str | None, default=None, help=cluster)
    parser.add_argument("--status", action="store_true", help="say what is done, running, failed and left, and stop")
    recipe(parser)


def evaluate(parser: ArgumentParser) -> None:
    """A run, and what is measured."""
    parser.add_argument("run", type=str, help="folder of a trained run")
    parser.add_argument("--devices", type=int, default=1, help="devices that share each pass, a process each")
    _network(parser)
    parser.add_class_arguments(settings.Evaluation, "evaluate")


def _network(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--network", type=str, default=None, help="the network again, where it is python:..., to say that you trust it"
    )


def report(parser: ArgumentParser) -> None:
    """A study."""
    parser.add_argument("folder", type=str, help="folder of a study")


def corrupt(parser: ArgumentParser) -> None:
    """Images, and what befalls them."""
    images = "a row of the catalog (its test images), a folder of images or class folders, a .csv, .npz or .npy file"
    parser.add_argument("source", type=str, help=images)
    parser.add_argument("-o", "--output", type=str, required=True, help="folder of the corrupted images")
    kinds = "names of corruptions, or c (all 19 common ones), c15 (without the four extra ones), c-bar (ten)"
    parser.add_argument("--corruptions", type=tuple[str, ...], default=("c",), help=kinds)
    parser.add_argument("--severities", type=tuple[int, ...], default=(1, 2, 3, 4, 5), help="of 1 (mild) to 5 (harsh)")
    parser.add_argument("--seed", type=int, default=0, help="with it, an image's place decides its random numbers")
    layouts = "npy: blocks, as CIFAR-10-C; folders: JPEG files, as ImageNet-C"
    parser.add_argument("--layout", type=Literal["folders", "npy"], default="folders", help=layouts)
    sizes = "pixels a side: images are resized and cropped to it first; 0 leaves them as they are"
    parser.add_argument("--size", type=int, default=0, help=sizes)


def predict(parser: ArgumentParser) -> None:
    """A run, and images."""
    parser.add_argument("run", type=str, help="folder of a trained run")
    parser.add_argument("images", type=str, nargs="+", help="image files, folders of images, patterns ('photos/*.jpg')")
    parser.add_argument("-o", "--output", type=str, default="predictions", help="folder of the CSV and the page")
    parser.add_argument("--batch_size", type=int, default=64, help="images a forward pass")


def data(parser: ArgumentParser, known: Sequence[str]) -> None:
    """What to do with which sets."""
    told = "list all sets; show what is known of some; fetch (download and verify) some; verify that some read whole"
    parser.add_argument("action", choices=known, help=told)
    parser.add_argument("names", type=str, nargs="*", help="rows of the catalog; none means all, except to fetch")
    parser.add_argument("--offline", action="store_true", help="fetch: ask no server; as ANCHORED_OFFLINE=1")
    parser.add_argument("--every", action="store_true", help="verify: decode every image, not 2,000 of each split")


def convert(parser: ArgumentParser) -> None:
    """A network, and what its weights are for."""
    parser.add_argument("network", type=str, help="name of a network, or folder (or hub:owner/name) of a standard run")
    parser.add_argument("-o", "--output", type=str, required=True, help="folder of the anchored model")
    parser.add_argument("--pretrained", action="store_true", help="take the weights that come with the name")
    parser.add_argument("--checkpoint", type=str, default="", help="take these: .safetensors of the plain network")
    parser.add_argument("--like", type=str, default="", help="data set whose images and classes the weights are for")
    parser.add_argument("--mask_probability", type=float, default=0.0, help="of a later training, in [0, 1)")
    parser.add_argument("--stem", type=str, default="", help="name of the first layer, where it is not found without")
    parser.add_argument("--channels", type=int, default=0, help="of the images, where the name does not say")
    parser.add_argument("--size", type=int, default=0, help="height and width of the images, pixels")
    parser.add_argument("--classes", type=int, default=0, help="how many logits there are")
    parser.add_argument("--mean", type=tuple[float, ...], default=(), help="per channel, of images in [0, 1]")
    parser.add_argument("--std", type=tuple[float, ...], default=(), help="per channel, of images in [0, 1]")


def export(parser: ArgumentParser) -> None:
    """A run, and what it becomes."""
    parser.add_argument("run", type=str, help="folder of a trained run or converted model, or hub:owner/name")
    parser.add_argument(
        "target", type=str, help="file (.onnx, .pt2, .safetensors), folder, or hub:owner/name to push a folder to"
    )
    parser.add_argument(
        "--input",
        type=Literal["uint8", "unit", "normalised"],
        default="uint8",
        help="what the file takes: pixels 0 to 255, floats in [0, 1], or images that the caller has normalised",
    )
    parser.add_argument("--force", action="store_true", help="replace a file that is there already")
    parser.add_argument("--public", action="store_true", help="make a new repository on the hub public")
    _network(parser)
