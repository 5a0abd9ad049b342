"""Normal matrices of a consumer: all that a least-squares repair needs to know of the tokens.

    Z  [token, in]    the student's inputs, kept channels only
    R  [token, out]   what the kept weights leave of the target: R = T - Z W^T - b

The residual is accumulated instead of the target, so that where nothing is left, nothing is solved
for, to the bit.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor


@dataclass
class Normal:
    """Running sums over tokens: Z^T Z, Z^T R, and the sums and squares of the affine column."""

    count: int
    inputs: Float[Tensor, "in in"]
    cross: Float[Tensor, "in out"]
    input_sum: Float[Tensor, " in"]
    residual_sum: Float[Tensor, " out"]
    square: Float[Tensor, ""]

    @classmethod
    def empty(
        cls,
        inputs: int,
        outputs: int,
        *,
        dtype: torch.dtype = torch.float64,
        device: torch.device | str = "cpu",
    ) -> "Normal":
        """Nothing seen yet; sums are kept in `dtype` (fp64 or fp32)."""

        def zeros(*shape: int) -> Tensor:
            return torch.zeros(shape, dtype=dtype, device=device)

        return cls(
            0, zeros(inputs, inputs), zeros(inputs, outputs), zeros(inputs), zeros(outputs), zeros()
        )

    def update(
        self, inputs: Float[Tensor, "token in"], residual: Float[Tensor, "token out"]
    ) -> None:
        """Add the tokens of one batch."""
        inputs, residual = inputs.to(self.inputs.dtype), residual.to(self.inputs.dtype)
        self.inputs.addmm_(inputs.T, inputs)
        self.cross.addmm_(inputs.T, residual)
        self.input_sum += inputs.sum(dim=0)
        self.residual_sum += residual.sum(dim=0)
        self.square += residual.square().sum()
        self.count += len(inputs)

    def error(
        self,
        change: Float[Tensor, "out in"] | None = None,
        added: Float[Tensor, " out"] | None = None,
    ) -> float:
        """Squared error summed over tokens and outputs, after dW = `change` and db = `added`."""
        value = self.square.clone()
        if change is not None:
            value += ((self.inputs @ change.T - 2 * self.cross) * change.T).sum()
        if added is not None:
            value += self.count * added.square().sum() - 2 * added @ self.residual_sum
        if change is not None and added is not None:
            value += 2 * added @ (change @ self.input_sum)
        return max(float(value), 0.0)
