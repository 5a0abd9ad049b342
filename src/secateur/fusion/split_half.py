"""HyWIA without extra passes: the granularity that two halves of the samples agree on.

    a_t = mean over splits of spearman(mean of t over one half, mean of t over the other)
    alpha = softmax([a_c, a_f] / tau),  I = alpha_c c_hat + alpha_f f_hat

Query: the scores of one half; key: those of the other. This project's completion of 2403.10799.
"""

from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor

from .blend import HYWIA, attention, blended
from .evidence import TAU
from .probes import cosine, ranks
from .registry import BY_SAMPLE, Fused, Scope, fusion

SPLITS = 8


@fusion("split_half", paper=HYWIA, needs=BY_SAMPLE)
def split_half(
    scopes: Mapping[str, Scope],
    generator: torch.Generator,
    *,
    tau: float = TAU,
    splits: int = SPLITS,
) -> dict[str, Fused]:
    """Attention to the granularity whose ranking halves of the samples agree on."""
    alphas: dict[str, Tensor] = {}
    state = generator.get_state()
    for axis, scope in scopes.items():
        generator.set_state(state)  # the same splits for every scope, whatever else there is
        coarse, fine = scope.pair_by_sample()
        orders = [torch.randperm(len(coarse), generator=generator) for _ in range(splits)]
        agreement = torch.stack(
            [
                torch.stack([reliability(scores, order) for scores in (coarse, fine)])
                for order in orders
            ]
        ).mean(dim=0)
        alphas[axis] = attention(agreement, tau)
    return blended(scopes, alphas)


def reliability(by_sample: Float[Tensor, "sample unit"], order: Tensor) -> Float[Tensor, ""]:
    """Spearman correlation of the scores of two halves of the samples in `order`."""
    first, second = (by_sample[half].mean(dim=0) for half in order.tensor_split(2))
    return cosine(ranks(first), ranks(second))
