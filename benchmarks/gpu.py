"""All that is claimed of a GPU, measured on one: a table, and JSON with versions. Needs only the package.

    python benchmarks/gpu.py [--out gpu.json] [--sections step,sweep] [--turns 9]
    python benchmarks/gpu.py --device cpu --tiny     every line at a size that says nothing, to see that it runs

Every line is guarded: what runs out of memory, or fails, is noted in its place and the others go on. The file is
written after each line, whole; the same command goes on where it stopped, and tries again what failed. Ratios are of
two things timed in turn in one process (A B B A ...), by CUDA events: the median, with the least and the greatest turn.
On one H100 all of it is meant to take under half an hour, compiling included; that was not measured.
"""

from __future__ import annotations

import gc
import subprocess
import sys
import time
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gpu_evaluation
import gpu_training
import torch
from gpu_bench import Bench, Line
from rich.console import Console
from rich.table import Table
from timing import options_of

from anchored.errors import UserError, is_out_of_memory
from anchored.store import files
from anchored.study.progress import quiet
from anchored.study.provenance import provenance

SECTIONS = {
    "peaks": "what the card can do: TFLOP/s of matrix products and convolutions, GB/s of copies",
    "step": "a training step, anchored ÷ standard; share of the matrix peak; memory in GB (10⁹ bytes)",
    "loop": "training with augmentation on the device ÷ bare steps; images a second",
    "waits": "how often the host waits for the device in a step, as torch.cuda.set_sync_debug_mode says",
    "corruptions": "images a second, waits a batch, and how far from the CPU's",
    "sweep": "19 corruptions × 5 severities: the part that is not the network's; aim 0.05",
    "folded": "inference, folded ÷ standard; K references ÷ K passes",
    "metrics": "greatest difference between the device's value and the CPU's",
    "sharing": "two trainings on one card: steps a second of both ÷ one alone",
}
_LINES = {
    "peaks": gpu_training.peak_lines,
    "step": gpu_training.step_lines,
    "loop": gpu_training.loop_lines,
    "waits": gpu_training.wait_lines,
    "corruptions": gpu_evaluation.corruption_lines,
    "sweep": gpu_evaluation.sweep_lines,
    "folded": gpu_evaluation.folded_lines,
    "metrics": gpu_evaluation.metric_lines,
    "sharing": gpu_training.sharing_lines,
}


def made_with(device: torch.device, tiny: bool) -> dict[str, Any]:
    """What figures are bound to: card, driver, versions, revision, settings of torch."""
    told: dict[str, Any] = {name: value for name, value in provenance().items() if name != "command"}
    told |= {"device": device.type, "tiny": tiny, "cuda": torch.version.cuda or "", "card": "", "driver": ""}
    if device.type == "cuda":
        card = torch.cuda.get_device_properties(device)
        told |= {"card": f"{card.name}, {card.total_memory / 2**30:.0f} GiB", "driver": _driver()}
        told["cudnn"] = torch.backends.cudnn.version()  # type: ignore[no-untyped-call]
    told["tf32"] = f"convolutions {torch.backends.cudnn.allow_tf32}, matrices {torch.backends.cuda.matmul.allow_tf32}"
    return told


def _driver() -> str:
    try:
        asked = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        return subprocess.run(asked, capture_output=True, text=True, check=True, timeout=30).stdout.split("\n")[0]
    except (OSError, subprocess.SubprocessError):
        return "not known"


def measured(line: Line, device: torch.device) -> dict[str, Any]:
    """The figures of a line, with its seconds; or what was wrong with it."""
    began = time.perf_counter()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = line()
    except Exception as error:
        said = "out of memory" if is_out_of_memory(error) else f"{type(error).__name__}: {error}".split("\n")[0]
        found = {"error": said[:300]}
    if device.type == "cuda":
        gc.collect()
        torch.compiler.reset()
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
    return {**found, "seconds": round(time.perf_counter() - began, 2)}


