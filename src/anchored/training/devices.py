"""Which device a network is trained, evaluated and timed on."""

import torch


def find_device(accelerator: str = "auto") -> torch.device:
    """This process's device for ``train.accelerator``: as Lightning chooses, and the CPU where there is no other."""
    if accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available():
        return torch.device("cuda", torch.cuda.current_device())
    if accelerator in ("auto", "gpu", "mps") and torch.backends.mps.is_available():
        return torch.device("mps")
    return torch.device("cpu")
