"""Several processes, one a device, that run the same program: who starts them, and how Lightning meets them.

torchrun and SLURM start the processes themselves. Without them, the command is run again in a process for each device
of this machine, by torchrun's own launcher, which ends all where one fails. Every rank runs the whole command; rank 0
alone writes, and what only it may decide the others get by :func:`anchored.method.collectives.from_rank_zero`.
"""

import contextlib
import logging
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from torch import distributed

from anchored.errors import UserError
from anchored.method import collectives
from anchored.training import interruption
from anchored.training.devices import find_device

GRACE = 30.0
"""Seconds after which a rank above 0 reports an error: rank 0, if it has the same one, reports it first and ends."""
PATIENCE = 20.0  # seconds after which it is said which processes are waited for
LAUNCHED = "ANCHORED_LAUNCHED"
"""Set in ranks that the command itself started: it reports an interruption, which also ends ranks beside a lost one."""
TIMEOUT = timedelta(hours=2)  # after so long a collective within training is given up
LOOPBACK = "127.0.0.1"


def cluster_environment() -> Any:
    """Lightning's view of who started the processes: torchrun or SLURM (srun); None where nobody did."""
    if not any(name.startswith(("TORCHELASTIC_", "SLURM_")) for name in os.environ):
        return None  # without waiting for the import, which takes seconds
    from lightning_fabric.plugins.environments import SLURMEnvironment, TorchElasticEnvironment

    if TorchElasticEnvironment.detect():
        return TorchElasticEnvironment()
    if not SLURMEnvironment.detect():
        return None
    try:
        return SLURMEnvironment(auto_requeue=False)  # a job that is started again continues from its checkpoint
    except RuntimeError as error:
        raise UserError(f"SLURM: {error}") from error


def process_count(devices: int) -> int:
    """The number of processes: of those that were started, if any, else ``devices``. ``UserError`` where ``devices`` is
    above 1 and not the number of processes that were started, or below 1."""
    if devices < 1:
        raise UserError(f"{devices} devices are asked for: at least 1")
    environment = cluster_environment()
    if environment is None:
        return devices
    world = int(environment.world_size())
    if devices not in (1, world):
        launcher = "SLURM" if "SLURM" in type(environment).__name__ else "torchrun"
        raise UserError(
            f"{devices} devices are asked for, but {launcher} started {world} processes: start one a device"
        )
    return world


def run(command: Callable[[], None], devices: int = 1, accelerator: str = "auto") -> None:
    """Run a command of ``anchored`` on so many devices: on every rank, of which only rank 0 prints. Raises what the
    command raises; on a rank above 0 only if rank 0 does not end the processes first. ``UserError`` where this machine
    has fewer devices."""
    if devices == 1:
        command()
    elif cluster_environment() is None:
        _refuse_more_than_there_are(devices, accelerator)
        _run_again(devices)
    else:
        with _process_group(devices, accelerator), _only_rank_zero_reports():
            command()


def trainer_options(devices: int, sync_batch_norm: bool) -> dict[str, Any]:
    """Arguments of Lightning's Trainer; ``UserError`` where there are not as many processes as ``devices``.

    ``broadcast_buffers=False``: DDP would copy rank 0's batch norm statistics to all before every step, but training
    does not read them.
    """
    if collectives.get_world_size() != devices:
        raise UserError(
            f"train.devices is {devices}, but this is one process: use the command anchored study or train, by "
            "itself (without --workers), with torchrun or with srun"
        )
    if devices == 1:
        return {"devices": 1}
    from pytorch_lightning.strategies import DDPStrategy

    if sync_batch_norm and distributed.get_backend() == "gloo":
        raise UserError("train.sync_batch_norm: torch has it for GPUs only; leave it off here")
    local, nodes = _local_and_nodes(devices)
    strategy = DDPStrategy(broadcast_buffers=False, cluster_environment=cluster_environment())
    options = {"devices": local, "num_nodes": nodes, "strategy": strategy}
    return options | {"use_distributed_sampler": False}


