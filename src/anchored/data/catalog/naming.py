"""What own images are called: recipes name them by path, files and reports by something shorter."""

from __future__ import annotations

import hashlib
import re


def is_place(name: str) -> bool:
    """Say whether a name is written as a path, a .csv, a .npz, or ``hf:...``; what is on disk does not matter."""
    looks = name.startswith(("hf:", ".", "~")) or "/" in name or "\\" in name
    return looks or name.lower().endswith((".csv", ".npz"))


def title(name: str) -> str:
    """Return the last part of the path, without its ending: ``photos`` for ``/data/photos/`` and ``photos.csv``."""
    last = name.removeprefix("hf:").replace("\\", "/").rstrip("/").rpartition("/")[2]
    return re.sub(r"\.(csv|npz)$", "", last, flags=re.IGNORECASE) or name


def slug(name: str) -> str:
    """Return the title in letters, digits and hyphens, and eight digits of a hash of the whole path."""
    plain = re.sub(r"[^A-Za-z0-9]+", "-", title(name)).strip("-").lower()
    return f"{plain}-{hashlib.sha256(name.encode()).hexdigest()[:8]}".lstrip("-")
