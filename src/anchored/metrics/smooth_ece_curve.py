"""σ ↦ smECE_σ of many replicates at once, and its fixed point; what it is: ``calibration.smooth_ece``.

The residuals c − y are put on a grid (two points share an image), smoothed by a Gaussian kernel that is reflected at 0
and 1 (by FFT: reflection makes them periodic), and interpolated at points t. All is linear in a replicate's weights but
for the absolute value at the end: the grid is a sparse product, and of the density only its sum over t is needed, which
is one product with a vector that all replicates share.
Legend: N images, R replicates, P grid points, T points t. Bandwidths are multiples of 1 / STEPS, given as int steps.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.fft import next_fast_len
from scipy.sparse import csr_array
from torch import Tensor

STEPS = 1 << 10  # the published search halves [0, 1] ten times
LEAST = 0.001  # the published tolerance: no smaller bandwidth is tried
COARSE = 1001  # points of the grid for all bandwidths that need no finer one
_BLOCK = 1 << 16  # weights that go onto the grid at once: with many images one replicate, which stays in a core's cache
_ROWS = 64  # replicates that are smoothed at once
_STEADY = 0.02 / STEPS  # how far smECE_σ may rise with σ through its grid; it falls otherwise
_JUMP = STEPS // 8  # the older variant has 200 points at it and 800 below it

_Floats = NDArray[np.float64]
_Evaluate = Callable[[NDArray[np.int64], NDArray[np.int64]], _Floats]  # bandwidths (n,), replicates (n,) -> smECE (n,)


@dataclass(frozen=True)
class SmoothingKernel:
    """The kernel of one bandwidth on P grid points, interpolated at T = ``count`` points; at the grid's own where 0."""

    step: int
    points: int
    count: int

    @cached_property
    def reach(self) -> int:
        """Grid points that the mirrored grid adds at both ends: ten standard deviations (1e-22) on fine grids.

        Elsewhere all kernels of a grid share its spectra: 0 where it goes once around instead, and half the grid, which
        is the longest kernel's, for the older variant, whose grids have awkward numbers of points once around.
        """
        if not self.count:
            return self.points // 2
        return math.ceil(10 * self.step / STEPS * (self.points - 1)) if self.points > COARSE else 0

    @cached_property
    def mirror(self) -> Tensor:
        """The grid point at each place of the mirrored grid, (U,); the places of the grid itself begin at ``reach``."""
        inner, reach = torch.arange(self.points), self.reach
        if not reach:
            return torch.cat([inner, inner[1:-1].flip(0)])
        return torch.cat([inner[1 : reach + 1].flip(0), inner, inner[-reach - 1 : -1].flip(0)])

    @cached_property
    def period(self) -> int:
        """Length of the Fourier transforms."""
        return int(next_fast_len(len(self.mirror), real=True)) if self.reach else len(self.mirror)

    @cached_property
    def response(self) -> Tensor:
        """Frequency response (F,) complex of the kernel: P taps over one unit, cut at ± ½ (or at ``reach``)."""
        sigma, points = self.step / STEPS, self.points
        t = torch.arange(points, dtype=torch.float64) / (points - 1) - 0.5
        taps = torch.exp(-t.square() / (2 * sigma**2)) / (math.sqrt(2 * math.pi) * sigma)
        # An even P has no middle tap: the kernel then sits half a cell to the right, as published.
        periodic, offsets = torch.zeros(self.period, dtype=torch.float64), torch.arange(points) - (points - 1) // 2
        near = offsets.abs() <= (self.reach or points)
        periodic[offsets[near] % self.period] = taps[near]
        response: Tensor = torch.fft.rfft(periodic).conj().resolve_conj()
        return response

    @cached_property
    def places(self) -> tuple[Tensor, Tensor]:
        """The grid cell (T,) below each point t, and its place in it in [0, 1]."""
        t = torch.linspace(0, 1, self.count, dtype=torch.float64) * (self.points - 1)
        cell = t.long().clamp(0, self.points - 2)
        return cell, t - cell

    def at_points(self, smooth: Tensor) -> Tensor:
        """On the grid (n,P) -> interpolated at the points t, (n,T)."""
        if not self.count:
            return smooth
        cell, share = self.places
        return torch.lerp(smooth[:, cell], smooth[:, cell + 1], share)

    @cached_property
    def density(self) -> _Floats:
        """g (P,): g · h is the sum over t of the smoothed h, for every histogram h; the adjoint of ``smoothed``."""
        cell, share = self.places
        ends = torch.zeros(self.period, dtype=torch.float64)
        ends.index_add_(0, self.reach + cell, 1 - share).index_add_(0, self.reach + cell + 1, share)
        g = torch.fft.irfft(torch.fft.rfft(ends) * self.response.conj(), n=self.period)
        folded = torch.zeros(self.points, dtype=torch.float64)
        density: _Floats = folded.index_add_(0, self.mirror, g[: len(self.mirror)]).numpy()
        return density

    def spectra(self, histograms: Tensor) -> Tensor:
        """Histograms (n,P) -> spectra of the mirrored grid (n,F)."""
        spectra: Tensor = torch.fft.rfft(histograms[:, self.mirror], n=self.period)
        return spectra


