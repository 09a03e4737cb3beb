"""Random numbers that depend only on (seed, purpose, image index, position): not on batch, order or device.

A generator with a state gives image 7 other numbers when it is corrupted alone than in a batch of 100. Here every
number is a hash: SplitMix64 (Steele, Lea and Flood 2014, "Fast splittable pseudorandom number generators", OOPSLA),
whose output number ``i`` from the start ``key`` is ``mix(key + i · 0x9E3779B97F4A7C15)``, so that any of them can be
computed directly. Each image has a key of its own; two images' numbers overlap only if their 64-bit keys are by chance
less than an image's length apart (below 1e-6 for 50,000 CIFAR images). The hash is exact integer arithmetic (int64,
wrapping): all devices agree on it. Normal numbers pass through float32 functions, whose last bit may differ between
devices.
"""

import functools
import hashlib
import math

import numpy as np
import torch
from torch import Tensor


def _signed(value: int) -> int:
    """Return the int64 with the same 64 bits as the unsigned ``value``."""
    value &= 0xFFFF_FFFF_FFFF_FFFF
    return value - (1 << 64) if value >> 63 else value


_STEP = _signed(0x9E37_79B9_7F4A_7C15)
_ROUNDS = ((30, 0xBF58_476D_1CE4_E5B9), (27, 0x94D0_49BB_1331_11EB), (31, 1))  # shift to the right, then factor


def _mix(bits: Tensor) -> Tensor:
    """Return SplitMix64's finaliser of contiguous int64 ``bits``, computed in place. On the CPU by NumPy: it has
    unsigned numbers, and multiplies them three times as fast as torch."""
    if bits.device.type == "cpu":
        whole = bits.numpy().view(np.uint64)
        shifted = np.empty_like(whole)
        for shift, factor in _ROUNDS:
            np.bitwise_xor(whole, np.right_shift(whole, np.uint64(shift), out=shifted), out=whole)
            if factor != 1:
                np.multiply(whole, np.uint64(factor), out=whole)
        return bits
    for shift, factor in _ROUNDS:
        zeros_come_in = (1 << (64 - shift)) - 1  # torch's own shift repeats the sign
        bits.bitwise_xor_((bits >> shift).bitwise_and_(zeros_come_in)).mul_(_signed(factor))
    return bits


def image_keys(seed: int, purpose: str, indices: Tensor) -> Tensor:
    """Return one key per image, int64 (B,), for :func:`uniform` and :func:`normal`.

    ``purpose`` names what the numbers are for (such as "gaussian_noise/3"): two purposes have unrelated numbers.
    ``indices`` (B,), any integer dtype: each image's place in its set.
    """
    digest = hashlib.sha256(f"{seed}/{purpose}".encode()).digest()
    start = _signed(int.from_bytes(digest[:8], "little"))
    return _mix(_mix(indices.to(torch.int64) * _STEP + start) + start)


@functools.lru_cache(maxsize=16)
def _steps(count: int, device: torch.device) -> Tensor:
    return torch.arange(1, count + 1, device=device).mul_(_STEP)


def _bits(keys: Tensor, count: int, draw: int) -> Tensor:
    """Return ``count`` hashes per image, int64 (B, count); another ``draw`` gives unrelated ones."""
    if draw:
        keys = _mix(keys + _signed(draw * 0x632B_E59B_D9B4_E019))
    return _mix(keys[:, None] + _steps(count, keys.device))


def _unit(keys: Tensor, count: int, draw: int) -> Tensor:
    """Return float32 (B, count), ``count`` even: the middles of 2**23 equal cells of (0, 1).

    A hash makes two numbers, each from the low 23 bits of one half: they become the fraction of a float32 in [1, 2),
    and 1 − 2**-24 is subtracted, which is exact.
    """
    halves = _bits(keys, count // 2, draw).view(torch.int32)
    return halves.bitwise_and_(0x7F_FFFF).bitwise_or_(0x3F80_0000).view(torch.float32).sub_(1 - 2.0**-24)


def uniform(keys: Tensor, shape: tuple[int, ...], draw: int = 0) -> Tensor:
    """Return float32 (B, *shape), uniform on the open interval (0, 1) in steps of 2**-23; ``keys`` int64 (B,)."""
    count = math.prod(shape)
    return _unit(keys, count + count % 2, draw)[:, :count].reshape(len(keys), *shape)


def normal(keys: Tensor, shape: tuple[int, ...], draw: int = 0) -> Tensor:
    """Return float32 (B, *shape), standard normal by the Box–Muller transform; ``keys`` int64 (B,). |values| <= 5.77
    (the radius comes from 23 bits), a tail that a standard normal exceeds once in 10^8 draws."""
    count = math.prod(shape)
    values = _unit(keys, count + count % 2, draw)
    radius, angle = values.chunk(2, 1)
    radius.log_().mul_(-2.0).sqrt_()
    cosine = angle.mul_(2.0 * math.pi).cos()
    angle.sin_().mul_(radius)
    radius.mul_(cosine)
    return values[:, :count].reshape(len(keys), *shape)
