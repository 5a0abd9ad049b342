"""Mean and variance of inputs, streamed.

For a batch B of n_B tokens with mean m_B and squared deviations M_B = sum (x - m_B)^2, merged into
n, m, M (Chan, Golub, LeVeque 1979; one token at a time it is Welford's):

    d = m_B - m;  m += d n_B/(n + n_B);  M += M_B + d^2 n n_B/(n + n_B);  n += n_B

A batch is read once, in fp32, about a mean c that is known before (that of the batches so far, or
of the first tokens): with s = sum (x - c) and q = sum (x - c)^2,

    m_B = c + s/n_B,  M_B = q - s^2/n_B

where nothing cancels, as c is near m_B. The merge is in fp64, on the device of the inputs: the
result equals the two-pass value over all tokens.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from ..ranks import Ranks
from .blocks import in_cache


@dataclass
class Moments:
    """Running count, mean and sum of squared deviations per channel (fp64)."""

    count: int
    mean: Float[Tensor, " channel"]
    deviations: Float[Tensor, " channel"]

    @classmethod
    def empty(cls, channels: int) -> "Moments":
        """Nothing seen yet."""
        zeros = torch.zeros(channels, dtype=torch.float64)
        return cls(0, zeros, zeros.clone())

    def update(self, inputs: Float[Tensor, "token channel"]) -> None:
        """Add the tokens of one batch, whatever its dtype and device."""
        if not len(inputs):  # an expert that no token came to
            return
        near = self._near(inputs)
        total, squares = torch.zeros_like(near), torch.zeros_like(near)
        for rows in in_cache(inputs):
            values = rows.float() - near
            total += values.sum(dim=0)
            squares += values.square_().sum(dim=0)
        mean = total.double() / len(inputs)
        deviations = (squares.double() - mean.square() * len(inputs)).clamp(min=0)
        self.merge(Moments(len(inputs), near.double() + mean, deviations))

    def _near(self, inputs: Tensor) -> Float[Tensor, " channel"]:
        """A mean that is known before a batch is read."""
        if self.count:
            return self.mean.to(inputs.device, torch.float32)
        return next(in_cache(inputs)).float().mean(dim=0)

    def merge(self, other: "Moments") -> None:
        """Add what another pass (another batch, another process) has seen."""
        total = self.count + other.count
        if total == 0:
            return
        mean, deviations = self.mean.to(other.mean.device), self.deviations.to(other.mean.device)
        delta = other.mean - mean
        self.mean = mean + delta * (other.count / total)
        self.deviations = (
            deviations + other.deviations + delta.square() * (self.count * other.count / total)
        )
        self.count = total

    def of_all(self, ranks: Ranks) -> "Moments":
        """What all ranks have seen, merged in their order; on the CPU if there are several."""
        if not ranks.several:
            return self
        counts = ranks.each("moments", self.count)
        rows = ranks.gathered("moments", torch.stack([self.mean, self.deviations])[None])
        whole = Moments.empty(len(self.mean))
        for count, (mean, deviations) in zip(counts, rows, strict=True):
            whole.merge(Moments(count, mean, deviations))
        return whole

    @property
    def variance(self) -> Float[Tensor, " channel"]:
        """Population variance over all tokens."""
        return self.deviations / max(self.count, 1)

    def state(self) -> dict[str, Tensor]:
        """Tensors to save; `from_state` makes an equal value of them."""
        return {
            "count": torch.tensor(self.count),
            "mean": self.mean.cpu(),
            "deviations": self.deviations.cpu(),
        }

    @classmethod
    def from_state(cls, state: dict[str, Tensor]) -> "Moments":
        """Read what `state` gave."""
        return cls(int(state["count"]), state["mean"], state["deviations"])
