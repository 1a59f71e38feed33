"""Fits costs online: recursive least squares with non-negative coefficients, robust to outliers and lies.

Every coefficient is fitted as a ratio to its prior, so all unknowns are near one whatever their units. Errors are
relative: a decode step of 10 ms counts as much as a prefill step of one second. Samples are forgotten exponentially,
those of steps with and without a prompt apart, so that an hour of decoding does not blur what prompts cost.
Outliers weigh less by Huber's rule (Huber 1964, "Robust Estimation of a Location Parameter").
"""

import math
from collections.abc import Sequence
from typing import TypeAlias

_Matrix: TypeAlias = list[list[float]]

FORGET_SAMPLES = 4000
"""After so many samples of its sort, a sample weighs 1/e."""
PRIOR_SAMPLES = 0.1
"""The last solution weighs as much as this many samples: it decides only what they leave open."""
HUBER = 3.0
"""Errors beyond so many times the usual one weigh as much as one there."""
LEAST_SECONDS, MOST_SECONDS = 1e-6, 3600.0
"""Nothing that is measured here takes less or more."""


class RatioFit:
    """seconds = sum of ratio[i] * parts[i], where parts are the seconds by the prior; ratios are non-negative.

    Where a machine is slower than the prior in all that was seen, it is taken to be so in what was not seen yet.
    """

    def __init__(self, num_parts: int, num_sorts: int = 1) -> None:
        self.ratios = (1.0,) * num_parts
        self.num_samples = 0
        self._products: list[_Matrix] = [[[0.0] * num_parts for _ in range(num_parts)] for _ in range(num_sorts)]
        self._targets = [[0.0] * num_parts for _ in range(num_sorts)]
        self._log_scale = 0.0
        self._usual_error = 1.0
        self._stale = False
        self._solved_once = False

    def add(self, parts: Sequence[float], seconds: float, sort: int = 0) -> bool:
        """Takes one sample. False: it cannot be true (not finite, not positive) and was not taken."""
        if not is_possible(parts, seconds):
            return False
        by_prior = math.fsum(parts)
        self.num_samples += 1
        self._log_scale += (math.log(seconds / by_prior) - self._log_scale) / min(self.num_samples, FORGET_SAMPLES)
        weight = self._trust(parts, seconds) / seconds**2
        keep = 1 - 1 / FORGET_SAMPLES
        products, targets = self._products[sort], self._targets[sort]
        for i, part in enumerate(parts):
            row = products[i]
            for j in range(i + 1):
                row[j] = keep * row[j] + weight * part * parts[j]
            targets[i] = keep * targets[i] + weight * part * seconds
        self._stale = True
        return True

    def solve(self) -> tuple[float, ...]:
        """The ratios by all samples so far."""
        if self._stale:
            self._stale = False
            self.ratios = self._solved()
        return self.ratios

    def error(self, parts: Sequence[float], seconds: float) -> float:
        """log(measured / fitted)."""
        fitted = sum(ratio * part for ratio, part in zip(self.ratios, parts, strict=True))
        return math.log(seconds / fitted) if fitted > 0 else math.inf

    def _trust(self, parts: Sequence[float], seconds: float) -> float:
        """Huber's weight of a sample; learns what error is usual."""
        if self.num_samples <= 16:
            return 1.0
        if self.num_samples == 17:
            self.solve()
        error = abs(self.error(parts, seconds))
        bound = HUBER * self._usual_error
        # Outliers move the bound too, but slowly: after a true change of speed it opens within some dozen samples.
        self._usual_error += (min(error, bound) - self._usual_error) / 64
        return min(1.0, bound / error) if error > 0 else 1.0

    def _solved(self) -> tuple[float, ...]:
        size = len(self.ratios)
        scale = math.exp(self._log_scale)
        products = [
            [sum(each[max(i, j)][min(i, j)] for each in self._products) for j in range(size)] for i in range(size)
        ]
        targets = [sum(each[i] for each in self._targets) for i in range(size)]
        for i, ratio in enumerate(self.ratios):
            # Pulled towards where it was: a direction that samples leave open stays, all others move at every solution.
            centre = max(ratio, scale / 1000) if products[i][i] > 0 and self._solved_once else scale
            products[i][i] += PRIOR_SAMPLES / centre**2 + 1e-9 * products[i][i]  # the latter against rounding
            targets[i] += PRIOR_SAMPLES / centre
        self._solved_once = True
        return non_negative_solution(products, targets)


def is_possible(parts: Sequence[float], seconds: float) -> bool:
    """Whether a sample can be true."""
    return LEAST_SECONDS <= seconds <= MOST_SECONDS and 0 < math.fsum(parts) < math.inf and min(parts) >= 0


def non_negative_solution(products: _Matrix, targets: Sequence[float]) -> tuple[float, ...]:
    """Least squares from its normal equations, with coefficients that come out negative set to zero, worst first.

    (Lawson and Hanson 1974, chapter 23, without their step back: a ridge keeps the equations well conditioned.)
    """
    free = list(range(len(targets)))
    while free:
        values = _solution([[products[i][j] for j in free] for i in free], [targets[i] for i in free])
        if min(values) >= 0:
            break
        free.pop(values.index(min(values)))
    found = dict(zip(free, values if free else (), strict=True))
    return tuple(found.get(i, 0.0) for i in range(len(targets)))


def _solution(matrix: _Matrix, right: list[float]) -> list[float]:
    """Of a symmetric positive definite system, by Gaussian elimination."""
    rows = [[*row, value] for row, value in zip(matrix, right, strict=True)]
    size = len(rows)
    for i in range(size):
        for k in range(i + 1, size):
            factor = rows[k][i] / rows[i][i]
            for j in range(i, size + 1):
                rows[k][j] -= factor * rows[i][j]
    values = [0.0] * size
    for i in reversed(range(size)):
        values[i] = (rows[i][size] - sum(rows[i][j] * values[j] for j in range(i + 1, size))) / rows[i][i]
    return values
