"""Which revision of the code runs: of a source tree, or of the tree that an installed package was built from."""

import contextlib
import re
import subprocess
from functools import lru_cache
from importlib import metadata
from pathlib import Path

HERE = Path(__file__).parent


def revision() -> str:
    """Git revision of the code that runs, and whether it has changes; "" of a release: its version is its tag."""
    return tree_revision(HERE) or built_from(metadata.version("anchored"))


def version_line() -> str:
    """``anchored VERSION``, with the revision of a source tree: what its version told was so when it was installed."""
    version, tree = metadata.version("anchored"), tree_revision(HERE)
    return f"anchored {version.partition('+')[0]} (revision {tree})" if tree else f"anchored {version}"


def built_from(version: str) -> str:
    """The revision in the version of a package built between releases: ``0.1.1.dev3+g1a2b3c4d.d20261127``."""
    found = re.search(r"\+g([0-9a-f]{7,40})(\.d\d{8})?$", version)
    return f"{found[1]}{' with changes' if found[2] else ''}" if found else ""


@lru_cache(maxsize=1)
def tree_revision(folder: Path) -> str:
    """Git revision of the source tree that a folder is in, and whether it has changes; "" for an installed package."""

    def git(*words: str) -> str:
        command = ["git", "--no-optional-locks", "-C", str(folder), *words]  # a kill would leave its lock
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    with contextlib.suppress(OSError, subprocess.CalledProcessError):
        git("ls-files", "--error-unmatch", Path(__file__).name)
        changes = " with changes" if git("status", "--porcelain", "-uno") else ""
        return git("rev-parse", "--short=12", "HEAD") + changes
    return ""
