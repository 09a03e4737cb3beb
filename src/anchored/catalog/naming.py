"""What own images are called: recipes name them by path, files and reports by something shorter."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path


def is_own(name: str) -> bool:
    """Say whether a data set's name is that of own images: a path, a .csv, a .npz, ``hf:...``, or a folder here."""
    looks = name.startswith(("hf:", ".", "~")) or "/" in name or "\\" in name
    return looks or name.lower().endswith((".csv", ".npz")) or (name != "" and Path(name).is_dir())


def own_title(name: str) -> str:
    """Return the last part of the path, without its ending: ``photos`` for ``/data/photos/`` and ``photos.csv``."""
    rest = name.removeprefix("hf:").replace("\\", "/").rstrip("/")
    last = rest.rpartition("/")[2]
    return re.sub(r"\.(csv|npz)$", "", last, flags=re.IGNORECASE) or name


def file_name(name: str) -> str:
    """Return a data set's name as part of a file's: itself, or for own images their title and a hash of the path."""
    if not is_own(name):
        return name
    plain = re.sub(r"[^A-Za-z0-9]+", "-", own_title(name)).strip("-").lower()
    return f"{plain}-{hashlib.sha256(name.encode()).hexdigest()[:8]}".lstrip("-")
