"""What is claimed of speed on a CPU, measured beside the peers: a table, and JSON with versions.

    python benchmarks/cpu.py [--out cpu.json] [--sections step,metrics] [--only ResNet-18] [--turns 5]
    python benchmarks/cpu.py --tiny                  every line at a size that says nothing, to see that it runs

Each line is a ratio of two things timed in turn in one process (A B B A ...), on the wall: the median, with the least
and the greatest turn; so run it on an idle machine. The file is written after each line, and the same command goes on
where it stopped. Peers that are not installed are noted in their lines, which the same command tries again:
torch-uncertainty (``pip install torch-uncertainty lightning``), and LLNL/anchoring (a checkout of
https://github.com/LLNL/anchoring, whose folder LLNL_ANCHORING names). All others come with ``anchored[dev]``.
"""

from __future__ import annotations

import sys

import cpu_evaluation
import cpu_tool
import cpu_training
from runner import Section, options, show

SECTIONS = {
    "peaks": Section("GFLOP/s of matrix products and of 3 × 3 convolutions", cpu_training.peak_lines),
    "step": Section("a training step, anchored ÷ standard; goal ≤ 1.02", cpu_training.step_lines),
    "ways": Section("a standard step, each way ÷ float32; share of the convolution peak", cpu_training.way_lines),
    "allocator": Section("a training step where freed memory is kept ÷ glibc's default", cpu_training.allocator_lines),
    "loop": Section(
        "bare forward and backward ÷ our training loop; goals ≥ 0.97 (ResNet-18), ≥ 0.9 (demo)", cpu_training.loop_lines
    ),
    "peers": Section(
        "a peer's epoch of training ÷ ours; goals ≥ 1.1 (ResNet-18), ≥ 2.5 (demo)", cpu_training.peer_lines
    ),
    "augmentation": Section(
        "augmented batches a second ÷ torchvision's PIL transforms, one core; goal ≥ 10", cpu_training.loader_lines
    ),
    "folded": Section(
        "folded ÷ standard inference, goal 1.00 ± 0.01; K references ÷ K passes, ≤ 0.97", cpu_evaluation.folded_lines
    ),
    "corruptions": Section(
        "images a second ÷ imagecorruptions-imaug, one core; goal ≥ 5", cpu_evaluation.corruption_lines
    ),
    "sweep": Section(
        "evaluation of 19 × 5: ÷ forward passes, goal ≤ 1.05; peer ÷ ours, ≥ 1.1 (ResNet-18), ≥ 2 (demo)",
        cpu_evaluation.sweep_lines,
    ),
    "metrics": Section(
        "a peer called as often ÷ ours; goals ≥ 50 (smooth ECE), ≥ 20 (AUROC), ≥ 5 (probe)", cpu_evaluation.metric_lines
    ),
    "tool": Section("seconds of commands; goals in the lines", cpu_tool.lines),
}


def main(words: list[str] | None = None) -> int:
    """Measure, print, write; 1 where a line failed."""
    chosen = options(words, __doc__, SECTIONS, "cpu", turns=5, out="cpu.json")
    return show(chosen, SECTIONS, {})


if __name__ == "__main__":
    sys.exit(main())
