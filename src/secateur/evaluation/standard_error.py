"""A mean over tokens and its standard error, where tokens come in windows.

    m = sum_w s_w / sum_w n_w
    error^2 = W / (W - 1) * sum_w (s_w - m n_w)^2 / (sum_w n_w)^2

over W windows, of which window w has n_w tokens that sum to s_w: the ratio estimator of sampling by
clusters (Cochran, Sampling Techniques, eq. 2.39 without the finite population). Tokens of one
window hang together, so windows, not tokens, are what was drawn.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from jaxtyping import Float, Int64
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Estimate:
    """A number and its standard error; None where a single draw says nothing of it."""

    value: float
    error: float | None

    def to_json(self) -> dict[str, float | None]:
        """Both by name."""
        return {"value": self.value, "standard_error": self.error}

    def __str__(self) -> str:
        return f"{self.value:.4g}" + ("" if self.error is None else f" ± {self.error:.2g}")


def mean_over_windows(sums: Float[Tensor, " window"], counts: Int64[Tensor, " window"]) -> Estimate:
    """The mean per token from each window's sum and number of tokens (fp64)."""
    told = counts > 0
    sums, counts = sums[told].double(), counts[told]
    total = counts.sum().double()
    mean = sums.sum() / total
    windows = len(counts)
    if windows < 2:
        return Estimate(mean.item(), None)
    apart = (sums - mean * counts).square().sum() * windows / (windows - 1)
    return Estimate(mean.item(), (apart.sqrt() / total).item())


def mean_of_draws(values: Sequence[float]) -> Estimate:
    """The mean of independent draws: s / sqrt(n), s^2 with n - 1."""
    mean = math.fsum(values) / len(values)
    if len(values) < 2:
        return Estimate(mean, None)
    squares = math.fsum((value - mean) ** 2 for value in values)
    return Estimate(mean, math.sqrt(squares / (len(values) - 1) / len(values)))


def mean_of_means(parts: Sequence[Estimate]) -> Estimate:
    """The mean of independent estimates, each of which counts the same."""
    mean = math.fsum(part.value for part in parts) / len(parts)
    if any(part.error is None for part in parts):
        return Estimate(mean, None)
    squares = math.fsum((part.error or 0.0) ** 2 for part in parts)
    return Estimate(mean, math.sqrt(squares) / len(parts))
