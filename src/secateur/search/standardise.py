"""From channel scores to unit scores, comparable across layers or raw.

FLAP standardises per layer and kind over channels, then averages over a unit's channels:

    z = (S - mean(S)) / std(S),   std with n-1 in the denominator;   unit = mean over its channels
"""

import torch
from jaxtyping import Float
from torch import Tensor


def channel_sum(scores: Float[Tensor, "unit width"]) -> Float[Tensor, " unit"]:
    """Raw unit scores: the sum over each unit's channels. Comparable within one axis only."""
    return scores.sum(dim=1)


def standardised(scores: Float[Tensor, "unit width"]) -> Float[Tensor, " unit"]:
    """Unit scores that compare across axes: FLAP's standardised mean. Equal scores give 0."""
    if scores.numel() < 2:
        return torch.zeros(len(scores))
    spread = scores.std(correction=1)
    if spread == 0:
        return torch.zeros(len(scores))
    return ((scores - scores.mean()) / spread).mean(dim=1)
