"""Repairs by name: which statistics each needs, and what it adds to the consumers' biases."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..importance import Ingredients
from ..structure import Axis, Plan
from .bias import bias
from .sequential import FITS


@dataclass(frozen=True, slots=True)
class Repair:
    """A repair: statistics needed, and a function of (axis, plan, weight, statistics) to a bias.

    The bias [out] is to be added to the consumer's, None if nothing is. With `fit`, the consumers
    are fitted in sequence instead (`secateur.surgery.sequential`).
    """

    name: str
    summary: str
    needs: tuple[str, ...]
    added_bias: Callable[[Axis, Plan, Tensor, Ingredients], Tensor | None]
    fit: str | None = None


def _nothing(axis: Axis, plan: Plan, weight: Tensor, statistics: Ingredients) -> Tensor | None:
    return None


def _bias(axis: Axis, plan: Plan, weight: Tensor, statistics: Ingredients) -> Tensor | None:
    removed = plan.removed_tensor(axis)
    if not len(removed):
        return None
    mean = statistics["input_mean"][axis.consumer.blocks.indices(torch.arange(axis.units))]
    return bias(axis.consumer.view(weight, axis.units)[removed], mean[removed])


REPAIRS = {
    "none": Repair("none", "Leave the kept weights as they are.", (), _nothing),
    "bias": Repair(
        "bias", "Add what the removed units gave on average (FLAP).", ("input_mean",), _bias
    ),
    "refit": Repair("refit", FITS["refit"], (), _nothing, "refit"),
    "mask-tuning": Repair("mask-tuning", FITS["mask_tuning"], (), _nothing, "mask_tuning"),
}
