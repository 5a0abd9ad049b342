"""What the loss is asked: sets of units over which the two granularities disagree most.

Units sorted by rank(c) - rank(f) are cut into runs of (nearly) equal length: the first runs hold
what the coarse score thinks little of and the fine one much, the last the reverse.
"""

from collections.abc import Mapping

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ..errors import SecateurError
from .blend import relative
from .registry import Probe, Scope

# Deviations from the mean, relative to the values, below which these count as constant.
_CONSTANT = 1e-9


def ranks(values: Float[Tensor, " unit"]) -> Float[Tensor, " unit"]:
    """Ranks from 0, fp64; equal values share their mean rank."""
    _, inverse, counts = values.unique(return_inverse=True, return_counts=True)
    ends = counts.cumsum(0).double()
    return (ends - (counts.double() + 1) / 2)[inverse]


def disagreement_runs(
    coarse: Float[Tensor, " unit"], fine: Float[Tensor, " unit"], probes: int
) -> Bool[Tensor, "probe unit"]:
    """`probes` disjoint sets that hold all units (as many as there are units, if they are fewer).

    Equal disagreement goes by the scores, so that the order of the units does not matter.
    """
    order = torch.arange(len(coarse))
    for key in (fine, coarse, ranks(coarse) - ranks(fine)):
        order = order[key[order].argsort(stable=True)]
    masks = torch.zeros(min(probes, len(order)), len(order), dtype=torch.bool)
    for mask, run in zip(masks, order.tensor_split(len(masks)), strict=True):
        mask[run] = True
    return masks


def keys(scope: Scope, masks: Bool[Tensor, "probe unit"]) -> Float[Tensor, "probe 2"]:
    """What each granularity says that the masked units are worth, relative to the scope's mean."""
    return torch.stack([masks.double() @ relative(scores) for scores in scope.pair()], dim=1)


def ask(probe: Probe, masks: Mapping[str, Bool[Tensor, "probe _"]]) -> Float[Tensor, " probe"]:
    """The losses with `masks`, fp64.

    Raises:
        SecateurError: not one finite loss a probe.
    """
    wanted = len(next(iter(masks.values())))
    losses = probe(masks).double().cpu()
    if losses.shape != (wanted,) or not torch.isfinite(losses).all():
        raise SecateurError(
            f"The probe gave losses of shape {list(losses.shape)} for {wanted} masks of"
            f" {', '.join(masks)}, or some are NaN; expected {wanted} finite losses."
        )
    return losses


def ask_each(
    probe: Probe, masks: Mapping[str, Bool[Tensor, "probe _"]]
) -> dict[str, Float[Tensor, " probe"]]:
    """The losses of each scope's masks with the other scopes whole: one question for all.

    Raises:
        SecateurError: as `ask`.
    """
    counts = [len(own) for own in masks.values()]
    combined: dict[str, Tensor] = {}
    start = 0
    for axis, own in masks.items():
        combined[axis] = torch.zeros(sum(counts), own.shape[1], dtype=torch.bool)
        combined[axis][start : start + len(own)] = own
        start += len(own)
    return dict(zip(masks, ask(probe, combined).split(counts), strict=True)) if masks else {}


def cosine(
    query: Float[Tensor, " probe"], key: Float[Tensor, "probe *granularity"]
) -> Float[Tensor, "*granularity"]:
    """Cosine of query and keys about their means: their correlation. 0 where one is constant."""
    centred, about = query - query.mean(), key - key.mean(dim=0)
    # What is left of a constant is rounding, and the direction of that means nothing.
    least = (_CONSTANT * query.norm() * key.norm(dim=0)).clamp(min=1e-30)
    return (centred @ about) / (centred.norm() * about.norm(dim=0)).maximum(least)
