"""Several processes that work as one: the first does what was asked for, the others help it with what is heavy.

The first process alone reads the recipe's folder, holds locks, writes results and talks; what it runs does not know of
the others. Whenever it calls a *shared* function, all processes run that function, each on its part of the work. Who
starts the processes is found out by Lightning: torchrun, SLURM, or else Lightning itself, on this machine.

An error that all have (a loss that diverges), or that somebody has while nobody waits for him (an image that cannot be
read, in an evaluation), is the first one's error, and work goes on. With any other, the rest is stuck: all end, with
what was wrong as the one line.
"""

from __future__ import annotations

import contextlib
import functools
import json
import math
import os
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, ParamSpec, TypeVar

import torch
from lightning_fabric import Fabric
from lightning_fabric.plugins.environments import (
    ClusterEnvironment,
    LightningEnvironment,
    SLURMEnvironment,
    TorchElasticEnvironment,
)
from torch import Tensor, distributed

from anchored.errors import UserError, told

GRACE = 30.0
"""Seconds after an error in which the other processes may come to the same one; then they are stuck."""
POLL = 0.005
"""Seconds between two looks at whether the others are there."""
LINE = 2000
"""Bytes of an error's text that other processes get."""

GONE = "a process that shares the work was lost, for want of memory perhaps; the same command goes on"

P = ParamSpec("P")
R = TypeVar("R")
_SHARED: dict[str, tuple[Callable[..., Any], bool]] = {}  # and whether processes wait for each other in it


class Lost(UserError):
    """A process that shares the work ended, or is stuck: the others cannot go on without it."""


def environment() -> ClusterEnvironment | None:
    """Who started the processes: torchrun, or SLURM (srun); None where nobody did."""
    if TorchElasticEnvironment.detect():
        return TorchElasticEnvironment()
    if not SLURMEnvironment.detect():
        return None
    try:
        return SLURMEnvironment(auto_requeue=False)  # a job that is started again goes on by itself
    except RuntimeError as error:
        raise UserError(f"SLURM: {error}") from error


def processes(devices: int) -> int:
    """How many processes there are: as many as were started, else ``devices``, which they must not contradict."""
    if devices < 1:
        raise UserError(f"{devices} devices are asked for: at least 1")
    started = environment()
    if started is None or started.world_size() == devices:
        return devices
    if devices > 1:
        who = "torchrun" if isinstance(started, TorchElasticEnvironment) else "SLURM"
        raise UserError(
            f"{devices} devices are asked for, but {who} started {started.world_size()} processes: start one a device"
        )
    return started.world_size()


def run(work: Callable[[], R], devices: int = 1, accelerator: str = "auto") -> R | None:
    """Do ``work`` in the first of so many processes, while the others help; they have nothing to give back."""
    global _CREW
    if devices == 1:
        return work()
    _CREW = crew = Crew.gathered(devices, accelerator)
    try:
        if crew.rank > 0:
            crew.help()
            return None
        found = work()
        crew.dismiss()
        return found
    finally:
        _CREW = None
        distributed.destroy_process_group()


def shared(*, in_step: bool) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """A function that all processes run when the first calls it.

    They get its named arguments, which JSON can hold; positional ones, which must have defaults, are the first one's.
    ``in_step``: on the way its processes wait for each other, so that one with an error leaves the others stuck. The
    first one's result is given. Raises the first one's error, else ``UserError`` with another's, or ``Lost``.
    """

    def made(function: Callable[P, R]) -> Callable[P, R]:
        name = function.__qualname__
        _SHARED[name] = function, in_step

        @functools.wraps(function)
        def call(*own: P.args, **arguments: P.kwargs) -> R:
            result: R = function(*own, **arguments) if _CREW is None else _CREW.lead(name, own, arguments)
            return result

        return call

    return made


def trainer_options(devices: int, sync_batch_norm: bool) -> dict[str, Any]:
    """What Lightning's Trainer is to know of the processes; ``UserError`` where there are not as many as ``devices``.

    Batch norm's running statistics are not copied from the first process to the others before every step, as DDP would:
    training does not read them.
    """
    if _CREW is None:
        if devices > 1:
            raise UserError(
                f"train.devices is {devices}, but this is one process: use the command anchored study or train, by "
                "itself (without --workers), with torchrun or with srun"
            )
        return {"devices": 1}
    from pytorch_lightning.strategies import DDPStrategy

    assert _CREW.world == devices
    if sync_batch_norm and _CREW.device.type != "cuda":
        raise UserError("train.sync_batch_norm: torch has it for GPUs only; leave it off here")
    return {
        "devices": devices // _CREW.nodes,
        "num_nodes": _CREW.nodes,
        "strategy": DDPStrategy(broadcast_buffers=False, cluster_environment=_CREW.environment),
        "sync_batchnorm": sync_batch_norm,
        "use_distributed_sampler": False,
    }


