"""Scores by fusion: what a coarse and a fine score say together, and what the loss says to it.

The coarse score of a unit is one sum over its weights times gradients, the fine one the sum of the
magnitudes; both are taken window by window (see `secateur.stats.taylor`), and so they come for each
calibration window too.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from ..errors import SecateurError
from ..evaluation import summed_loss
from ..fusion import FUSIONS, Scope, fuse
from ..importance import IMPORTANCE, gradients_needed, statistics_needed
from ..models import StreamedModel
from ..stats import LayerStep, Statistics, Walk
from ..stats.collect import find
from ..stats.stream import hidden_of
from ..structure import Axis

# What each granularity of a fusion is made of.
_COARSE, _FINE = ("per_sample_coarse", "samples_coarse"), ("per_sample_first", "samples_first")
# Of the calibration windows, the share that only asks what the loss is.
_PROBE_SHARE = 1 / 8


@dataclass(frozen=True)
class Estimate:
    """Scores by axis; of a fusion also those by sample, and the shares of coarse and fine."""

    scores: Mapping[str, Float[Tensor, "unit _"]]
    samples: Mapping[str, Float[Tensor, "sample unit"]] | None = None
    blend: Mapping[str, Mapping[str, float]] | None = None


def inputs_needed(importance: str | None) -> tuple[str, ...]:
    """Statistics of inputs that a score asks for (a fusion asks for none)."""
    return () if importance is None else statistics_needed(IMPORTANCE[importance])


def terms_needed(importance: str | None, fusion: str | None) -> tuple[str, ...]:
    """Gradient terms that a score or a fusion asks for."""
    if fusion is not None:
        return (*_COARSE, *_FINE)
    assert importance is not None, "there is a score or a fusion"
    return gradients_needed(IMPORTANCE[importance])


def split_windows(
    ids: Int64[Tensor, "window token"], fusion: str | None
) -> tuple[Int64[Tensor, "scored token"], Int64[Tensor, "asking token"]]:
    """Windows for gradients, and those that only ask what the loss is."""
    if fusion is None or "probe" not in FUSIONS[fusion].asks:
        return ids, ids[:0]
    if len(ids) < 2:
        raise SecateurError(
            f"The fusion {fusion!r} needs at least two calibration windows: one of them asks what"
            " the loss is.\nType --samples 50."
        )
    asking = max(1, int(len(ids) * _PROBE_SHARE))
    return ids[:-asking], ids[-asking:]


def fused_scores(
    fusion: str,
    axes: Sequence[Axis],
    statistics: Statistics,
    source: StreamedModel,
    asking: Int64[Tensor, "window token"],
    *,
    seed: int,
) -> Estimate:
    """The fused scores of `axes`, comparable across them.

    Raises:
        SecateurError: too few windows for the fusion, or axes whose units it cannot mask.
    """
    scopes = {axis.name: _scope(statistics[axis.name]) for axis in axes}
    by_name = {axis.name: axis for axis in axes}

    def probe(masks: Mapping[str, Bool[Tensor, "probe _"]]) -> Float[Tensor, " probe"]:
        return masked_losses(source, asking, {by_name[name]: m for name, m in masks.items()})

    fused = fuse(fusion, scopes, probe=probe, seed=seed)
    samples = {
        name: one.samples * one.scale for name, one in fused.items() if one.samples is not None
    }
    return Estimate(
        {name: one.scores[:, None] * one.scale for name, one in fused.items()},
        samples or None,
        {
            name: {"coarse": float(one.alpha[0]), "fine": float(one.alpha[1])}
            for name, one in fused.items()
        },
    )


def _scope(tally: Any) -> Scope:
    coarse, fine = tally[_COARSE[0]], tally[_FINE[0]]
    return Scope(
        coarse=coarse.sum(dim=(0, 2)),
        fine=fine.sum(dim=(0, 2)),
        coarse_samples=tally[_COARSE[1]],
        fine_samples=tally[_FINE[1]],
    )


def masked_losses(
    source: StreamedModel,
    tokens: Int64[Tensor, "window token"],
    masks: Mapping[Axis, Bool[Tensor, "probe _"]],
) -> Float[Tensor, " probe"]:
    """Mean loss on `tokens` with the units of each probe masked: all probes in one walk.

    Raises:
        SecateurError: units of experts, which no consumer of their own reads.
    """
    probes = len(next(iter(masks.values())))
    for axis in masks:
        if axis.consumer.parameter != "weight":
            raise SecateurError(
                f"This fusion masks units, and those of {axis.name} are inside experts.\n"
                "Type --fusion mean, split_half or homoscedastic."
            )
    walk = Walk(source, tokens.repeat(probes, 1), batch=len(tokens))
    states = walk.embed()
    for step in walk.layers():
        here = {axis: mask for axis, mask in masks.items() if axis.layer == step.index}
        for number, (windows, inputs, (args, kwargs)) in enumerate(step.batches(states)):
            with _masked(step, here, number), torch.no_grad():
                states[windows] = hidden_of(step.module(inputs, *args, **kwargs))
    losses = []
    with source.back() as logits_of:
        for windows in walk.batches:
            hidden = states[windows][:, :-1].flatten(0, 1)
            losses.append(summed_loss(logits_of, hidden, tokens[:, 1:].flatten()))
    return torch.tensor(losses) / tokens[:, 1:].numel()


@contextmanager
def _masked(
    step: LayerStep, masks: Mapping[Axis, Bool[Tensor, "probe _"]], probe: int
) -> Iterator[None]:
    """What reads the masked units of one probe gets zeros from them."""
    hooks = []
    for axis, mask in masks.items():
        gone = axis.consumer.blocks.indices(mask[probe].nonzero().flatten()).flatten()

        def zero(module: Any, args: tuple[Tensor, ...], gone: Tensor = gone) -> tuple[Tensor, ...]:
            return (args[0].index_fill(-1, gone.to(args[0].device), 0.0), *args[1:])

        consumer = find(step.module, axis.consumer.module, axis.layer)
        hooks.append(consumer.register_forward_pre_hook(zero))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
