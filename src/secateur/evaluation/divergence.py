"""How far other models are from one: what their predictions differ by on the same tokens.

    KL(p || q) = 1/T sum_t sum_v p_t(v) log( p_t(v) / q_t(v) )

over all tokens t of all windows, p the predictions of the one and q those of another.
"""

import math
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from jaxtyping import Int64
from torch import Tensor

from ..checkpoint import Kept, Store
from ..errors import SecateurError
from ..stats import Activations, LayerSource, Walk
from ..stats.activations import MEMORY_LIMIT
from ..stats.finite import not_finite
from ..stats.loss import summed_divergences
from .states import last_states


def divergences(
    dense: LayerSource,
    others: Iterable[LayerSource],
    tokens: Int64[Tensor, "window token"],
    *,
    batch: int,
    limit: int = MEMORY_LIMIT,
    store: Store | None = None,
    stage: str = "divergence",
) -> Iterator[float]:
    """KL(dense || other) of each of `others` (nats a token), one after the other.

    The dense model's last hidden states are made once. What was found is kept in `store`. It is
    infinite where another model computes what is not finite.

    Raises:
        SecateurError: an activation of the dense model is not finite.
    """
    how: dict[str, Any] = {"batch": batch, "limit": limit // 2, "store": store}
    first = Walk(dense, tokens, **how).shared()
    states: Activations | None = None
    for other in others:
        walk = Walk(other, tokens, **how).shared()
        kept = walk.kept("divergence", of=first.known_by)
        if not kept.whole:
            if states is None:
                (states,) = last_states([first], [Kept()], stage)
            try:
                (others_states,) = last_states([walk], [kept], stage)
                kept.end(value=_summed(first, states, walk, others_states))
            except SecateurError:
                yield math.inf
                continue
        yield kept.ended[1] / tokens.numel()


def _summed(first: Walk, dense: Activations, walk: Walk, other: Activations) -> float:
    """The divergence summed over tokens."""
    device = first.source.device
    total = torch.zeros((), dtype=torch.float64, device=device)
    with first.source.back() as logits_of, walk.source.back() as others_logits_of:
        for windows in first.batches:
            own, others = dense[windows].to(device), [other[windows].to(device)]
            total += summed_divergences(logits_of, own, others, others_logits_of)[0]
    (total,) = first.ranks.summed("divergence", [total])
    if not torch.isfinite(total):
        raise not_finite("the logits (the output of the head)", walk.source.dtype)
    return total.item()
