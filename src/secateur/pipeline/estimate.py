"""Scores by fusion: what a coarse and a fine score say together, and what the loss says to it.

The coarse score of a unit is one sum over its weights times gradients, the fine one the sum of the
magnitudes (or the term that `fine` names). Both are taken window by window (`stats.taylor`), and so
they come for each calibration window too.
"""

import itertools
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from ..checkpoint import Kept, digest
from ..errors import SecateurError
from ..fusion import FUSIONS, Scope, fuse
from ..stats import LayerStep, Statistics, Walk
from ..stats.collect import find
from ..stats.loss import summed_loss
from ..stats.stream import hidden_of
from ..stats.substitute import substituted
from ..structure import Axis

# What the coarse score of a fusion is made of.
_COARSE = ("per_sample_coarse", "samples_coarse")
# Of the calibration windows, the share that only asks what the loss is.
_PROBE_SHARE = 1 / 8


@dataclass(frozen=True)
class Estimate:
    """Scores by axis; of a fusion also those by sample, and the shares of coarse and fine."""

    scores: Mapping[str, Float[Tensor, "unit _"]]
    by_sample: Mapping[str, Float[Tensor, "sample unit"]] | None = None
    blend: Mapping[str, Mapping[str, float]] | None = None


def fused_terms(fine: str) -> tuple[str, ...]:
    """Gradient terms that a fusion asks for; `fine` is the one that the fine score sums up."""
    return (*_COARSE, *_fine(fine))


def _fine(term: str) -> tuple[str, str]:
    return f"per_sample_{term}", f"samples_{term}"


def split_windows(
    ids: Int64[Tensor, "window token"], fusion: str | None, search: str | None = None
) -> tuple[Int64[Tensor, "scored token"], Int64[Tensor, "asking token"]]:
    """Windows for gradients, and those that only ask what the loss is.

    A `fusion` may ask it, and a `search` that is named here does.

    Raises:
        SecateurError: too few windows.
    """
    probes = fusion is not None and "probe" in FUSIONS[fusion].asks
    if not probes and search is None:
        return ids, ids[:0]
    scored = max(FUSIONS[fusion].samples, 1) if fusion else 1
    least = next(n for n in itertools.count(2) if n - _asking(n) >= scored)
    if len(ids) < least:
        who = f"fusion {fusion!r}" if probes else f"search {search!r}"
        raise SecateurError(
            f"The {who} needs at least {least} calibration windows, {_asking(least)} of"
            f" them to ask what the loss is; there are {len(ids)}.\nType --samples 50."
        )
    asking = _asking(len(ids))
    return ids[:-asking], ids[-asking:]


def _asking(windows: int) -> int:
    """Of so many windows, those that only ask what the loss is."""
    return max(1, int(windows * _PROBE_SHARE))


def fused_scores(
    fusion: str,
    axes: Sequence[Axis],
    statistics: Statistics,
    asking: Walk,
    *,
    seed: int,
    fine: str = "first",
    settings: Mapping[str, Any] | None = None,
) -> Estimate:
    """The fused scores of `axes`, comparable across them; `asking` has the windows for probes.

    `fine` is the Taylor term that the fine score sums up, `settings` are the fusion's own.

    Raises:
        SecateurError: too few windows for the fusion.
    """
    scopes = {axis.name: _scope(statistics[axis.name], fine) for axis in axes}
    by_name = {axis.name: axis for axis in axes}

    def probe(masks: Mapping[str, Bool[Tensor, "probe _"]]) -> Float[Tensor, " probe"]:
        by_axis = {by_name[name]: mask for name, mask in masks.items()}
        return masked_losses(asking, by_axis)

    fused = fuse(fusion, scopes, probe=probe, seed=seed, **(settings or {}))
    by_sample = {
        name: one.by_sample * one.scale for name, one in fused.items() if one.by_sample is not None
    }
    return Estimate(
        {name: one.scores[:, None] * one.scale for name, one in fused.items()},
        by_sample or None,
        {
            name: {"coarse": float(one.alpha[0]), "fine": float(one.alpha[1])}
            for name, one in fused.items()
        },
    )


