"""What a study needs before it starts: missing data and how to get it, disk and memory, and the time it will take."""

import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from anchored.config.recipe import Recipe
from anchored.config.settings import Data
from anchored.data import datasets
from anchored.data.catalog import registry as catalog
from anchored.data.catalog.row import File
from anchored.data.inventory import format_bytes, total_size
from anchored.data.readers import verify
from anchored.data.readers.files import data_root, missing_entries
from anchored.data.user_data.index import find_user_data
from anchored.errors import UserError
from anchored.evaluation import evaluator, suites
from anchored.store.layout import StudyFolder
from anchored.study.cost import Cost, corrupting, costs, count, duration
from anchored.study.provenance import provenance
from anchored.study.study import prepare, sets_used
from anchored.training.machine import lacking


@dataclass(frozen=True)
class Need:
    """One data set that a recipe uses: what it is for, what of it is missing, and the files that would bring that."""

    name: str
    use: str
    missing: tuple[str, ...] = ()
    files: tuple[File, ...] = ()
    remedy: str = ""  # what to do by hand, or what is wrong with own images


def needs(recipe: Recipe, root: Path | None = None) -> list[Need]:
    """Every set that a recipe uses, once, with what of it is missing."""
    settings = recipe.evaluate
    uses: list[tuple[str, str, tuple[str, ...]]] = [(name, use, ()) for name, use in sets_used(recipe)]
    if settings.corruption_source == "archive":
        archives: dict[str, list[str]] = {}
        for kind in evaluator.corruptions_of(settings, datasets.input_format(recipe.data)):
            archives.setdefault(evaluator.archive_of(recipe.data.train, kind), []).append(kind)
        uses += [(name, "corruption", tuple(kinds)) for name, kinds in archives.items()]
    by_name: dict[str, Need] = {}
    for name, use, kinds in uses:
        need = _need(name, use, kinds, root)
        by_name[name] = replace(need, use=f"{by_name[name].use}, {use}") if name in by_name else need
    return list(by_name.values())


def _need(name: str, use: str, kinds: Sequence[str], root: Path | None) -> Need:
    if catalog.is_user_data(name):
        try:
            row = datasets.dataset_row(name, Data())
            for index in find_user_data(name, Data.test_share).splits.values():
                verify.check_images(row, index, every=False)
        except UserError as error:
            return Need(name, use, (name,), remedy=str(error))
        return Need(name, use)
    row = catalog.get_dataset(name)
    ending = ".npy" if row.reader == "corrupted_blocks" else ""
    missing = missing_entries(row, root, [f"{row.images}/{kind}{ending}".lstrip("/") for kind in kinds])
    if not missing:
        return Need(name, use)
    tops = {entry.split("/")[0] for entry in missing}
    bringing = [file for file in row.parts if tops & {*file.makes, *file.holds}]
    files = bringing or [file for file in row.downloads if file.name in missing]
    return Need(name, use, missing, tuple(files), row.manual)


