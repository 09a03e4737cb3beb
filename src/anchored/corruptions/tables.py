"""Tensors that follow from a few numbers alone, made once and kept on every device that asks for them."""

import functools
from collections.abc import Callable
from typing import Any, Concatenate, ParamSpec, TypeVar, cast

import torch
from torch import Tensor

from anchored.method.devices import to_device

P = ParamSpec("P")
T = TypeVar("T")  # Tensor, or a tuple of them


def kept_tables(most: int) -> Callable[[Callable[P, T]], Callable[Concatenate[torch.device, P], T]]:
    """Decorate a function of hashable values that makes a tensor or a tuple of them, on the CPU.

    It then takes a device first, and its ``most`` last results stay there: else every batch would copy them to a GPU.
    """

    def decorate(make: Callable[P, T]) -> Callable[Concatenate[torch.device, P], T]:
        @functools.lru_cache(maxsize=most)
        def on(device: torch.device, *given: Any) -> Any:
            with torch.inference_mode(False):  # made while a network is evaluated, and used when one is trained
                if device.type == "cpu":
                    return make(*given)  # type: ignore[call-arg]
                tables = on(torch.device("cpu"), *given)
                if isinstance(tables, Tensor):
                    return to_device(tables, device)
                return tuple(to_device(table, device) for table in tables)

        return cast("Callable[Concatenate[torch.device, P], T]", functools.update_wrapper(on, make))

    return decorate
