"""A Ray cluster: connecting to it, and functions that run somewhere on it, seen as processes.

Ray comes with ``anchored[ray]`` and is imported only here, when it is asked for.
"""

import importlib
import logging
import os
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from anchored.errors import UserError, first_line

LOST = -9  # exit status of a task whose process or machine was lost, as of a process that was killed
RAY_SETTINGS = {
    "RAY_USAGE_STATS_ENABLED": "0",  # nobody is told what is run here
    "RAY_DEDUP_LOGS": "0",
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",  # under uv run, too, machines run what is installed there: nothing is sent
}
TASK_ENVIRONMENT = {"RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "1"}
"""Environment of what runs on the cluster: a task that asks for no GPU sees none, where Ray would show it all."""


class RayCluster:
    """A connection to the Ray cluster at ``address``, HOST:PORT or "auto": the one that this machine belongs to.

    ``cpus``, ``gpus``: cores and GPUs of each function that is started; a fraction shares a GPU. ``room``: how many
    such functions it can run at once. ``UserError`` where Ray is not installed, no cluster answers, or no machine of it
    has so many cores or GPUs.
    """

    def __init__(self, address: str, cpus: int, gpus: float) -> None:
        self.needs = {"CPU": float(cpus), "GPU": gpus}
        for name, value in RAY_SETTINGS.items():
            os.environ.setdefault(name, value)
        try:
            self.ray: Any = importlib.import_module("ray")
        except ImportError:
            raise UserError("--ray needs Ray: pip install 'anchored[ray]'") from None
        try:
            _check_reachable(address)
            there = {"env_vars": TASK_ENVIRONMENT}
            self.ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, runtime_env=there)
        except (OSError, ValueError, OverflowError, RuntimeError) as error:
            start = "start one (ray start --head), or give its address"
            raise UserError(f"--ray {address}: no Ray cluster answers: {start} ({first_line(error)})") from error
        try:
            self.room = self._room()
        except BaseException:
            self.ray.shutdown()
            raise

    def __enter__(self) -> "RayCluster":
        return self

    def __exit__(self, *_: object) -> None:
        self.ray.shutdown()

    def _room(self) -> int:
        machines = [node["Resources"] for node in self.ray.nodes() if node["Alive"]]
        room = sum(tasks_that_fit(self.needs, resources) for resources in machines)
        if not room:
            wanted = " and ".join(f"{value:g} {name}" for name, value in self.needs.items() if value)
            most = {name: max((each.get(name, 0.0) for each in machines), default=0.0) for name in self.needs}
            there = ", ".join(f"{value:g} {name}" for name, value in most.items())
            raise UserError(
                f"no machine of the Ray cluster has {wanted} for a training (the most on one: {there}): lower "
                "cluster.cpus or cluster.gpus"
            )
        return room

    def start(self, function: Callable[..., object], arguments: tuple[Any, ...]) -> "Task":
        """Run a function of an installed module on the cluster; it waits there until there is room."""
        remote = self.ray.remote(function).options(
            num_cpus=self.needs["CPU"], num_gpus=self.needs["GPU"], max_retries=0, scheduling_strategy="SPREAD"
        )
        return Task(self.ray, remote.remote(*arguments))


def _check_reachable(address: str) -> None:
    """Connect to HOST:PORT once: where nothing listens, Ray itself would try for minutes, and talk. ``OSError``. "auto"
    is what ``RAY_ADDRESS`` says, where it is set."""
    host, _, port = (os.environ.get("RAY_ADDRESS", "") if address == "auto" else address).rpartition(":")
    if port.isdecimal():
        socket.create_connection((host, int(port)), timeout=10).close()


def _error_text(cause: Exception) -> str:
    if isinstance(cause, UserError):
        return str(cause)
    if "failed to import on the worker" in str(cause):  # its traceback, as text, ends with what is missing
        missing = str(cause).strip().splitlines()[-1]
        return f"a machine lacks what is installed here ({missing}): install the same anchored there"
    return f"{type(cause).__name__}: {first_line(cause)}"


def tasks_that_fit(needs: Mapping[str, float], resources: Mapping[str, float]) -> int:
    """How many tasks with these needs fit a machine with these resources at once."""
    return min(int(resources.get(name, 0.0) / value + 1e-9) for name, value in needs.items() if value)


@dataclass
class Task:
    """A function that runs on the cluster, seen as a process is."""

    ray: Any
    result: Any  # a reference to what it returns

    def is_alive(self) -> bool:
        """Whether it has not ended yet."""
        return not self.ray.wait([self.result], timeout=0)[0]

    @property
    def exitcode(self) -> int | None:
        """None while it runs, 0 when it returned, :data:`LOST` when its process was; ``UserError`` when it raised."""
        if self.is_alive():
            return None
        try:
            self.ray.get(self.result)
        except self.ray.exceptions.RayTaskError as error:
            raise UserError(f"on the Ray cluster: {_error_text(getattr(error, 'cause', error))}") from error
        except self.ray.exceptions.RayError:
            return LOST
        return 0

    def terminate(self) -> None:
        """End it, and the process that it runs in."""
        self.ray.cancel(self.result, force=True)

    def join(self, timeout: float) -> None:
        """Wait until it has ended, ten seconds at most: its machine may be gone."""
        self.ray.wait([self.result], timeout=min(timeout, 10))

    def kill(self) -> None:
        """End it, as ``terminate`` does."""
        self.ray.cancel(self.result, force=True)
