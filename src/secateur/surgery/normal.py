"""What a least-squares repair knows of the tokens that pass a consumer, however that is held.

    Z  [token, in]    the student's inputs, kept channels only
    R  [token, out]   what the kept weights leave of the target: R = T - Z W^T - b

The residual is kept instead of the target, so that where nothing is left, nothing is solved for, to
the bit. Z_c and R_c are both about their means over tokens; where tokens have weights, rows and
means are weighed. `Products` has the normal matrices of any number of tokens (`sums`), `Tokens` the
rows themselves, which are less where they are fewer than channels (`rows`). The fit is the same:

    dW^T = (Z_c^T Z_c + lambda D)^-1 Z_c^T R_c,   D = diag(Z^T Z)
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from ..solve import Factor


@dataclass(frozen=True)
class Solution:
    """dW for one damping, and what it moves the mean of the outputs by: dW mean(Z).

    `factor` is that of the damped system that was solved, the power of each channel one.
    """

    change: Float[Tensor, "out in"]
    moved: Float[Tensor, " out"]
    factor: Factor


@dataclass(frozen=True)
class Normal(ABC):
    """Tokens at a consumer: `count` is the sum of their weights, `square` of all squares of R.

    `mean` is that of the inputs, `left` that of the residual. `noise` is how large the rounding of
    Z_c^T Z_c is in its spectral norm, where the power of each channel is one.
    """

    count: float
    mean: Float[Tensor, " in"]
    left: Float[Tensor, " out"]
    square: float
    noise: float

    @property
    @abstractmethod
    def power(self) -> Float[Tensor, " in"]:
        """The sum of squares of each channel, D."""

    @property
    @abstractmethod
    def inputs(self) -> Float[Tensor, "in in"]:
        """Z^T Z."""

    @property
    @abstractmethod
    def cross(self) -> Float[Tensor, "in out"]:
        """Z^T R."""

    @abstractmethod
    def double(self) -> "Normal":
        """The same in fp64: for solving, which loses more digits than adding."""

    @abstractmethod
    def about_zero(self) -> "Normal":
        """The same tokens for a fit without a constant column: nothing is about a mean."""

    @abstractmethod
    def solved(self, damping: float, where: str) -> Solution:
        """DW for a finite damping; `where` names the layer in messages.

        Raises:
            SecateurError: something is not finite.
        """

    @abstractmethod
    def unchanged(self) -> Float[Tensor, "out in"]:
        """A change that changes nothing."""

    @abstractmethod
    def error(
        self,
        change: Float[Tensor, "out in"] | None = None,
        added: Float[Tensor, " out"] | None = None,
    ) -> float:
        """Squared error summed over tokens and outputs, after dW = `change` and db = `added`."""

    def scales(self) -> Float[Tensor, " in"]:
        """What brings the power of every channel to one; a channel that gives nothing stays."""
        power = self.power
        return torch.where(power > 0, power, torch.ones_like(power)).rsqrt()