def _scope(tally: Any, fine: str) -> Scope:
    mean, each = _fine(fine)
    return Scope(
        coarse=tally[_COARSE[0]].sum(dim=(0, 2)),
        fine=tally[mean].sum(dim=(0, 2)),
        coarse_by_sample=tally[_COARSE[1]],
        fine_by_sample=tally[each],
    )


def masked_losses(
    walk: Walk, masks: Mapping[Axis, Bool[Tensor, "probe _"]]
) -> Float[Tensor, " probe"]:
    """Mean loss on the tokens of `walk` with the units of each probe masked: all in one pass.

    What lies below a probe's first masked layer is the whole model, which runs once for all.
    """
    count, layers = len(walk.tokens), len(walk.source)
    masked = torch.stack([mask.any(dim=1) for mask in masks.values()])
    at = torch.tensor([axis.layer for axis in masks])[:, None].expand_as(masked)
    first = at.where(masked, layers).min(dim=0).values.tolist()
    # probe 0 is the whole model; batches hold windows of one probe
    several = walk.like(times=1 + len(first))
    units = {axis.name: mask.nonzero().tolist() for axis, mask in masks.items()}
    kept = several.kept("probes", masks=digest(units))
    if not kept.whole:
        kept.end(value=_asked(several, count, masks, first, kept))
    losses = torch.tensor(kept.ended[1], dtype=torch.float64)
    whole = torch.tensor([layer == layers for layer in first], dtype=torch.bool)
    return losses[1:].where(~whole, losses[0]) / walk.tokens[:, 1:].numel()


def _asked(
    walk: Walk,
    count: int,
    masks: Mapping[Axis, Bool[Tensor, "probe _"]],
    first: Sequence[int],
    kept: Kept,
) -> list[float]:
    """The pass: the summed loss of the whole model and of every probe, `count` windows each."""
    states = walk.embed(kept)
    for step in walk.layers(kept, {"hidden": states}, stage="probes"):
        here = {axis: mask for axis, mask in masks.items() if axis.layer == step.index}
        for probe in (p for p, layer in enumerate(first, 1) if layer == step.index):
            states[probe * count : (probe + 1) * count] = states[:count]
        for windows, inputs, (args, kwargs) in step.batches(states):
            probe = windows.start // count - 1
            if probe >= 0 and first[probe] > step.index:
                continue
            with _masked(step, here, probe), torch.no_grad():
                states[windows] = hidden_of(step.module(inputs, *args, **kwargs))
    losses = torch.zeros(1 + len(first), dtype=torch.float64)
    with walk.source.back() as logits_of:
        for windows in walk.batches:
            hidden = states[windows][:, :-1].flatten(0, 1)
            targets = walk.tokens[windows][:, 1:].flatten()
            losses[windows.start // count] += summed_loss(logits_of, hidden, targets).cpu()
    return losses.tolist()


def _masked(
    step: LayerStep, masks: Mapping[Axis, Bool[Tensor, "probe _"]], probe: int
) -> AbstractContextManager[None]:
    """What reads the masked units of one probe has zeros for them; nothing is masked for -1."""
    parameters: dict[tuple[nn.Module, str], nn.Parameter | None] = {}
    for axis, mask in masks.items() if probe >= 0 else ():
        units = mask[probe].nonzero().flatten()
        for member in axis.consumers if len(units) else ():
            module = find(step.module, member.module, axis.layer)
            place = module, member.parameter
            own = parameters.get(place)  # units that overlap are read by one consumer
            if own is None:
                own = module.get_parameter(member.parameter)
            masked = member.masked(own.detach(), units)
            parameters[place] = nn.Parameter(masked, requires_grad=False)
    return substituted(parameters)
