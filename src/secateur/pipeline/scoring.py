"""The scoring stage: what was collected becomes scores of units, coarse ones sums of fine ones."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ..checkpoint import View, token
from ..errors import SecateurError
from ..importance import IMPORTANCE, MATRICES, Importance, gradients_needed, score
from ..progress import track
from ..search import Limits, Units
from ..stats import Reduction, Statistics, Tally
from ..structure import Axis, Structure


def fine_axes(structure: Structure, whole: Structure, layers: Limits) -> list[Axis]:
    """The axes whose statistics make the scores of those of `structure` that may lose units.

    Coarse ones are made of finer ones, which `whole` has.
    """
    chosen = layers.selected(structure.axes)
    names = dict.fromkeys(name for axis in chosen for name in axis.of or (axis.name,))
    return [whole.by_name[name] for name in names]


def scores(
    axes: Sequence[Axis],
    importance: str,
    weights: View,
    statistics: Statistics,
    *,
    seed: int,
    members: str = "sum",
    square_attention: bool = False,
    asks: bool = False,
) -> dict[str, Tensor]:
    """Scores by one formula: [unit, width] by axis.

    `asks` is whether windows are kept from the gradients, to ask what the loss is.

    Raises:
        SecateurError: the score needs statistics of one input, and an axis has many readers.
    """
    chosen = IMPORTANCE[importance]
    found: dict[str, Tensor] = {}
    made = _made_in_pass(chosen, seed, members, asks)
    for axis in track(axes, "scores", len(axes), "axis"):
        tally = statistics.tallies.get(axis.name, Tally())
        value = tally.terms.get(made)
        if value is None:
            value = _score(chosen, axis, weights, tally, seed, members)
        found[axis.name] = value**2 if square_attention and axis.kind == "attention" else value
    return found


_THIS_PROCESS = token()


def too_large(importance: str) -> bool:
    """Whether a score is made while its layer is there, and what it is made of goes with that.

    A matrix of each axis is too much for those of all to be there at once.
    """
    return any(name in MATRICES for name in IMPORTANCE[importance].needs)


def reduction(
    importance: str, weights: View, seed: int, members: str, terms: Statistics, asks: bool
) -> tuple[str, Reduction]:
    """Such a score for the pass: a name that says what it depends on, and how it is made.

    `terms` are the gradient terms that it asks for, `asks` as in `scores`.
    """
    chosen = IMPORTANCE[importance]

    def make(axis: Axis, tally: Tally) -> Tensor:
        own = terms.tallies.get(axis.name, Tally())
        whole = Tally(tally.accumulators, own.terms)
        return _score(chosen, axis, weights, whole, seed, members)

    return _made_in_pass(chosen, seed, members, asks), Reduction(chosen.statistics, make)


def _made_in_pass(importance: Importance, seed: int, members: str, asks: bool) -> str:
    """The name of a score that is made in the pass.

    What a score of somebody's own depends on nobody knows: no other process takes it.
    """
    package = __name__.partition(".")[0]
    own = importance.function.__module__.partition(".")[0] != package
    process = _THIS_PROCESS if own else ""
    of_gradients = f" {members} {asks}" if gradients_needed(importance) else ""
    return f"score {importance.name} {seed} {process}{of_gradients}"


def _score(
    chosen: Importance, axis: Axis, weights: View, tally: Tally, seed: int, members: str
) -> Tensor:
    if len(axis.consumers) == 1:
        weight = weights.tensor(axis.consumer.tensor) if "weight" in chosen.needs else None
        return score(chosen, axis, weight, tally, seed=seed, members=members)
    if not set(chosen.needs) <= {"weight", "generator"}:
        raise SecateurError(
            f"The score {chosen.name!r} looks at the input of one consumer, and the"
            f" {axis.granularity} units have {len(axis.consumers)}.\n"
            "Type --importance magnitude-l2 (or magnitude-l1, random)."
        )
    parts = []
    for consumer in axis.consumers:
        alone = replace(axis, members=(consumer,))
        weight = weights.tensor(consumer.tensor) if "weight" in chosen.needs else None
        parts.append(score(chosen, alone, weight, tally, seed=seed).sum(dim=1))
    return torch.stack(parts).sum(dim=0)[:, None]


def sums_of_parts(structure: Structure, fine: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Scores of the axes of `structure`: a coarse unit's is the sum of those in it."""
    found: dict[str, Tensor] = {}
    for axis in structure.axes:
        parts = [fine[name] for name in axis.of or (axis.name,) if name in fine]
        if axis.of and parts:
            sums = [part.reshape(axis.units, -1).sum(dim=1, keepdim=True) for part in parts]
            found[axis.name] = torch.stack(sums).sum(dim=0)
        elif parts:
            found[axis.name] = parts[0]
    return found


def sums_by_sample(
    structure: Structure, fine: Mapping[str, Tensor] | None
) -> dict[str, Tensor] | None:
    """The same of scores by calibration sample, [sample, unit]."""
    if fine is None:
        return None
    turned = {name: own.T for name, own in fine.items()}
    found: dict[str, Tensor] = {}
    for axis in structure.axes:
        parts = [turned[name] for name in axis.of or (axis.name,) if name in turned]
        if not parts:
            continue
        count = parts[0].shape[1]
        sums = [part.reshape(axis.units, -1, count).sum(dim=1) for part in parts]
        found[axis.name] = torch.stack(sums).sum(dim=0).T
    return found


def gates_of_parts(
    structure: Structure, whole: Structure, gates: Mapping[str, Tensor]
) -> dict[Axis, Float[Tensor, " _"]]:
    """Gates of the fine axes in `whole` by those of the axes of `structure`; gradients pass.

    A part of several units is multiplied by the gates of all of them.
    """
    found: dict[Axis, Tensor] = {}
    for axis in (axis for axis in structure.axes if axis.name in gates):
        for fine in (whole.by_name[name] for name in axis.of or (axis.name,)):
            parts = gates[axis.name].repeat_interleave(fine.units // axis.units)
            found[fine] = found[fine] * parts if fine in found else parts
    return found


def masks_of_parts(
    structure: Structure, whole: Structure, gone: Sequence[Units]
) -> dict[Axis, Bool[Tensor, "choice _"]]:
    """Masks of the fine axes in `whole` by choices of units `gone` of the axes of `structure`."""
    masks: dict[Axis, Tensor] = {}
    for axis in structure.axes:
        mask = torch.zeros(len(gone), axis.units, dtype=torch.bool)
        for row, units in zip(mask, gone, strict=True):
            row[list(units.get(axis.name, ()))] = True
        for fine in (whole.by_name[name] for name in axis.of or (axis.name,)):
            parts = mask.repeat_interleave(fine.units // axis.units, dim=1)
            masks[fine] = masks[fine] | parts if fine in masks else parts
    return masks
