"""As ``fuzz.py``, with bytes that libFuzzer draws towards branches that were not reached yet.

    pip install atheris; python scripts/fuzz_guided.py [--cases 10000] [--seed 1] [--only NAME ...]

Atheris's wheels are for Linux alone, so it is not among the dependencies. Every kind of file has a process of its own,
which ends at its first finding; its last words are shown.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from pathlib import Path

import atheris
import torch  # what is imported before is not followed: a traced torch is slow
import torchvision  # noqa: F401

with atheris.instrument_imports(include=["anchored", "tarfile", "zipfile"], enable_loader_override=False):
    from fuzz import LIMIT, attempt
    from fuzz_targets import TARGETS, Target

    from anchored.study.progress import quiet


def guided(target: Target, cases: int, seed: int) -> str:
    """What is found in so many cases of a target, or nothing."""
    with tempfile.TemporaryDirectory() as place:
        folder, corpus, words = Path(place) / "files", Path(place) / "corpus", Path(place) / "words"
        folder.mkdir()
        corpus.mkdir()
        path = target.make(folder)
        (corpus / "whole").write_bytes(path.read_bytes())
        child = os.fork()
        if child == 0:
            for stream in (1, 2):
                os.dup2(os.open(words, os.O_WRONLY | os.O_CREAT | os.O_APPEND), stream)
            options = [f"-atheris_runs={cases}", f"-seed={seed}", f"-timeout={LIMIT:.0f}", f"-artifact_prefix={place}/"]
            atheris.Setup(["fuzz", *options, str(corpus)], lambda content: attempt(target, folder, path, content, 0))
            atheris.Fuzz()
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        return words.read_text(errors="replace")[-1500:] if status else ""


def main() -> None:
    """Fuzz the targets that are bytes, or some, and list what is found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=10_000, help="in all, over the targets by their shares")
    parser.add_argument("--seed", type=int, default=1, help="of the drawn bytes")
    parser.add_argument("--only", nargs="*", default=[], help="names of targets")
    options = parser.parse_args()
    torch.set_num_threads(1)
    quiet()
    wanted = [target for target in TARGETS if target.kind == "bytes" and target.name != "arguments"]
    chosen = [target for target in wanted if not options.only or target.name in options.only]
    shares, failures = sum(target.share for target in chosen), 0
    for target in chosen:
        many = max(1, round(options.cases * target.share / shares))
        said = guided(target, many, options.seed)
        failures += bool(said)
        print(f"{target.name}: {many} cases {said}".rstrip(), flush=True)
    print(f"{options.cases} cases of {len(chosen)} kinds of files: {failures} with findings")
    sys.exit(failures > 0)


if __name__ == "__main__":
    main()
