"""How results are made: versions, revision, machine, command."""

import contextlib
import os
import platform
import shlex
import sys
import time
from functools import lru_cache
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from anchored.errors import UserError
from anchored.store import files
from anchored.store.layout import Run
from anchored.study.revision import revision
from anchored.training.devices import find_device

PACKAGES = ("anchored", "torch", "torchvision", "pytorch-lightning", "numpy", "scipy")


def provenance() -> dict[str, str]:
    """The command, versions of packages, git revision, machine, processor, threads and device of this process."""
    device = find_device()
    return {
        "command": shlex.join(["anchored", *sys.argv[1:]]), **{name: metadata.version(name) for name in PACKAGES},
        "python": platform.python_version(), "revision": revision(),
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores", "processor": _processor(),
        "threads": str(torch.get_num_threads()),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
    }  # fmt: skip


def record(run: Run, phase: str) -> str:
    """Note in ``made.json`` how a run is trained or evaluated; what differs from how its checkpoint was made, in words.
    Each phase has a list: one entry, and one more each time that it goes on otherwise."""
    if phase == "training" and run.weights_file.exists():
        return ""
    records = _read_records(run)
    resumes = run.checkpoint_file.exists() or phase != "training"
    earlier = records.get(phase, []) if resumes else []
    here = {"started": now(), **provenance()}
    before = earlier[-1] if earlier else here
    changed = [key for key in here if key not in ("started", "command") and before.get(key) != here[key]]
    if changed or not earlier:
        files.write_json(run.made_file, {**records, phase: [*earlier, here]})
    said = ", ".join(f"{key}: {before.get(key, 'unknown')} then, {here[key]} now" for key in changed)
    return said if phase == "training" else ""


def now() -> str:
    """The date and time, with the offset from UTC."""
    return time.strftime("%Y-%m-%d %H:%M:%S %z")


def _read_records(run: Run) -> dict[str, list[dict[str, Any]]]:
    records = files.read_json(run.made_file) if run.made_file.exists() else {}
    lists = list(records.values()) if isinstance(records, dict) else [None]
    if not all(isinstance(entries, list) and all(isinstance(entry, dict) for entry in entries) for entries in lists):
        raise UserError(f"{run.made_file} does not say how a run was made: it was changed by hand, put it back")
    return dict(records)


@lru_cache(maxsize=1)
def _processor() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
