"""Two processes (gloo, CPU): an anchored network under DistributedDataParallel, and residuals fitted by both."""

from pathlib import Path

import torch
import torch.distributed as dist
from fixtures.ranks import two_ranks
from torch.nn import functional
from torch.nn.parallel import DistributedDataParallel

import anchored
from anchored.method.hard_delta import FullNormal, LowRankNormal, Residuals
from anchored.models import registry as networks
from anchored.store.files import load_tensors, save_tensors


def work(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    try:
        network = networks.build_network("small", channels=1, classes=3, seed=0)
        model = anchored.anchor(network, 0.5)
        model.set_references(torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(5)))
        parallel = DistributedDataParallel(model)
        optimizer = torch.optim.SGD(parallel.parameters(), 0.1)
        masked, orders = [], []
        for step in range(6):
            draw = torch.Generator().manual_seed(10 * step + rank)
            images, labels = torch.randn(4, 1, 8, 8, generator=draw), torch.randint(3, (4,), generator=draw)
            optimizer.zero_grad()
            functional.cross_entropy(parallel(images), labels).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            masked.append(model.masked.float())
            orders.append(model.order)
        parallel(torch.zeros(4, 1, 8, 8))  # its forward brings rank 0's buffers to all
        drawn = {"masked": torch.stack(masked), "order": torch.stack(orders)}
        save_tensors(Path(folder) / f"{rank}.safetensors", {**model.state_dict(), **drawn})
    finally:
        dist.destroy_process_group()


def batches() -> list[torch.Tensor]:
    """Four batches (25,1,4,4); each process takes two of them."""
    return list(torch.split(torch.randn(100, 1, 4, 4, generator=torch.Generator().manual_seed(8)), 25))


def covariances(mine: list[torch.Tensor], resumed: int | None = None) -> torch.Tensor:
    """What is fitted to these batches (2,16,16): a full covariance, and a diagonal with a sketch.

    By a process of rank ``resumed``, if given, whose state all get from the first one's checkpoint after a batch.
    """
    found = []
    for residuals in (Residuals((1, 4, 4), 2), Residuals((1, 4, 4), 2, full_up_to=1, rank=8)):
        for part in mine:
            residuals.observe(part, torch.arange(25), torch.arange(25) % 2)
            if resumed is not None:
                residuals.pool()
                state = {name: value.clone() for name, value in residuals.named_buffers()}
                for value in state.values():
                    dist.broadcast(value, 0) if value.numel() else None
                residuals.load_state_dict(state)
                residuals.keep()
        residuals.fit()
        match residuals.normal:
            case FullNormal(factor):
                found.append(factor.double() @ factor.double().T)
            case LowRankNormal(directions, diagonal):
                found.append(directions @ directions.T + torch.diag(diagonal))
    return torch.stack(found)


def fit(rank: int, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    try:
        found = covariances(batches()[rank::2])
        pooled = covariances(batches()[rank::2], rank)
        save_tensors(Path(folder) / f"{rank}.safetensors", {"found": found, "pooled": pooled})
    finally:
        dist.destroy_process_group()


def test_residuals_are_fitted_to_what_all_processes_saw(tmp_path: Path) -> None:
    two_ranks(fit, str(tmp_path))
    first, second = (load_tensors(tmp_path / f"{rank}.safetensors")[0] for rank in (0, 1))
    for name in ("found", "pooled"):
        assert torch.equal(first[name], second[name])
        torch.testing.assert_close(first[name], covariances(batches()), rtol=1e-5, atol=1e-5)


def test_two_processes_agree(tmp_path: Path) -> None:
    two_ranks(work, str(tmp_path))
    first, second = (load_tensors(tmp_path / f"{rank}.safetensors")[0] for rank in (0, 1))
    start = networks.build_network("small", channels=1, classes=3, seed=0).state_dict()
    masked = first.pop("masked")
    assert torch.equal(masked, second.pop("masked"))  # a whole batch is that of all processes
    assert 0 < masked.mean() < 1
    assert not torch.equal(first.pop("order"), second.pop("order"))  # references come from a process's own images
    running = [name for name in first if "running" in name or "tracked" in name]
    for name in first.keys() - set(running):
        assert torch.equal(first[name], second[name]), name
    assert not torch.equal(first["network.head.weight"], start["head.weight"])
