"""Gram matrix X^T X of inputs, streamed, in fp32 on the device of the inputs.

fp32 because it is [channel, channel]: 485 MB for 11008 channels, twice that in fp64.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from ..ranks import Ranks

# So many tokens are made fp32 at a time.
_ROWS = 256


@dataclass
class Gram:
    """Running count and X^T X."""

    count: int
    products: Float[Tensor, "channel channel"]

    @classmethod
    def empty(cls, channels: int) -> "Gram":
        """Nothing seen yet."""
        return cls(0, torch.zeros(channels, channels))

    def update(self, inputs: Float[Tensor, "token channel"]) -> None:
        """Add the tokens of one batch, whatever its dtype and device."""
        if self.products.device != inputs.device:
            empty = torch.zeros(self.products.shape, device=inputs.device)
            self.products = self.products.to(inputs.device) if self.count else empty
        for some in inputs.split(_ROWS):
            some = some.float()
            self.products.addmm_(some.T, some)
        self.count += len(inputs)

    def of_all(self, ranks: Ranks) -> "Gram":
        """What all ranks have seen."""
        (products,) = ranks.summed("gram", [self.products])
        return Gram(sum(ranks.each("gram", self.count)), products)

    @property
    def gram(self) -> Float[Tensor, "channel channel"]:
        """X^T X over all tokens (a sum, not a mean)."""
        return self.products.cpu()

    def state(self) -> dict[str, Tensor]:
        """Tensors to save; `from_state` makes an equal value of them."""
        return {"count": torch.tensor(self.count), "products": self.products.cpu()}

    @classmethod
    def from_state(cls, state: dict[str, Tensor]) -> "Gram":
        """Read what `state` gave."""
        return cls(int(state["count"]), state["products"])
