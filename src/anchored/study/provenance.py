"""How results are made: versions, revision, machine, command."""

from __future__ import annotations

import contextlib
import os
import platform
import subprocess
import sys
from importlib import metadata
from pathlib import Path

PACKAGES = ("anchored", "torch", "torchvision", "pytorch-lightning", "numpy", "scipy")


def provenance() -> dict[str, str]:
    """The command, versions of packages, git revision and machine of this process."""
    return {
        "command": " ".join(["anchored", *sys.argv[1:]]),
        **{name: metadata.version(name) for name in PACKAGES},
        "python": platform.python_version(),
        "revision": git_revision(Path(__file__).parent),
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
    }


def git_revision(folder: Path) -> str:
    """Git revision of the source tree that runs, and whether it has changes; "" for an installed package."""

    def git(*words: str) -> str:
        command = ["git", "--no-optional-locks", "-C", str(folder), *words]  # a kill would leave its lock
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    with contextlib.suppress(OSError, subprocess.CalledProcessError):
        git("ls-files", "--error-unmatch", Path(__file__).name)
        changes = " with changes" if git("status", "--porcelain", "-uno") else ""
        return git("rev-parse", "--short=12", "HEAD") + changes
    return ""
