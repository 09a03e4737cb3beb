"""Checkpoints: random generators' states, and one safetensors file, written whole or not at all."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from pytorch_lightning.plugins.io import CheckpointIO
from torch import Tensor

from anchored.config.recipe import derived_seed
from anchored.errors import UserError
from anchored.method import collectives
from anchored.store import files

_PACKED = 512  # bytes that the state of NumPy's generator is padded to, so that processes can gather theirs


class Generators:
    """Generators of everything that training draws, but for order and augmentation, which follow from (seed, epoch).

    ``masks``: permutations and reference masks, the model's own generator; ``tail``: points of hard Δ mining;
    ``mixing``: mixup and CutMix. Dropout uses torch's default generators, that of the CPU and that of the device.
    """

    def __init__(self, seed: int, masks: torch.Generator | None) -> None:
        self.seed = seed
        self.masks = torch.Generator() if masks is None else masks
        self.tail = torch.Generator()
        self.mixing = np.random.default_rng()

    def begin(self, epoch: int) -> None:
        """Seed all generators from (seed, epoch)."""
        self.masks.manual_seed(derived_seed(self.seed, "masks", epoch))
        self.tail.manual_seed(derived_seed(self.seed, "tail", epoch))
        self.mixing = np.random.default_rng(derived_seed(self.seed, "mixing", epoch))
        rank = collectives.get_rank()  # dropout differs between ranks; all other draws are the same on all
        torch.manual_seed(derived_seed(self.seed, "dropout", epoch, *([rank] if rank else [])))

    def state(self, device: torch.device) -> dict[str, Tensor]:
        """The states of all generators, uint8, each of a fixed size."""
        mixing = json.dumps(self.mixing.bit_generator.state).encode().ljust(_PACKED)
        states = {
            "masks": self.masks.get_state(), "tail": self.tail.get_state(),
            "mixing": torch.frombuffer(bytearray(mixing), dtype=torch.uint8), "dropout": torch.get_rng_state(),
        }  # fmt: skip
        own = {} if device.type == "cpu" else {"device": getattr(torch, device.type).get_rng_state()}
        return states | own

    def restore(self, states: dict[str, Tensor], device: torch.device) -> None:
        """Restore what ``state`` returned."""
        self.masks.set_state(states["masks"])
        self.tail.set_state(states["tail"])
        self.mixing.bit_generator.state = json.loads(states["mixing"].numpy().tobytes())
        torch.set_rng_state(states["dropout"])
        if "device" in states and device.type != "cpu":
            getattr(torch, device.type).set_rng_state(states["device"])


def gather_tensors(module: pl.LightningModule, own: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of all ranks, each (world size,...): a collective."""
    if module.trainer.world_size == 1:
        return {name: value[None] for name, value in own.items()}
    return {name: module.all_gather(value.to(module.device)) for name, value in own.items()}  # type: ignore[misc]


def take_own(module: pl.LightningModule, gathered: dict[str, Tensor]) -> dict[str, Tensor]:
    """This rank's tensors out of those that ``gather_tensors`` returned, on the CPU."""
    rank, world = module.trainer.global_rank, module.trainer.world_size
    counts = {len(value) for value in gathered.values()}
    if counts != {world}:
        raise UserError(f"the checkpoint is one of {max(counts)} processes, within an epoch: continue with as many")
    # clone: a generator takes no state that is a part of a larger tensor (torch 2.15: "Invalid mt19937 state").
    return {name: value[rank].clone().cpu() for name, value in gathered.items()}


class TensorCheckpoints(CheckpointIO):
    """Lightning's checkpoints as one safetensors file: atomic, and nothing to unpickle."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Write the training state."""
        files.save_tree(Path(path), {key: value for key, value in checkpoint.items() if key != "hparams_name"})

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = None) -> dict[str, Any]:
        """Read the training state, on the CPU."""
        tree: dict[str, Any] = files.load_tree(Path(path))
        return tree

    def remove_checkpoint(self, path: Any) -> None:
        """Remove the file."""
        Path(path).unlink(missing_ok=True)
