"""Mean and variance of inputs, streamed.

For a batch B of n_B tokens with mean m_B and squared deviations M_B = sum (x - m_B)^2, merged into
n, m, M (Chan, Golub, LeVeque 1979; one token at a time it is Welford's):

    d = m_B - m;  m += d n_B/(n + n_B);  M += M_B + d^2 n n_B/(n + n_B);  n += n_B

M_B takes two passes over the batch in fp32, the merge is in fp64: the result equals the two-pass
value over all tokens.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor


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
        inputs = inputs.float()
        mean = inputs.mean(dim=0)
        deviations = (inputs - mean).square().sum(dim=0)
        self.merge(Moments(len(inputs), mean.double().cpu(), deviations.double().cpu()))

    def merge(self, other: "Moments") -> None:
        """Add what another pass (another batch, another process) has seen."""
        total = self.count + other.count
        if total == 0:
            return
        delta = other.mean - self.mean
        self.mean = self.mean + delta * (other.count / total)
        self.deviations = (
            self.deviations + other.deviations + delta.square() * (self.count * other.count / total)
        )
        self.count = total

    @property
    def variance(self) -> Float[Tensor, " channel"]:
        """Population variance over all tokens."""
        return self.deviations / max(self.count, 1)

    def state(self) -> dict[str, Tensor]:
        """Tensors to save; `from_state` makes an equal value of them."""
        return {"count": torch.tensor(self.count), "mean": self.mean, "deviations": self.deviations}

    @classmethod
    def from_state(cls, state: dict[str, Tensor]) -> "Moments":
        """Read what `state` gave."""
        return cls(int(state["count"]), state["mean"], state["deviations"])
