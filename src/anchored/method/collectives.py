"""Rank and world size, and collectives that also work in a single process (rank 0 of 1)."""

from __future__ import annotations

import torch
from torch import Tensor, distributed


def place() -> tuple[int, int]:
    """This process's rank, and the world size."""
    if distributed.is_available() and distributed.is_initialized():
        return distributed.get_rank(), distributed.get_world_size()
    return 0, 1


def summed(values: Tensor) -> Tensor:
    """The sum over all processes, the same on all of them; a collective: every process must call it."""
    if place()[1] > 1:
        values = values.clone()
        distributed.all_reduce(values)
    return values


def stacked(rows: Tensor) -> Tensor:
    """Rows (M,d) of each process -> those of all, (world · M,d), by rank; a collective."""
    world = place()[1]
    if world == 1:
        return rows
    parts = [torch.empty_like(rows) for _ in range(world)]
    distributed.all_gather(parts, rows.contiguous())
    return torch.cat(parts)
