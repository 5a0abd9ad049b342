"""Scores by fusion: what a coarse and a fine score say together, and what the loss says to it.

The coarse score of a unit is one sum over its weights times gradients, the fine one the sum of the
magnitudes (or the term that `fine` names). Both are taken window by window (`stats.taylor`), and so
they come for each calibration window too.
"""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jaxtyping import Bool, Float, Int64
from torch import Tensor

from ..errors import SecateurError
from ..fusion import FUSIONS, Scope, fuse
from ..stats import Statistics, Walk
from ..structure import Axis
from .probing import masked_losses

# What the coarse score of a fusion is made of.
_COARSE = ("per_sample_coarse", "samples_coarse")
# Of the calibration windows, the share that only asks what the loss is.
_PROBE_SHARE = 1 / 8
# A fusion asks on so many tokens, in windows of at least so many: a thousand decide the blend of a
# scope hardly better, and sixteen times as many are needed to halve its noise (docs/log.md).
_PROBE_TOKENS, _PROBE_LENGTH = 256, 64


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


def asking_windows(
    ids: Int64[Tensor, "window token"] | None,
) -> Int64[Tensor, "asking token"] | None:
    """The windows that only ask; None where there are too few to keep any from the rest."""
    return None if ids is None or len(ids) < 2 else ids[-_asking(len(ids)) :]


def searching_windows(ids: Int64[Tensor, "window token"]) -> Int64[Tensor, "asking token"]:
    """As many windows that a search takes divergences on: not those that judge what it finds.

    With too few windows for both, the same.
    """
    asking = _asking(len(ids))
    return ids[-2 * asking : -asking] if len(ids) > 2 * asking else ids[-asking:]


def few_tokens(asking: Int64[Tensor, "window token"]) -> Int64[Tensor, "_ _"]:
    """As many of the windows that ask, and as much of each, as the probes of a fusion need."""
    length = max(_PROBE_TOKENS // max(len(asking), 1), _PROBE_LENGTH)
    return asking[: max(_PROBE_TOKENS // length, 1), :length]


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
