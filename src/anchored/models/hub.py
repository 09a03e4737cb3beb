"""Model folders on the Hugging Face hub, through ``huggingface-hub``.

Only the files of a model folder are ever downloaded or uploaded, so that a repository cannot bring code.
"""

from __future__ import annotations

import contextlib
import re
import warnings
from collections.abc import Iterator
from pathlib import Path

from anchored.errors import UserError, first_line
from anchored.store.layout import Run

FILES = tuple(file.name for file in Run(Path()).model_folder_files)


def is_hub_name(source: str | Path) -> bool:
    """Whether ``source`` names a repository on the hub, ``hub:owner/name[@revision]``."""
    return str(source).startswith("hub:")


def parse_hub_name(name: str) -> tuple[str, str | None]:
    """``owner/name`` and the revision (branch, tag or commit; None where none is given)."""
    match = re.fullmatch(r"hub:([\w.-]+/[\w.-]+)(?:@([\w./-]+))?", name)
    if not match:
        raise UserError(f"'{name}' is not a place on the hub: give hub:owner/name, or hub:owner/name@revision")
    return match[1], match[2]


def local_run(source: str | Path) -> Run:
    """The folder of a model: downloaded where ``source`` is a name on the hub, else the path itself."""
    return Run(download_folder(str(source)) if is_hub_name(source) else Path(source))


def download_folder(name: str) -> Path:
    """Download a model folder, or find it in the cache; the last part of the path is the commit.

    A name without a revision takes the newest one, and a warning gives the name with the commit. Raises
    ``UserError`` where the repository or revision does not exist, is private, or cannot be reached.
    """
    from huggingface_hub import snapshot_download

    repository, revision = parse_hub_name(name)
    with _hub_errors(name):
        folder = Path(snapshot_download(repository, revision=revision, allow_patterns=list(FILES)))
    if revision is None:
        pinned = f"hub:{repository}@{folder.name}"
        warnings.warn(
            f"{name} names no revision, and may hold something else another day: this is {pinned}", stacklevel=2
        )
    return folder


def upload_folder(folder: Path, name: str, *, public: bool = False) -> str:
    """Upload a model folder to a repository, made (private unless ``public``) where there is none; the commit's name.

    The result, ``hub:owner/name@commit``, is what others load. Raises ``UserError`` where that is not allowed.
    """
    from huggingface_hub import HfApi

    repository, revision = parse_hub_name(name)
    with _hub_errors(name):
        api = HfApi()
        api.create_repo(repository, private=not public, exist_ok=True)
        commit = api.upload_folder(
            repo_id=repository,
            folder_path=folder,
            revision=revision,
            allow_patterns=list(FILES),
            commit_message="Model folder written by anchored",
        )
    return f"hub:{repository}@{commit.oid}"


@contextlib.contextmanager
def _hub_errors(name: str) -> Iterator[None]:
    """Raise the hub's errors as one-line ``UserError``s."""
    try:
        yield
    except Exception as error:  # whatever the client and the network raise, which differs between its versions
        raise UserError(
            f"{name}: {first_line(error).rstrip('.')}; is it spelt right, can the hub be reached, are you logged in "
            "(hf auth login)?"
        ) from error
