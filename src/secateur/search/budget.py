"""What may go: layer ranges, floors, alignment; and how much that is at most."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ..errors import SecateurError
from ..structure import Axis

# Grouped matrix products over experts want rows of 16 bytes, whatever --align says.
EXPERT_GRID = 8
# Quantised rows are made of blocks of 32; widths below this lose too much of a budget to that grid.
ROW_GRID, ROW_GRID_FROM, SMALL_GRID = 32, 1024, 8


def _parameters(amount: float) -> str:
    return f"{amount:,.0f} parameters"


@dataclass(frozen=True, slots=True)
class Wording:
    """How errors speak of the budget: who `asks`, the `option`, and `text` of an amount."""

    asks: str = "The ratio asks for"
    option: str = "--ratio"
    text: Callable[[float], str] = _parameters


PLAIN = Wording()


@dataclass(frozen=True, slots=True)
class Limits:
    """Which layers may lose units (`None`: all), and the grid of MLP widths (`None`: by width).

    `attention_layers` and `mlp_layers` take the place of `layers` for units of that kind.
    No layer loses its last attention unit, nor its last `align` MLP channels. So many devices as
    `parallel` says get the same number of KV groups, query heads and MLP channels of each layer.
    """

    layers: tuple[int, ...] | None = None
    align: int | None = 1
    attention_layers: tuple[int, ...] | None = None
    mlp_layers: tuple[int, ...] | None = None
    parallel: int = 1

    def grid(self, axis: Axis) -> int:
        """Widths that `axis` may have are multiples of this."""
        if axis.size == "K":  # fewer groups than devices are copied, and none can go
            return min(self.parallel, axis.units)
        if axis.size == "r":
            return max(self.parallel // axis.groups, 1)
        if axis.size not in ("I", "D"):
            return 1
        wide = axis.units // axis.groups >= ROW_GRID_FROM
        align = self.align or (ROW_GRID if wide else SMALL_GRID)
        align = max(align, EXPERT_GRID) if axis.granularity == "expert_channel" else align
        return math.lcm(align, self.parallel) if axis.size == "I" else align

    def floor(self, axis: Axis) -> int:
        """Units that stay at least in `axis` (in each of its groups)."""
        least = self.grid(axis) if axis.floor else 0
        return min(max(least, axis.floor), axis.units // axis.groups)

    def selected(self, axes: Sequence[Axis]) -> list[Axis]:
        """Axes in the layers that may lose units (the hidden width is in all of them)."""
        return [axis for axis in axes if self._allows(axis)]

    def _allows(self, axis: Axis) -> bool:
        own = {"attention": self.attention_layers, "mlp": self.mlp_layers}.get(axis.kind)
        chosen = self.layers if own is None else own
        return chosen is None or axis.layer in chosen or axis.layer < 0


def removable(axes: Sequence[Axis], limits: Limits) -> int:
    """Parameters that can go at most, with every axis down to its floor."""
    total = 0
    for axis in limits.selected(axes):
        total += (axis.units - limits.floor(axis) * axis.groups) * axis.cost
    return total


def check_budget(axes: Sequence[Axis], limits: Limits, budget: float) -> None:
    """Make sure that `budget` parameters can go.

    Raises:
        SecateurError: the floors and the layer range allow less; the message says how much.
    """
    most = removable(axes, limits)
    if budget <= most:
        return
    total = sum(axis.units * axis.cost for axis in axes)
    raise SecateurError(
        f"The ratio asks for {budget:,.0f} parameters, but at most {most:,} can go"
        f" ({most / total:.1%} of what the units hold): every layer keeps some of each.\n"
        "Lower --ratio, or widen --layers."
    )
