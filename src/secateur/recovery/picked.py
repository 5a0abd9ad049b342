"""Log-probabilities of a few tokens of each row of logits, with few passes over the vocabulary.

    log p_v = z_v - log sum_u exp z_u                             for the picked v
    dL/dz   = (g at the picked v, else 0) - p sum_v g_v           g = dL/dlog p

The one tensor of the size of the logits is made on the way forward and becomes the gradient on the
way back.
"""

from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor


def picked_logs(
    logits: Float[Tensor, "place vocabulary"], tokens: Int64[Tensor, "place pick"]
) -> Float[Tensor, "place pick"]:
    """The log-probabilities, fp32, of `tokens`; differentiable once."""
    found: Tensor = _Picked.apply(logits, tokens)
    return found


class _Picked(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, tokens: Tensor) -> Tensor:
        logs = torch.log_softmax(logits, dim=-1, dtype=torch.float32)
        if ctx.needs_input_grad[0]:
            ctx.logs, ctx.tokens, ctx.dtype = logs, tokens, logits.dtype
        return logs.gather(-1, tokens)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (given,) = gradients
        logs, ctx.logs = ctx.logs, None
        found = logs.exp_().mul_(-given.sum(dim=-1, keepdim=True))
        return found.scatter_add_(-1, ctx.tokens, given).to(ctx.dtype), None
