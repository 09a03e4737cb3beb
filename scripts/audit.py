"""Ask the Python Packaging Advisory Database, by pip-audit, about every package of requirements.lock.

    python scripts/audit.py

Exit status 1 where a version has a known vulnerability that is not among ``ACCEPTED``. Where the database cannot be
reached nothing is known; that is said, and is no failure: a gate must not depend on somebody else's server.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

LOCK = Path(__file__).parents[1] / "requirements.lock"
TOOL = "pip-audit@2.10.1"
PATIENCE = 120  # seconds
ACCEPTED: dict[str, str] = {}
"""Advisories that no version mends, and why they do not concern anchored: identifier -> reason."""


def asked() -> dict[str, Any]:
    """What pip-audit reports of the locked versions; {} where it cannot be had."""
    uv = Path(sys.executable).with_name("uv")
    words = ["--requirement", str(LOCK), "--no-deps", "--disable-pip", "--format", "json", "--progress-spinner", "off"]
    command = [str(uv), "tool", "run", TOOL, *words]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=PATIENCE)
        found: dict[str, Any] = json.loads(done.stdout)
    except (OSError, ValueError, subprocess.TimeoutExpired) as error:
        print(f"audit: pip-audit could not be asked ({type(error).__name__})")
        return {}
    return found


def judged(found: dict[str, Any], accepted: dict[str, str]) -> tuple[list[str], int, int]:
    """Vulnerabilities that are not accepted, one text each; how many packages were looked at, and how many were not."""
    packages = found.get("dependencies", [])
    looked = [each for each in packages if "vulns" in each]
    wrong = [
        f"{each['name']} {each['version']}: {vulnerability['id']}, mended in "
        f"{', '.join(vulnerability['fix_versions']) or 'no version yet'}"
        for each in looked
        for vulnerability in each["vulns"]
        if not {vulnerability["id"], *vulnerability.get("aliases", ())} & accepted.keys()
    ]
    return wrong, len(looked), len(packages) - len(looked)


def main() -> None:
    """Audit, and say what was found."""
    wrong, looked, unknown = judged(asked(), ACCEPTED)
    for text in wrong:
        print(f"audit: {text}")
    print(f"audit: {looked} packages looked at, {len(wrong)} advisories; {unknown} could not be asked about")
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