@dataclass
class Crew:
    """The processes, from the point of view of one of them."""

    rank: int
    world: int
    nodes: int
    environment: ClusterEnvironment
    device: torch.device
    group: distributed.ProcessGroup  # for what they tell each other: on the CPU, and patient

    @staticmethod
    def gathered(devices: int, accelerator: str) -> Crew:
        """Start the other processes where nobody has, and meet them."""
        started = environment()
        local = int(os.environ.get("LOCAL_WORLD_SIZE", os.environ.get("SLURM_NTASKS_PER_NODE", devices)))
        if started is None:
            os.environ["LOCAL_WORLD_SIZE"] = str(local)  # as torchrun does: they share this machine's cores
        nodes, where = max(1, devices // local), started or LightningEnvironment()
        try:
            fabric = Fabric(accelerator=accelerator, strategy="ddp", devices=local, num_nodes=nodes, plugins=[where])
            fabric.launch()
        except (RuntimeError, ValueError) as error:  # MisconfigurationException is one: more devices than there are
            raise UserError(f"{devices} processes cannot work together: {error}") from error
        group = distributed.new_group(backend="gloo", timeout=timedelta(days=365))
        assert isinstance(group, distributed.ProcessGroup)  # all processes are in it
        return Crew(fabric.global_rank, fabric.world_size, nodes, where, fabric.device, group)

    def lead(self, name: str, own: tuple[Any, ...], arguments: dict[str, Any]) -> Any:
        """Let all run a shared function, and run it too."""
        self._told(json.dumps([name, arguments]))
        return self._together(name, own, arguments)

    def dismiss(self) -> None:
        """Tell the others that there is nothing left to do."""
        with contextlib.suppress(RuntimeError):  # all is done, whoever is gone
            self._told(json.dumps(["", {}]))
            distributed.barrier(self.group)

    def help(self) -> None:
        """Run what the first process calls, until it needs nothing any more. What is wrong, that process tells."""
        try:
            while True:
                name, arguments = json.loads(self._told(""))
                if not name:
                    break
                try:
                    self._together(name, (), arguments)
                except Lost:
                    raise
                except Exception:
                    continue  # all know of it
            distributed.barrier(self.group)
        except (Lost, RuntimeError, KeyboardInterrupt):  # the first one tells why
            os._exit(0)  # Lightning kills the first process where another ends with an error

    def _told(self, text: str) -> str:
        """What the first process says, on all of them."""
        size = torch.tensor([len(text.encode())])
        self._wait(distributed.broadcast(size, 0, group=self.group, async_op=True))
        said = torch.zeros(int(size), dtype=torch.uint8)
        if self.rank == 0:
            said.copy_(_bytes(text, int(size)))
        self._wait(distributed.broadcast(said, 0, group=self.group, async_op=True))
        return said.numpy().tobytes().decode()

    def _together(self, name: str, own: tuple[Any, ...], arguments: dict[str, Any]) -> Any:
        """Run a shared function; when all are through, its result, or an error that somebody had."""
        function, in_step = _SHARED[name]
        result, error, said = None, None, ""
        try:
            result = function(*own, **arguments)
        except Exception as found:
            error, said = found, told(found)
        everyone = [torch.zeros(LINE, dtype=torch.uint8) for _ in range(self.world)]
        try:
            gathering = distributed.all_gather(everyone, _bytes(said, LINE), group=self.group, async_op=True)
            self._wait(gathering, GRACE if error and in_step else math.inf)
        except TimeoutError:
            raise self._stuck(error, said) from error
        except RuntimeError:
            raise self._lost() from error
        if error is not None:
            raise error
        for rank, each in enumerate(everyone):
            if text := each.numpy().tobytes().rstrip(b"\0").decode(errors="ignore"):
                raise UserError(f"{self._called(rank)}: {text}")
        return result

    def _wait(self, work: distributed.Work | None, seconds: float = math.inf) -> None:
        """Wait for the others, so that Ctrl-C is heard; ``TimeoutError`` after so many seconds."""
        assert work is not None
        end = time.monotonic() + seconds
        while not work.is_completed():
            if time.monotonic() > end:
                raise TimeoutError
            time.sleep(POLL)
        work.wait()

    def _stuck(self, error: Exception | None, said: str) -> Lost:
        """This process's error, which the others do not have; the store where they met keeps the first one's."""
        if not isinstance(error, UserError):
            traceback.print_exception(error)
        line = f"{self._called(self.rank)}: {said}"
        # That this process ends; with NCCL the first one hangs until it is ended.
        first_hears = distributed.get_backend() == "gloo"
        try:
            _store().compare_set("anchored/failure", "", line)
        except RuntimeError:
            first_hears = False
        if self.rank > 0 and not first_hears:
            print(f"anchored: {line}", file=sys.stderr, flush=True)
            os._exit(2)
        return Lost(line)

    def _lost(self) -> Lost:
        """Another process has ended."""
        with contextlib.suppress(RuntimeError):  # that of the store, perhaps
            _store().wait(["anchored/failure"], timedelta(seconds=1))
            return Lost(_store().get("anchored/failure").decode())
        return Lost(GONE)

    def _called(self, rank: int) -> str:
        return f"process {rank + 1} of {self.world}"


_CREW: Crew | None = None


def _store() -> Any:
    """Where the processes met: text by name, that all can read and write."""
    return distributed.distributed_c10d._get_default_store()


def _bytes(text: str, size: int) -> Tensor:
    return torch.frombuffer(bytearray(text.encode()[:size].ljust(size, b"\0")), dtype=torch.uint8)
