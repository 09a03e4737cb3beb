"""The forms in which users give images (folder, CSV, npz, Hugging Face), each listed by one function."""

from collections.abc import Callable
from dataclasses import replace

from anchored.data.decoding import IMAGE_ENDINGS, error_text
from anchored.data.user_data.folders import list_csv, list_folder
from anchored.data.user_data.hugging_face import list_hugging_face
from anchored.data.user_data.listing import Listing, class_title, settle_splits
from anchored.data.user_data.npz import list_npz
from anchored.errors import UserError


def list_user_data(name: str) -> Listing:
    """Return every image of a user's data set, in whichever form, with its class and split.

    Labels are titles of classes ("" where none is stated), splits "train", "test" or "". UserError, one line, where it
    cannot be used. Nothing is decoded or unpickled, and no code of a data set is run.
    """
    list_form: Callable[[str], Listing] = list_folder
    if name.startswith("hf:"):
        list_form = list_hugging_face
    elif name.lower().endswith((".csv", ".npz")):
        list_form = list_csv if name.lower().endswith(".csv") else list_npz
    try:
        listing = settle_splits(list_form(name))
    except OSError as error:
        raise UserError(f"cannot read {error.filename or name}: {error_text(error).lower()}") from error
    if not listing.names:
        raise UserError(f"{name} holds no images ({', '.join(IMAGE_ENDINGS)})")
    places = listing.stated_at or [listing.source.where(key) for key in listing.names]
    return replace(listing, labels=[class_title(*pair) for pair in zip(listing.labels, places, strict=True)])
