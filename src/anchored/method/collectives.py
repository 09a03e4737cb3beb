"""Rank, world size and collectives, named as in ``torch.distributed``; without a process group, rank 0 of 1."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import timedelta
from functools import lru_cache
from typing import Any, TypeVar

import torch
from torch import Tensor, distributed

T = TypeVar("T")


def get_rank() -> int:
    """The rank of this process."""
    return distributed.get_rank() if _is_initialized() else 0


def get_world_size() -> int:
    """The number of processes that run the same program."""
    return distributed.get_world_size() if _is_initialized() else 1


def all_reduce(values: Tensor) -> Tensor:
    """The sum of ``values`` over all ranks; the argument is not changed."""
    if get_world_size() > 1:
        values = values.clone()
        distributed.all_reduce(values)
    return values


def all_gather(rows: Tensor) -> Tensor:
    """Rows (M,d) of every rank, concatenated by rank: (world size · M,d)."""
    if get_world_size() == 1:
        return rows
    parts = [torch.empty_like(rows) for _ in range(get_world_size())]
    distributed.all_gather(parts, rows.contiguous())
    return torch.cat(parts)


def barrier() -> None:
    """Wait for all ranks, however long they take."""
    if get_world_size() > 1:
        distributed.barrier(_control_group())


def from_rank_zero(compute: Callable[[], T]) -> T:
    """What ``compute`` returns on rank 0, on every rank; a ``ValueError`` that it raises is raised on every rank. For
    what only rank 0 may do or decide: to read and write the results' folder."""
    if get_world_size() == 1:
        return compute()
    result: list[Any] = [None, None]
    if get_rank() == 0:
        try:
            result[0] = compute()
        except ValueError as error:
            result[1] = error
    distributed.broadcast_object_list(result, src=0, group=_control_group())
    if result[1] is not None:
        raise result[1]
    value: T = result[0]
    return value


@lru_cache(maxsize=1)
def _control_group() -> Any:
    """A group on the CPU without a time limit: rank 0 may compute intervals for hours while the others wait."""
    return distributed.new_group(backend="gloo", timeout=timedelta(days=365))


_works_alone: ContextVar[bool] = ContextVar("works_alone", default=False)


@contextmanager
def alone() -> Iterator[None]:
    """Within it, this process is rank 0 of 1: for work that one rank does while the others wait for it."""
    token = _works_alone.set(True)
    try:
        yield
    finally:
        _works_alone.reset(token)


def _is_initialized() -> bool:
    return distributed.is_available() and distributed.is_initialized() and not _works_alone.get()
