"""What a second process gains: one network trained by two (DDP), and two workers on a study's cells.

    python benchmarks/scaling.py [--turns 3]

Every process has one thread. Each figure is how many times as fast two are as one, both run in turn (A B A B ...); the
median over the turns is printed with the least and the greatest. Time is what the commands themselves keep: seconds of
an epoch after the first (``training.csv``), and seconds of training and evaluation of every cell (``state.json``), of
which the busier worker counts. The start of processes and the report, which are the same for any length, are not in it.
The peer is as many processes that do not know of each other: what the machine's memory and clock leave of two cores.
"""

from __future__ import annotations

import csv
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections import defaultdict
from functools import partial
from pathlib import Path

from timing import options_of, paired

FAIR = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
TRAINED = [
    "train", "demo", "--grid.protocols", "[ram]", "--grid.tail_weights", "[0]",
    "--grid.networks", "[resnet18]", "--network.width", "0.5",
    "--data.channels", "3", "--data.size", "32", "--data.fraction", "0.15", "--train.epochs", "3",
    "--train.accelerator", "cpu",
]  # fmt: skip
CELLS = [
    "study", "demo", "--grid.protocols", "[anchored]", "--grid.seeds", "[0, 1, 2, 3]", "--data.fraction", "0.3",
    "--train.epochs", "4", "--train.accelerator", "cpu", "--evaluate.severities", "[3]", "--evaluate.adaptation", "[]",
]  # fmt: skip


def begun(folder: Path, words: list[str]) -> subprocess.Popen[bytes]:
    line = [sys.executable, "-m", "anchored", *words, "-o", str(folder)]
    return subprocess.Popen(line, env=FAIR, stdout=subprocess.DEVNULL)


def ended(process: subprocess.Popen[bytes]) -> None:
    if process.wait():
        raise SystemExit(f"a command ended with exit status {process.returncode}")


def epoch(folder: Path) -> float:
    """Seconds of an epoch after the first."""
    with (folder / "training.csv").open() as file:
        return statistics.median(float(line["seconds"]) for line in list(csv.DictReader(file))[1:])


def trained(devices: int) -> float:
    """Seconds of an epoch by so many processes."""
    with tempfile.TemporaryDirectory() as place:
        ended(begun(Path(place) / "run", [*TRAINED, "--train.devices", str(devices)]))
        return epoch(Path(place) / "run")


def apart() -> float:
    """Seconds of an epoch of one process beside another one, halved: the peer."""
    with tempfile.TemporaryDirectory() as place:
        folders = [Path(place) / name for name in ("one", "two")]
        for process in [begun(folder, TRAINED) for folder in folders]:
            ended(process)
        return statistics.mean(map(epoch, folders)) / 2


def studied(workers: int) -> float:
    """Seconds that the busiest of so many workers spent on cells."""
    with tempfile.TemporaryDirectory() as place:
        ended(begun(Path(place) / "study", [*CELLS, "--workers", str(workers)]))
        spent: defaultdict[str, float] = defaultdict(float)
        for file in Path(place).glob("study/runs/*/state.json"):
            state = json.loads(file.read_text())
            spent[state["worker"]] += sum(state["seconds"].values())
        return max(spent.values())


gain = partial(paired, warm_up=0, digits=2)


def main() -> None:
    turns: int = options_of(__doc__, turns=3).parse_args().turns
    print(f"{os.cpu_count()} cores, one thread a process", flush=True)
    print("DDP by two processes, ResNet-18 (width 0.5) 32×32, batch 128 ÷ one process:", end=" ", flush=True)
    print(gain(lambda: trained(1), lambda: trained(2), turns), flush=True)
    print("two such processes apart ÷ one process:", gain(lambda: trained(1), apart, turns), flush=True)
    print("two workers on four cells of the demo ÷ one:", gain(lambda: studied(1), lambda: studied(2), turns))


if __name__ == "__main__":
    main()
