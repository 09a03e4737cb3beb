"""How a tensor of the CPU comes to a device without waiting for it."""

import torch
from torch import Tensor


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """The tensor on ``device``. A copy to a GPU is put in its queue behind the work before it.

    A plain ``to`` would wait for all of that first. Ordinary memory, which is not pinned, is read before the call
    returns (CUDA's rule for such copies), so that it may change at once. Other devices than CUDA's make no such
    promise, and are waited for.
    """
    return tensor.to(device, non_blocking=device.type == "cuda")