def _local_and_nodes(devices: int) -> tuple[int, int]:
    """Processes of this machine, and machines."""
    local = int(os.environ.get("LOCAL_WORLD_SIZE", os.environ.get("SLURM_NTASKS_PER_NODE", devices)))
    return local, max(1, devices // local)


@contextlib.contextmanager
def _process_group(devices: int, accelerator: str) -> Iterator[None]:
    """Meet the other processes, on this rank's device, by Lightning's Fabric."""
    from lightning_fabric import Fabric
    from lightning_fabric.strategies import DDPStrategy

    local, nodes = _local_and_nodes(devices)
    environment = cluster_environment()
    strategy = DDPStrategy(cluster_environment=environment, timeout=TIMEOUT)
    try:
        waited_for = f"waiting for {devices} processes to meet at {_meeting_point(environment)}"
        told = LAUNCHED not in os.environ and environment.global_rank() == 0
        with _said_if_slow(waited_for), interruption.ended_at_once(told=told):
            Fabric(accelerator=accelerator, strategy=strategy, devices=local, num_nodes=nodes).launch()
    except (RuntimeError, ValueError) as error:  # MisconfigurationException is one: more devices than there are
        raise UserError(f"{devices} processes cannot work together: {error}") from error
    try:
        yield
    finally:
        distributed.destroy_process_group()


def _meeting_point(environment: Any) -> str:
    """Where the processes meet, and who was to start them."""
    address = f"{environment.main_address}:{environment.main_port}"
    if "SLURM" in type(environment).__name__:
        tasks = f"SLURM_NTASKS is {os.environ.get('SLURM_NTASKS')}"
        return f"{address}: {tasks}, so srun has to start them; for one process alone, unset SLURM_NTASKS"
    return f"{address}: torchrun has to start them on every machine"


@contextlib.contextmanager
def _said_if_slow(what: str) -> Iterator[None]:
    """Say what is waited for, once it takes longer than others would."""
    timer = threading.Timer(PATIENCE, lambda: print(f"anchored: {what}", file=sys.stderr, flush=True))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


@contextlib.contextmanager
def _only_rank_zero_reports() -> Iterator[None]:
    """Keep ranks above 0 silent, unless an error is theirs alone; also one that only follows from a lost rank."""
    with contextlib.ExitStack() as stack:
        if rank := collectives.get_rank():
            stack.enter_context(contextlib.redirect_stdout(stack.enter_context(Path(os.devnull).open("w"))))
        try:
            yield
        except UserError as error:
            if not rank:
                raise
            _wait_to_be_ended()
            raise UserError(f"rank {rank} of {collectives.get_world_size()}: {error}") from error
        except KeyboardInterrupt as error:
            if not rank and LAUNCHED not in os.environ:
                raise
            sys.exit(128 + interruption.number_of(error))
        except RuntimeError as error:
            if "gloo" not in str(error) and not isinstance(error, distributed.DistError):
                raise
            _wait_to_be_ended()
            raise UserError("another rank was lost; the same command continues from the last checkpoint") from error


def _wait_to_be_ended() -> None:
    """Leave it to the launcher, which sees that another rank has failed, to end this one, without a word of its own."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    time.sleep(GRACE)


def _refuse_more_than_there_are(devices: int, accelerator: str) -> None:
    """Of a CPU, cores are counted as devices; two processes are tried on any."""
    kind = find_device(accelerator).type
    there = {"cuda": torch.cuda.device_count(), "mps": 1, "cpu": max(2, os.cpu_count() or 1)}[kind]
    if devices > there:
        what = "cores" if kind == "cpu" else "devices"
        raise UserError(f"{devices} devices are asked for, and this machine has {there} {what}: ask for no more")


def _run_again(devices: int) -> None:
    """Run this process's command in a process for each device of this machine; exit with the first failure's status."""
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.elastic.rendezvous import rendezvous_handler_registry
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // devices)))
    os.environ[LAUNCHED] = "1"
    for library in ("GLOO", "NCCL"):  # else on the interface of the host's name
        os.environ.setdefault(f"{library}_SOCKET_IFNAME", _loopback_interface())
    logging.disable(logging.CRITICAL)  # the ranks say what is wrong
    rendezvous_handler_registry.register("loopback", _meet_on_loopback)
    one_machine: dict[str, Any] = {"rdzv_backend": "loopback", "rdzv_endpoint": LOOPBACK, "max_restarts": 0}
    config = LaunchConfig(min_nodes=1, max_nodes=1, nproc_per_node=devices, **one_machine)
    try:
        elastic_launch(config, sys.executable)("-m", "anchored", *sys.argv[1:])
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        if failure.exitcode > 0:
            sys.exit(failure.exitcode)
        raise UserError(
            f"rank {rank} of {devices} was lost ({signal.Signals(-failure.exitcode).name}; SIGKILL is often a full "
            "memory); the same command continues from the last checkpoint"
        ) from error
    except SignalException as error:
        raise interruption.Interrupted(error.sigval) from error


def _meet_on_loopback(parameters: Any) -> Any:
    """How torch's launcher lets the ranks of this machine meet: a store that nobody else can reach.

    Its own stores listen on all interfaces, whatever address they are called at, unless they are given a socket.
    """
    from torch.distributed.elastic.rendezvous.static_tcp_rendezvous import StaticTCPRendezvous

    store: Any = vars(distributed)["TCPStore"]  # its stubs do not say that it is public

    class OnLoopback(StaticTCPRendezvous):
        def get_backend(self) -> str:
            return "loopback"

    listener = socket.create_server((LOOPBACK, 0))
    port = listener.getsockname()[1]
    handler = OnLoopback(LOOPBACK, port, rank=0, world_size=1, run_id=parameters.run_id, timeout=60)
    given: dict[str, Any] = {"wait_for_workers": False, "multi_tenant": True, "master_listen_fd": listener.detach()}
    try:
        handler._store = store(LOOPBACK, port, is_master=True, **given)
    except RuntimeError as error:  # no more threads, say
        raise UserError(f"no place for the processes to meet: {' '.join(str(error).split())}") from error
    return handler


def _loopback_interface() -> str:
    """lo, or lo0 on macOS."""
    return next((name for _, name in socket.if_nameindex() if name in ("lo", "lo0")), "lo")