@lru_cache(maxsize=2 * STEPS)
def kernel_on(step: int, points: int, old: bool) -> SmoothingKernel:
    """One for each bandwidth and grid, shared by all sets: 50 kB each, and few sets come to more than a hundred."""
    return SmoothingKernel(step, points, 0 if old else max(round(10 * STEPS / step), 200))


def kernel_of(step: int) -> SmoothingKernel:
    """The kernel of a bandwidth on its published grid."""
    return kernel_on(step, max(COARSE, round(20 * STEPS / step) // 2 + 1), False)


def smoothed(kernels: Sequence[SmoothingKernel], spectra: Tensor) -> Tensor:
    """Spectra (n,F) of histograms, each with its kernel, all of one grid -> smoothed, on that grid, (n,P)."""
    first = kernels[0]
    alike = all(kernel is first for kernel in kernels)
    response = first.response if alike else torch.stack([kernel.response for kernel in kernels])
    smooth: Tensor = torch.fft.irfft(spectra * response, n=first.period)[:, first.reach : first.reach + first.points]
    return smooth


class SmoothECECurve:
    """One set of images: weights (R,N) -> the fixed point of each replicate's curve (R,).

    ``f`` (N,) confidences and ``r`` (N,) residuals, float64; ``old``: the variant "reflect_old" of ``smooth_ece``.
    """

    def __init__(self, f: Tensor, r: Tensor, old: bool) -> None:
        self.f, self.r, self.old = f.cpu().numpy(), r.cpu().numpy(), old
        self.start = 0  # bandwidth of the last replicates, and how far smECE was above their |mean residual|
        self.above = 0.0
        self.power = 0.0  # p of their curves, smECE_σ ∝ σ^−p near the fixed point
        self.grids: dict[int, csr_array] = {}
        self.densities: dict[int, _Floats] = {}  # by bandwidth

    def __call__(self, weights: Tensor) -> Tensor:
        """Compute on the CPU, whatever the weights' device."""
        search = _Halving if self.old else _Search
        return torch.from_numpy(search(self, weights.cpu().numpy()).fixed_points()).to(weights.device)

    def density(self, kernel: SmoothingKernel) -> _Floats:
        """(N,): what an image of weight one adds to the sum of the smoothed density over the points t."""
        if kernel.step not in self.densities:
            cell, share = self._cells(kernel.points)
            self.densities[kernel.step] = kernel.density[cell] * (1 - share) + kernel.density[cell + 1] * share
        return self.densities[kernel.step]

    def _cells(self, points: int) -> tuple[NDArray[np.int64], _Floats]:
        place = self.f * (points - 1)
        cell = place.astype(np.int64).clip(0, points - 2)
        return cell, place - cell

    def _grid(self, points: int) -> csr_array:
        """(P,N): what an image of weight one adds to the histogram of residuals."""
        if points not in self.grids:
            cell, share = self._cells(points)
            values, image = np.concatenate([self.r * (1 - share), self.r * share]), np.arange(len(cell))
            where = np.concatenate([cell, cell + 1]).astype(np.int32), np.concatenate([image, image]).astype(np.int32)
            self.grids[points] = csr_array((values, where), shape=(points, len(cell)))
        return self.grids[points]

    def histograms(self, points: int, weights: _Floats, rows: NDArray[np.int64]) -> Tensor:
        """Weights (R,N) -> the residuals on the grid, of the replicates ``rows`` (n,P)."""
        grid, histograms = self._grid(points), np.empty((len(rows), points))
        block = _BLOCK // weights.shape[1]
        for i in range(0, len(rows), max(1, block)):
            if block < 2:  # without a copy
                histograms[i] = grid @ weights[rows[i]]
            else:
                histograms[i : i + block] = (grid @ weights[rows[i : i + block]].T).T
        return torch.from_numpy(histograms)


class _Guesses:
    """Where the curves of R replicates are expected to meet σ: each is taken for a power law, σ^−p.

    p is that of the last two bandwidths that were tried of it; before there are two, that of earlier replicates.
    """

    def __init__(self, curve: SmoothECECurve, count: int) -> None:
        self.power = np.full(count, curve.power)
        self.step, self.value = np.full(count, np.nan), np.full(count, np.nan)

    def after(self, steps: NDArray[np.int64], values: _Floats, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Bandwidths (n,) to try next, after values (n,) at bandwidths of the replicates ``rows`` (n,)."""
        step, value = np.log(steps), np.log(np.maximum(values * STEPS, 1e-9))
        apart = step - self.step[rows]  # never 0: no bandwidth is tried twice; NaN at first
        measured = np.clip((self.value[rows] - value) / apart, 0, 3)
        power = np.where(np.isnan(measured), self.power[rows], measured)
        self.step[rows], self.value[rows], self.power[rows] = step, value, power
        meet: NDArray[np.int64] = np.ceil(np.exp((value + power * step) / (1 + power))).astype(np.int64)
        return meet


class _Bracket:
    """Bandwidths of R replicates: ``low``, where smECE is higher, and ``high``, where it is not, and is ``values``."""

    def __init__(self, curve: SmoothECECurve, weights: _Floats) -> None:
        self.curve, self.weights, count = curve, weights, len(weights)
        self.low, self.high = np.full(count, int(LEAST * STEPS)), np.full(count, STEPS)
        self.values = np.full(count, np.nan)  # where no bandwidth below 1 was high enough

    def _close_in(self, guess: NDArray[np.int64], evaluate: _Evaluate, grids: NDArray[np.int64]) -> None:
        """Bring low and high together to neighbours, beginning with ``guess`` (R,); ``grids`` (STEPS + 1,) are those
        that bandwidths are evaluated on."""
        low, high, guesses = self.low, self.high, _Guesses(self.curve, len(guess))
        for attempt in range(2 * STEPS):
            left = np.flatnonzero(high - low > 1)
            if not len(left):
                break
            guess[left] = guess[left].clip(low[left] + 1, high[left] - 1)
            if attempt > 6:  # halve from here on: whatever the guesses, it ends
                guess[left] = (low[left] + high[left]) // 2
            step = guess[left]
            value = evaluate(step, left)
            up = value > step / STEPS
            low[left[up]] = step[up]
            down, value_down, step_down = left[~up], value[~up], step[~up]
            high[down], self.values[down] = step_down, value_down
            # At the next lower bandwidth it is no smaller on the same grid: where it exceeds that one, there is no need
            # to try it.
            steady = (value_down > (step_down - 1) / STEPS + _STEADY) & (grids[step_down - 1] == grids[step_down])
            low[down] = np.where(steady, step_down - 1, low[down])
            guess[left] = guesses.after(step, value, left)
        self.curve.power = float(np.median(guesses.power))


class _Search(_Bracket):
    """The least bandwidth of each of R replicates that is at least smECE_σ, and smECE_σ there.

    The published search halves the interval ten times. smECE_σ does not rise with σ, so that there is one such
    bandwidth, and it is found in two or three evaluations from where other replicates have theirs.
    """

    def __init__(self, curve: SmoothECECurve, weights: _Floats) -> None:
        super().__init__(curve, weights)
        self.coarse: Tensor | None = None  # the spectra on the grid of most bandwidths
        self.residual = np.zeros(len(weights))  # |mean residual| of each replicate, known with them

    def fixed_points(self) -> _Floats:
        """Values (R,)."""
        curve, values, count = self.curve, self.values, len(self.weights)
        if not curve.start and count > 1:
            _Search(curve, self.weights[:1]).fixed_points()
        self._close_in(self._first_guess(), self._smooth_ece, np.zeros(STEPS + 1, dtype=np.int64))
        again = np.flatnonzero(np.isnan(values))
        values[again] = self._smooth_ece(self.high[again], again)
        curve.start = int(np.median(self.high))
        if self.coarse is not None:
            curve.above = float(np.median(values - self.residual))
        return values

    def _first_guess(self) -> NDArray[np.int64]:
        """Bandwidths to begin with (R,): those of the last replicates, by the mean residuals of these.

        Where most images err to the same side, smECE is the mean residual but for a little.
        """
        count, start = len(self.weights), self.curve.start or STEPS // 16
        if count == 1 or kernel_of(start).points != COARSE:
            return np.full(count, start)
        self._spectra(kernel_of(start), np.arange(count))
        return np.ceil(STEPS * (self.residual + self.curve.above)).astype(np.int64)

    def _smooth_ece(self, steps: NDArray[np.int64], rows: NDArray[np.int64]) -> _Floats:
        """smECE of the replicates ``rows`` (n,), each at a bandwidth of its own: by the smoothed density's integral."""
        kernels = [kernel_of(int(step)) for step in steps]
        values = np.empty(len(rows))
        for grid in _alike([kernel.points for kernel in kernels]):
            smooth = smoothed([kernels[i] for i in grid], self._spectra(kernels[grid[0]], rows[grid]))
            for form in _alike([kernels[i].count for i in grid]):
                alike = [grid[i] for i in form]
                sums = kernels[alike[0]].at_points(smooth[form]).abs().sum(1).numpy()
                density = [self.weights[rows[i]] @ self.curve.density(kernels[i]) for i in alike]
                values[alike] = sums / (np.array(density) + kernels[alike[0]].count * 1e-4)  # 1e-4: as published
        return values

    def _spectra(self, kernel: SmoothingKernel, rows: NDArray[np.int64]) -> Tensor:
        """The spectra of the replicates ``rows``; those of the grid of most bandwidths are computed once, for all."""
        if kernel.points != COARSE:
            return kernel.spectra(self.curve.histograms(kernel.points, self.weights, rows))
        if self.coarse is None:
            histograms = self.curve.histograms(COARSE, self.weights, np.arange(len(self.weights)))
            self.coarse = kernel.spectra(histograms)
            self.residual = histograms.sum(1).abs().numpy() / self.weights[0].sum()
        return self.coarse[rows]


def _alike(keys: Sequence[int]) -> list[list[int]]:
    """The places of each key, as many at once as stay in a core's cache."""
    places = defaultdict[int, list[int]](list)
    for i, key in enumerate(keys):
        places[key].append(i)
    return [found[i : i + _ROWS] for found in places.values() for i in range(0, len(found), _ROWS)]


@lru_cache(maxsize=1)
def _halving_grids() -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Grid points of the older variant at each bandwidth (STEPS + 1,): as the search tries it, and as it ends there.

    The published search halves [0, 1]; its grid grows fourfold as a bandwidth needs it, and never shrinks again. Which
    bandwidths it has tried before one follows from that one alone.
    """
    tried, final = np.full(STEPS + 1, 200), np.full(STEPS + 1, 200)

    def grown(points: int, step: int) -> int:
        while round(20 * STEPS / step) > points:
            points *= 4
        return points

    def halve(low: int, high: int, points: int) -> None:
        if high - low == 1:
            final[high] = grown(points, high)
            return
        middle = (low + high) // 2
        tried[middle] = points = grown(points, middle)
        halve(low, middle, points)
        halve(middle, high, points)

    halve(0, STEPS, 200)
    return tried, final


class _Halving(_Bracket):
    """The older variant: the mean over grid points, on the grid that the published search has come to.

    As ``_Search``, it begins where other replicates have their bandwidths: two or three evaluations instead of eleven.
    """

    def __init__(self, curve: SmoothECECurve, weights: _Floats) -> None:
        super().__init__(curve, weights)
        self.total = weights.sum(1)
        self.spectra: dict[int, Tensor] = {}  # by grid

    def fixed_points(self) -> _Floats:
        """Values (R,)."""
        curve, high, values = self.curve, self.high, self.values
        tried, final = _halving_grids()

        def evaluate(steps: NDArray[np.int64], rows: NDArray[np.int64]) -> _Floats:
            return self._smooth_ece(steps, tried[steps], rows)

        def first_guess() -> NDArray[np.int64]:
            return np.full(len(high), curve.start or STEPS // 16)

        self._close_in(first_guess(), evaluate, tried)
        # The published search tries _JUMP, on a coarse grid, before what lies below it, on a finer one, where the curve
        # is lower by up to two steps: it may have gone up there.
        doubtful = np.flatnonzero((high < _JUMP) & (high > _JUMP - 4))
        above = doubtful[evaluate(np.full(len(doubtful), _JUMP), doubtful) > _JUMP / STEPS]
        if len(above):
            self.low[above], high[above] = _JUMP, STEPS
            self._close_in(first_guess(), evaluate, tried)
        curve.start = int(np.median(high))
        again = np.flatnonzero(np.isnan(values) | (tried[high] != final[high]))
        values[again] = self._smooth_ece(high[again], final[high[again]], again)
        return values

    def _smooth_ece(self, steps: NDArray[np.int64], points: NDArray[np.int64], rows: NDArray[np.int64]) -> _Floats:
        """Bandwidths steps / STEPS (n,) and grids (n,) of the replicates ``rows`` (n,) -> smECE (n,)."""
        values = np.empty(len(steps))
        for here in _alike(points.tolist()):
            grid = int(points[here[0]])
            kernels = [kernel_on(int(step), grid, True) for step in steps[here]]
            if grid not in self.spectra:
                histograms = self.curve.histograms(grid, self.weights, np.arange(len(self.weights)))
                self.spectra[grid] = kernels[0].spectra(histograms)
            smooth = smoothed(kernels, self.spectra[grid][rows[here]]).abs().mean(1).numpy()
            values[here] = smooth / self.total[rows[here]]
        return values
