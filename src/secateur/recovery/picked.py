"""Log-probabilities of a few tokens of each row of logits, a block of rows at a time.

    log p_v = z_v - log sum_u exp z_u                             for the picked v
    dL/dz   = (g at the picked v, else 0) - p sum_v g_v           g = dL/dlog p

Of the size of the logits there are themselves and their gradient, in their own dtype: what is fp32
is made of one block, on the way forward and again on the way back, and stays in the cache.
"""

from collections.abc import Iterator
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from ..stats.blocks import blocks


def picked_logs(
    logits: Float[Tensor, "place vocabulary"], tokens: Int64[Tensor, "place pick"]
) -> Float[Tensor, "place pick"]:
    """The log-probabilities, fp32, of `tokens`; differentiable once."""
    found: Tensor = _Picked.apply(logits, tokens)
    return found


class _Picked(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, tokens: Tensor) -> Tensor:
        ctx.save_for_backward(logits, tokens)
        found = torch.empty(tokens.shape, dtype=torch.float32, device=logits.device)
        for rows in _blocks(logits):
            logs = torch.log_softmax(logits[rows], dim=-1, dtype=torch.float32)
            torch.gather(logs, -1, tokens[rows], out=found[rows])
        return found

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (given,) = gradients
        logits, tokens = ctx.saved_tensors
        found, whole = torch.empty_like(logits), given.sum(dim=-1, keepdim=True)
        for rows in _blocks(logits):
            own = torch.softmax(logits[rows], dim=-1, dtype=torch.float32).mul_(-whole[rows])
            found[rows] = own.scatter_add_(-1, tokens[rows], given[rows])
        return found, None


def _blocks(logits: Tensor) -> Iterator[slice]:
    count, width = logits.shape
    return blocks(count, width, logits.device.type)