def text_of(value: Any) -> str:
    """A figure as the table shows it: a median with its range, a number, or words."""
    if isinstance(value, Mapping) and "median" in value:
        return f"{value['median']:.4g} [{value['least']:.4g}, {value['greatest']:.4g}]"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def tables(lines: Mapping[str, Mapping[str, Any]]) -> list[Table]:
    """A table a section, a column a figure."""
    made = []
    for section in SECTIONS:
        own = {name.partition("/")[2]: each for name, each in lines.items() if name.startswith(f"{section}/")}
        columns = list(dict.fromkeys(key for each in own.values() for key in each))
        if own:
            table = Table("", *columns, title=f"{section}: {SECTIONS[section]}", title_justify="left")
            for name, each in own.items():
                table.add_row(name, *(text_of(each[key]) if key in each else "" for key in columns))
            made.append(table)
    return made


def opened(path: Path, made: Mapping[str, Any]) -> dict[str, Any]:
    """What the file holds of this machine and these versions; ``UserError`` where it is of others."""
    if not path.exists():
        return {"made": dict(made), "lines": {}}
    found: dict[str, Any] = files.read_json(path)
    before = found.get("made", {})
    if changed := [key for key in made if before.get(key) != made[key]]:
        raise UserError(f"{path} was measured with another {changed[0]} ({before.get(changed[0])}): give another --out")
    return found


def run(bench: Bench, sections: list[str], path: Path, console: Console) -> dict[str, Any]:
    """Measure all lines of the sections that the file does not have; the file's contents."""
    kept = opened(path, made_with(bench.device, bench.tiny))
    for section in sections:
        for name, line in _LINES[section](bench):
            key = f"{section}/{name}"
            if "error" in kept["lines"].get(key, {"error": "not measured"}):
                kept["lines"][key] = measured(line, bench.device)
                files.write_json(path, kept)
                said = ", ".join(f"{each} {text_of(value)}" for each, value in kept["lines"][key].items())
                console.print(f"{key}: {said}", markup=False, highlight=False, soft_wrap=True)
    return kept


def main(words: list[str] | None = None) -> int:
    """Measure, print, write; 1 where a line failed."""
    parser = options_of(__doc__, turns=9)
    parser.add_argument("--out", type=Path, default=Path("gpu.json"), help="file of the figures (%(default)s)")
    parser.add_argument("--sections", default=",".join(SECTIONS), help="names with commas (%(default)s)")
    parser.add_argument("--device", default="cuda", help="cuda, cuda:1, or cpu to try it (%(default)s)")
    parser.add_argument("--tiny", action="store_true", help="sizes that only show that it runs")
    chosen = parser.parse_args(words)
    sections = chosen.sections.split(",")
    if unknown := [section for section in sections if section not in SECTIONS]:
        parser.error(f"there is no section {unknown[0]}: take of {', '.join(SECTIONS)}")
    device = torch.device(chosen.device)
    if device.type == "cuda":
        if not torch.cuda.is_available():
            parser.error("torch finds no CUDA device here; --device cpu --tiny tries every line on the CPU")
        device = torch.device("cuda", device.index or 0)
        torch.cuda.set_device(device)
    quiet()
    console = Console()
    try:
        turns = min(chosen.turns, 2) if chosen.tiny else chosen.turns
        kept = run(Bench(device, chosen.tiny, turns), sections, chosen.out, console)
    except UserError as error:
        console.print(str(error), markup=False)
        return 2
    console.print(*tables(kept["lines"]), sep="\n")
    for name, value in kept["made"].items():
        console.print(f"{name}: {value}", markup=False, highlight=False)
    failed = [name for name, line in kept["lines"].items() if "error" in line]
    spent = sum(line["seconds"] for line in kept["lines"].values())
    said = f"{len(kept['lines'])} lines, {len(failed)} without figures, {spent:.0f} s: {chosen.out}"
    console.print(said, markup=False, highlight=False)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