@dataclass(frozen=True)
class Diagnosis:
    """What ``anchored doctor`` reports of a recipe on this machine."""

    recipe: Recipe
    needs: list[Need]
    costs: list[Cost]
    corrupting: float  # seconds of one evaluation
    root: Path | None = None
    results: Path = Path()
    problem: str = ""  # what the study itself would refuse to begin with
    command: str = ""  # that runs the study

    @property
    def ready(self) -> bool:
        """Whether the study could start now."""
        return not any(need.missing for need in self.needs) and not list(self.shortages()) and not self.problem

    @property
    def seconds(self) -> float:
        """Estimated time of the whole study on this machine, one training at a time."""
        return sum(cost.trainings * (cost.training + cost.evaluation + self.corrupting) for cost in self.costs)

    @property
    def files(self) -> list[File]:
        """The files to download, each once: sets can share one."""
        return list({(file.name, file.hash): file for need in self.needs for file in need.files}.values())

    @property
    def unpacked(self) -> int:
        """Bytes that the downloads take on disk, as far as they are published; what is unpacked counts twice."""
        return sum((file.bytes or 0) * (2 if file.makes or file.compressed else 1) for file in self.files)

    @property
    def results_size(self) -> int:
        """Bytes of results."""
        return sum(cost.trainings * cost.outputs for cost in self.costs)

    @property
    def memory(self) -> int:
        """Bytes of main memory: this process at its largest, and the sets that are kept decoded."""
        if not self.costs:
            return _largest()
        seen, settings = datasets.input_format(self.recipe.data), self.recipe.data
        asked = self.recipe.evaluate
        names = {settings.train, *asked.ood, *asked.shifted, *asked.adaptation}
        images = sum(count(self.recipe, name, split) for name in names for split in ("train", "test"))
        return _largest() + round(min(settings.memory * 1e9, images * seen.channels * seen.size**2))

    def shortages(self) -> Iterator[str]:
        """Yield one line for each of accelerator, disk, device memory and main memory that is missing or too small."""
        yield from dict.fromkeys(filter(None, (lacking(cell.train) for cell in self.recipe.cells())))
        place = _existing(data_root(self.root))
        results = (self.results_size, _existing(self.results), "results")
        for needed, folder, what in ((self.unpacked, place, "data"), results):
            free = shutil.disk_usage(folder).free
            if needed > free:
                yield f"{what} need {format_bytes(needed)} in {folder}, where {format_bytes(free)} are free"
        for cost in self.costs:
            if not cost.fits:
                step = f"a step of {cost.batch} images of {cost.network}, {cost.protocol},"
                yield f"{step} runs out of the device's memory ({cost.measured} do not): lower train.batch_size"
        available = _available()
        if available and self.memory > available:
            needs = f"{format_bytes(self.memory)} of memory are needed"
            yield f"{needs}, {format_bytes(available)} are free: lower data.memory"

    def show(self, console: Console) -> None:
        """Print the tables and the verdict."""
        console.print(Group(self._data(), "", self._time(), "", self._room(), "", self._verdict()), highlight=False)

    def _data(self) -> Table:
        table = _table("data set", "for", ">download", "")
        for need in self.needs:
            state = Text("missing", "red") if need.missing else Text("here", "green")
            download = total_size(need.files) if need.files else "by hand" if need.missing else "–"
            table.add_row(need.name, need.use, download, state)
        return table

    def _time(self) -> Table:
        table = _table("network", "protocol", ">runs", ">step", ">training", ">evaluation", ">together")
        for cost in self.costs:
            seconds = f"{1000 * cost.step:.0f} ms" if cost.step < 10 else duration(cost.step)
            step = seconds + "*" * (cost.measured < cost.batch)
            evaluation = cost.evaluation + self.corrupting
            together = cost.trainings * (cost.training + evaluation)
            row = (step, duration(cost.training), duration(evaluation), duration(together))
            table.add_row(cost.network, cost.protocol, str(cost.trainings), *row)
        trainings = sum(cost.trainings for cost in self.costs)
        table.add_row("all", "", str(trainings), "", "", "", duration(self.seconds), style="bold")
        smaller = min((cost.measured for cost in self.costs if cost.measured < cost.batch), default=0)
        table.caption = "one training at a time on this machine, without reading images, probes and intervals" + (
            f"; * measured at {smaller} or more images, not the whole batch" if smaller else ""
        )
        table.caption_justify = "left"
        return table

    def _room(self) -> Table:
        table = _table("what", ">needed", "here")
        place, results = _existing(data_root(self.root)), _existing(self.results)
        table.add_row("download", total_size(self.files) if self.files else "–", f"to {data_root(self.root)}")
        free = [format_bytes(shutil.disk_usage(folder).free) for folder in (place, results)]
        table.add_row("disk for data", format_bytes(self.unpacked), f"{free[0]} free in {place}")
        table.add_row("disk for results", format_bytes(self.results_size), f"{free[1]} free in {results.resolve()}")
        available = _available()
        memory = f"{format_bytes(available)} free" if available else "not known"
        table.add_row("memory", format_bytes(self.memory), memory)
        versions = provenance()
        table.add_row("device", "", _devices())
        names = ("anchored", "torch", "torchvision", "pytorch-lightning", "python")
        table.add_row("versions", "", ", ".join(f"{name} {versions[name]}" for name in names))
        return table

    def _verdict(self) -> Text:
        lines = list(self.shortages())
        if fetched := [need.name for need in self.needs if need.files]:
            lines.append(f"run: anchored data fetch {' '.join(fetched)}")
        lines += [f"{need.name}: {need.remedy}" for need in self.needs if need.missing and need.remedy]
        lines += [self.problem] * bool(self.problem)
        if self.ready:
            return Text(f"ready: {self.command}" if self.command else "ready", "bold green")
        return Text("not ready\n" + "\n".join(f"- {line}" for line in lines), "bold red")


def examine(
    recipe: Recipe,
    results: Path | None = None,
    root: Path | None = None,
    progress: Callable[[str], None] = lambda what: None,
    command: str = "",
) -> Diagnosis:
    """Check a recipe as its study would, and time its networks on this machine, in about a minute at most.

    ``results``: folder that the study would have, by default runs/NAME; ``command``: that would run it. Raises
    ``UserError`` for unknown networks, sets or corruptions.
    """
    results, recipe = results or Path("runs") / recipe.name, suites.with_groups_expanded(recipe)
    suites.check_networks(recipe)
    data_sets = needs(recipe, root)
    if any(need.missing for need in data_sets if catalog.is_user_data(need.name)):
        return Diagnosis(recipe, data_sets, [], 0.0, root, results)  # without own images, their size is not known
    whole = not any(need.missing for need in data_sets)
    problem = _problem(recipe, results, root) if whole else ""
    measured = costs(recipe, progress), corrupting(recipe)
    return Diagnosis(recipe, data_sets, *measured, root, results, problem, command)


def _problem(recipe: Recipe, results: Path, root: Path | None) -> str:
    """Return why a study would refuse to begin, or nothing: the checks are the study's own."""
    try:
        prepare(recipe, StudyFolder(results), root)
    except UserError as error:
        return str(error)
    return ""


def _table(*headings: str) -> Table:
    table = Table(box=None, pad_edge=False)
    for heading in headings:
        left = not heading.startswith(">")
        names = heading in ("network", "data set")  # to be typed as they are: never cut or broken
        table.add_column(heading.lstrip(">"), justify="left" if left else "right", overflow="fold", no_wrap=names)
    return table


def _existing(folder: Path) -> Path:
    return next(parent for parent in (folder.absolute(), *folder.absolute().parents) if parent.exists())


def _available() -> int | None:
    """Return the bytes of main memory that a new process can have; None where the system does not say."""
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError):
        return None


def _largest() -> int:
    try:
        import resource
    except ImportError:  # Windows
        return 0
    import sys

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _devices() -> str:
    threads = torch.get_num_threads()
    cores = f"{os.cpu_count()} cores, {threads} thread{'s' * (threads != 1)}"
    if not torch.cuda.is_available():
        return f"{cores}; no GPU found"
    gpus = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
    return f"{cores}; " + ", ".join(f"{gpu.name} ({format_bytes(gpu.total_memory)})" for gpu in gpus)
