"""Lines of figures, in sections: measured one by one, kept in a JSON file as they come, and shown as tables."""

from __future__ import annotations

import gc
import time
import warnings
from argparse import Namespace
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from bench import Bench, Line
from rich.console import Console
from rich.table import Table
from timing import options_of

from anchored.errors import UserError, is_out_of_memory
from anchored.store import files
from anchored.study.progress import quiet
from anchored.study.provenance import provenance


class Section(NamedTuple):
    """What a section says, and its lines by name."""

    about: str
    lines: Callable[[Bench], Iterable[tuple[str, Line]]]


Sections = Mapping[str, Section]


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


def tables(sections: Sections, lines: Mapping[str, Mapping[str, Any]]) -> list[Table]:
    """A table a section, a column a figure."""
    made = []
    for section, (about, _) in sections.items():
        own = {name.partition("/")[2]: each for name, each in lines.items() if name.startswith(f"{section}/")}
        columns = list(dict.fromkeys(key for each in own.values() for key in each))
        if own:
            table = Table("", *columns, title=f"{section}: {about}", title_justify="left")
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


def run(
    bench: Bench, sections: Sections, made: Mapping[str, Any], path: Path, console: Console, only: str
) -> dict[str, Any]:
    """Measure the lines of the sections that the file does not have, with ``only`` in their names; its contents."""
    kept = opened(path, made)
    for section, (_, lines) in sections.items():
        for name, line in lines(bench):
            key = f"{section}/{name}"
            if only in key and "error" in kept["lines"].get(key, {"error": "not measured"}):
                kept["lines"][key] = measured(line, bench.device)
                files.write_json(path, kept)
                said = ", ".join(f"{each} {text_of(value)}" for each, value in kept["lines"][key].items())
                console.print(f"{key}: {said}", markup=False, highlight=False, soft_wrap=True)
    return kept


def options(
    words: list[str] | None, doc: str | None, sections: Sections, device: str, turns: int, out: str
) -> Namespace:
    """What was asked for: ``out``, ``sections`` (a mapping), ``only``, ``device``, ``tiny``, ``turns``."""
    parser = options_of(doc, turns=turns)
    parser.add_argument("--out", type=Path, default=Path(out), help="file of the figures (%(default)s)")
    parser.add_argument("--sections", default=",".join(sections), help="names with commas (%(default)s)")
    parser.add_argument("--only", default="", help="lines with this in their names")
    parser.add_argument("--device", default=device, help="cuda, cuda:1 or cpu (%(default)s)")
    parser.add_argument("--tiny", action="store_true", help="sizes that only show that it runs")
    chosen = parser.parse_args(words)
    if unknown := [name for name in chosen.sections.split(",") if name not in sections]:
        parser.error(f"there is no section {unknown[0]}: take of {', '.join(sections)}")
    chosen.sections = {name: sections[name] for name in chosen.sections.split(",")}
    device_of = torch.device(chosen.device)
    if device_of.type == "cuda":
        if not torch.cuda.is_available():
            parser.error("torch finds no CUDA device here; --device cpu --tiny tries every line on the CPU")
        device_of = torch.device("cuda", device_of.index or 0)
        torch.cuda.set_device(device_of)
    chosen.device = device_of
    return chosen


def show(chosen: Namespace, sections: Sections, made: Mapping[str, Any]) -> int:
    """Measure what was asked for, print and write it; 1 where a line failed, 2 where the file is of another machine."""
    quiet()
    console = Console()
    told = {name: value for name, value in provenance().items() if name != "command"}
    told |= {"device": chosen.device.type, "tiny": chosen.tiny, **made}
    turns = min(chosen.turns, 2) if chosen.tiny else chosen.turns
    try:
        kept = run(Bench(chosen.device, chosen.tiny, turns), chosen.sections, told, chosen.out, console, chosen.only)
    except UserError as error:
        console.print(str(error), markup=False)
        return 2
    console.print(*tables(sections, kept["lines"]), sep="\n")
    for name, value in kept["made"].items():
        console.print(f"{name}: {value}", markup=False, highlight=False)
    failed = [name for name, line in kept["lines"].items() if "error" in line]
    spent = sum(line["seconds"] for line in kept["lines"].values())
    said = f"{len(kept['lines'])} lines, {len(failed)} without figures, {spent:.0f} s: {chosen.out}"
    console.print(said, markup=False, highlight=False)
    return 1 if failed else 0
