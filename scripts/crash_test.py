"""Kill a small study at random points, start it again until it is done, and compare with one that was left alone.

    python scripts/crash_test.py [--kills 50] [--seed 0] [--workers 2]

Every kill is a SIGKILL of the whole process group, at a moment drawn uniformly over the time that the study takes. The
rows, weights, references and the report's figures must come out the same, byte for byte, and nothing half-written may
be left. Exit status 1 if anything differs.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

STUDY = [
    "study", "demo", "--scale", "0.02", "--train.epochs", "3", "--train.accelerator", "cpu", "--grid.protocols",
    "[standard, ram]", "--grid.tail_weights", "[0.1]", "--evaluate.bootstrap", "100", "--evaluate.severities", "[1]",
    "--evaluate.corruptions", "[contrast, gaussian_noise]", "--evaluate.ood", "[blobs, digits]",
]  # fmt: skip
COMPARED = (
    "results.csv",
    "tables/*",
    "figures/*.png",
    "runs/*/weights.safetensors",
    "runs/*/rows.csv",
    "runs/*/cell.json",
)


def start(folder: Path, workers: int) -> subprocess.Popen[str]:
    """The study's command in a process group of its own."""
    code = "import sys; from anchored.cli import main; sys.exit(main())"
    command = [sys.executable, "-c", code, *STUDY, "-o", str(folder), "--workers", str(workers)]
    return subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, start_new_session=True
    )


def contents(folder: Path) -> dict[str, bytes]:
    """What is compared, by name."""
    files = sorted(file for pattern in COMPARED for file in folder.glob(pattern))
    return {str(file.relative_to(folder)): file.read_bytes() for file in files}


def killed_run(folder: Path, limit: float, kills: int, draw: random.Random, workers: int) -> int:
    """Start a study and kill it, until it ends by itself or has been killed ``kills`` times; how often it was."""
    for count in range(kills):
        process = start(folder, workers)
        try:
            _, said = process.communicate(timeout=draw.uniform(0, limit))
        except subprocess.TimeoutExpired:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
            continue
        if process.returncode:
            raise SystemExit(f"the study ended with exit status {process.returncode}: {said}")
        return count
    return kills


def main() -> None:
    """Kill, start again, compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50, help="kills in all")
    parser.add_argument("--seed", type=int, default=0, help="seed of the moments")
    parser.add_argument("--workers", type=int, default=1, help="processes of the study")
    options = parser.parse_args()
    draw, kills, studies, failures = random.Random(options.seed), 0, 0, 0
    with tempfile.TemporaryDirectory() as place:
        began = time.monotonic()
        alone = Path(place) / "alone"
        process = start(alone, 1)
        _, said = process.communicate()
        if process.returncode:
            raise SystemExit(said)
        whole, expected = time.monotonic() - began, contents(alone)
        print(f"left alone: {whole:.0f} s, {len(expected)} files", flush=True)
        while kills < options.kills:
            folder = Path(place) / f"killed{studies}"
            kills += killed_run(folder, whole, options.kills - kills, draw, options.workers)
            end = start(folder, options.workers)
            _, said = end.communicate()
            found = contents(folder)
            different = sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))
            unfinished = [str(file.relative_to(folder)) for file in folder.glob("runs/**/.*.part")]
            failures += bool(end.returncode or different or unfinished)
            studies += 1
            verdict = (
                "the same"
                if not (different or unfinished or end.returncode)
                else f"DIFFERS {different} {unfinished} {said}"
            )
            print(f"{kills} kills, {studies} studies finished: {verdict}", flush=True)
    print(f"{kills} kills over {studies} studies in {time.monotonic() - began:.0f} s: {failures} differ")
    sys.exit(failures > 0)


if __name__ == "__main__":
    main()
