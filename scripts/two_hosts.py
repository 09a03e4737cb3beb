"""A study by two hosts that share a disk, and by two processes of one: the same bytes. Linux, as root.

    python scripts/two_hosts.py [--one STUDY] [RECIPE AND SETTINGS ...]

The hosts are two network namespaces with an address each and a cable (a veth pair) between them; neither sees the
other's loopback. torchrun starts one process on each, as on two machines. ``--one``: a folder that has the study by two
processes of one host already. Exit status 1 if anything differs.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

STUDY = [
    "demo", "--scale", "0.03", "--train.epochs", "3", "--train.batch_size", "32", "--train.accelerator", "cpu",
    "--grid.protocols", "[ram]", "--grid.tail_weights", "[0.1]", "--evaluate.bootstrap", "100",
    "--evaluate.severities", "[1]", "--evaluate.corruptions", "[contrast]", "--evaluate.ood", "[digits]",
    "--evaluate.adaptation", "[]",
]  # fmt: skip
COMPARED = ("results.csv", "runs/*/weights.safetensors", "runs/*/rows.csv", "runs/*/outputs/*.safetensors")
PORT = "29777"


def ip(*words: str) -> None:
    """The command that knows networks."""
    subprocess.run(["ip", *words], check=True)


@contextlib.contextmanager
def hosts(names: tuple[str, str]) -> Iterator[tuple[str, str]]:
    """Two network namespaces with a cable between them; their addresses."""
    addresses = ("10.77.0.1", "10.77.0.2")
    for name in names:
        ip("netns", "add", name)
    try:
        ip("link", "add", "cable", "netns", names[0], "type", "veth", "peer", "name", "cable", "netns", names[1])
        for name, address in zip(names, addresses, strict=True):
            ip("-n", name, "address", "add", f"{address}/24", "dev", "cable")
            for device in ("cable", "lo"):
                ip("-n", name, "link", "set", device, "up")
        yield addresses
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "delete", name], check=False)


def started(where: list[str], torchrun: list[str], words: list[str]) -> subprocess.Popen[bytes]:
    """A study's command, where ``where`` leads to, by a torchrun of its own."""
    line = [*where, sys.executable, "-m", "torch.distributed.run", *torchrun, "-m", "anchored", "study", *words]
    return subprocess.Popen(line, env={**os.environ, "OMP_NUM_THREADS": "1"})


def finished(processes: list[subprocess.Popen[bytes]]) -> None:
    """Wait for all, which must end well."""
    if statuses := [process.wait() for process in processes if process.wait()]:
        raise SystemExit(f"a study ended with exit status {statuses[0]}")


def contents(folder: Path) -> dict[str, bytes]:
    """What is compared of a study."""
    files = [file for pattern in COMPARED for file in folder.glob(pattern)]
    return {str(file.relative_to(folder)): file.read_bytes() for file in files}


def main() -> None:
    """Both studies, and what differs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--one", type=Path, metavar="STUDY", help="a study by two processes of one host")
    options, study = parser.parse_known_args()
    study = study or STUDY
    names = (f"anchored-{os.getpid()}-a", f"anchored-{os.getpid()}-b")
    with tempfile.TemporaryDirectory() as place:
        one, two = options.one or Path(place) / "one", Path(place) / "two"
        with hosts(names) as (first, _):
            finished(
                [
                    started(
                        ["ip", "netns", "exec", name, "env", "GLOO_SOCKET_IFNAME=cable"],
                        ["--nnodes", "2", "--node-rank", str(rank), "--master-addr", first, "--master-port", PORT],
                        [*study, "-o", str(two)],
                    )
                    for rank, name in enumerate(names)
                ]
            )
        if options.one is None:
            finished([started([], ["--nproc-per-node", "2", "--master-port", PORT], [*study, "-o", str(one)])])
        expected, found = contents(one), contents(two)
        different = sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))
    print(f"two hosts and one: {len(expected)} files, {len(different)} differ {different or ''}")
    sys.exit(not expected or bool(different))


if __name__ == "__main__":
    main()
