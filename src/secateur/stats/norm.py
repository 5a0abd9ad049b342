"""Root mean square of inputs, streamed: sqrt(mean over tokens of x^2) per channel.

The public FLAP and Wanda code keeps the sum over a sample's tokens instead of the mean; that is
the same up to one factor for all channels of a layer, and no ranking within a layer sees it.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from ..ranks import Ranks
from .blocks import in_cache


@dataclass
class Norm:
    """Running count and sum of squares per channel (fp64)."""

    count: int
    squares: Float[Tensor, " channel"]

    @classmethod
    def empty(cls, channels: int) -> "Norm":
        """Nothing seen yet."""
        return cls(0, torch.zeros(channels, dtype=torch.float64))

    def update(self, inputs: Float[Tensor, "token channel"]) -> None:
        """Add the tokens of one batch, whatever its dtype and device."""
        squares = torch.zeros(inputs.shape[-1], device=inputs.device)
        for rows in in_cache(inputs):
            squares += rows.float().square().sum(dim=0)
        self.merge(Norm(len(inputs), squares.double()))

    def merge(self, other: "Norm") -> None:
        """Add what another pass (another batch, another process) has seen."""
        self.count += other.count
        self.squares = self.squares.to(other.squares.device) + other.squares

    def of_all(self, ranks: Ranks) -> "Norm":
        """What all ranks have seen."""
        (squares,) = ranks.summed("norm", [self.squares])
        return Norm(sum(ranks.each("norm", self.count)), squares)

    @property
    def norm(self) -> Float[Tensor, " channel"]:
        """Root of the mean square over all tokens."""
        return (self.squares / max(self.count, 1)).sqrt()

    def state(self) -> dict[str, Tensor]:
        """Tensors to save; `from_state` makes an equal value of them."""
        return {"count": torch.tensor(self.count), "squares": self.squares.cpu()}

    @classmethod
    def from_state(cls, state: dict[str, Tensor]) -> "Norm":
        """Read what `state` gave."""
        return cls(int(state["count"]), state["squares"])
