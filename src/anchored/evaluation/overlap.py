"""Whether two sets are of the same images, so that nothing is measured on what was trained or chosen on."""

import hashlib

from torch import Tensor

from anchored.config.settings import Data, Evaluation
from anchored.data import datasets
from anchored.data.catalog import registry as catalog
from anchored.data.synthetic_ood import OUTLIERS
from anchored.errors import UserError


def shares_images(one: str, other: str, settings: Data) -> bool:
    """Whether two sets are of the same images, by their names, files and, of own images, content."""
    if one == other or catalog.is_user_data(one) or catalog.is_user_data(other):
        return one == other or datasets.content_hash(one, settings) == datasets.content_hash(other, settings) != ""
    first, second = catalog.get_dataset(one), catalog.get_dataset(other)
    homes = [row.part_of or row.folder for row in (first, second)]
    if not homes[0] or homes[0] != homes[1] or first.reader != second.reader:
        return False
    return first.keep is None or second.keep is None or not set(first.keep).isdisjoint(second.keep)


def places_in_both(images: Tensor, others: Tensor) -> list[int]:
    """The places of the images (N,...) that are among the others (M,...) too, to the last bit."""
    known = set(map(_content, others))
    return [place for place, image in enumerate(images) if _content(image) in known]


def _content(image: Tensor) -> bytes:
    return hashlib.sha256(image.cpu().contiguous().numpy().tobytes()).digest()


def check_outliers(outliers: str, settings: Evaluation, data: Data, section: str = "evaluate") -> None:
    """Refuse ``train.outliers`` that share images, or the way they are made, with what is measured or trained on."""
    if not outliers:
        return
    known = catalog.is_user_data(outliers) or outliers in catalog.CATALOG or outliers in OUTLIERS
    if not known:
        raise UserError(
            f"train.outliers is '{outliers}': name a row of the catalog, own images, or one of {', '.join(OUTLIERS)}"
        )
    measured = [(f"{section}.ood", name) for name in settings.ood]
    measured += [(f"{section}.shifted", name) for name in settings.shifted]
    measured += [(f"{section}.adaptation", name) for name in settings.adaptation] + [("data.train", data.train)]
    measured += [(f"{section}.held_out", name) for name in filter(None, [settings.held_out])]
    for where, name in measured:
        made = {outliers, name} & set(OUTLIERS)
        if outliers == name or (not made and shares_images(outliers, name, data)):
            raise UserError(
                f"train.outliers is {outliers}, which shares images with {name} of {where}: name another set"
            )
