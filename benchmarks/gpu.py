"""All that is claimed of a GPU, measured on one: a table, and JSON with versions. Needs only the package.

    python benchmarks/gpu.py [--out gpu.json] [--sections step,sweep] [--turns 9]
    python benchmarks/gpu.py --device cpu --tiny     every line at a size that says nothing, to see that it runs

Every line is guarded: what runs out of memory, or fails, is noted in its place and the others go on. The file is
written after each line, whole; the same command goes on where it stopped, and tries again what failed. Ratios are of
two things timed in turn in one process (A B B A ...), by CUDA events: the median, with the least and the greatest turn.
On one H100 all of it is meant to take under half an hour, compiling included; that was not measured.
"""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import gpu_evaluation
import gpu_training
import torch
from runner import Section, options, show

SECTIONS = {
    "peaks": Section(
        "what the card can do: TFLOP/s of matrix products and convolutions, GB/s of copies", gpu_training.peak_lines
    ),
    "step": Section(
        "a training step, anchored ÷ standard; share of the matrix peak; memory in GB (10⁹ bytes)",
        gpu_training.step_lines,
    ),
    "loop": Section("training with augmentation on the device ÷ bare steps; images a second", gpu_training.loop_lines),
    "waits": Section(
        "how often the host waits for the device in a step, as torch.cuda.set_sync_debug_mode says",
        gpu_training.wait_lines,
    ),
    "corruptions": Section(
        "images a second, waits a batch, and how far from the CPU's", gpu_evaluation.corruption_lines
    ),
    "sweep": Section(
        "19 corruptions × 5 severities: the part that is not the network's; aim 0.05", gpu_evaluation.sweep_lines
    ),
    "folded": Section("inference, folded ÷ standard; K references ÷ K passes", gpu_evaluation.folded_lines),
    "metrics": Section("greatest difference between the device's value and the CPU's", gpu_evaluation.metric_lines),
    "sharing": Section("two trainings on one card: steps a second of both ÷ one alone", gpu_training.sharing_lines),
}


def card(device: torch.device) -> dict[str, Any]:
    """What figures are bound to beside the package: card, driver, versions, settings of torch."""
    told: dict[str, Any] = {"cuda": torch.version.cuda or "", "card": "", "driver": ""}
    if device.type == "cuda":
        found = torch.cuda.get_device_properties(device)
        told |= {"card": f"{found.name}, {found.total_memory / 2**30:.0f} GiB", "driver": _driver()}
        told["cudnn"] = torch.backends.cudnn.version()  # type: ignore[no-untyped-call]
    told["tf32"] = f"convolutions {torch.backends.cudnn.allow_tf32}, matrices {torch.backends.cuda.matmul.allow_tf32}"
    return told


def _driver() -> str:
    try:
        asked = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        return subprocess.run(asked, capture_output=True, text=True, check=True, timeout=30).stdout.split("\n")[0]
    except (OSError, subprocess.SubprocessError):
        return "not known"


def main(words: list[str] | None = None) -> int:
    """Measure, print, write; 1 where a line failed."""
    chosen = options(words, __doc__, SECTIONS, "cuda", turns=9, out="gpu.json")
    return show(chosen, SECTIONS, card(chosen.device))


if __name__ == "__main__":
    sys.exit(main())
