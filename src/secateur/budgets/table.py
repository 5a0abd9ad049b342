"""What a token of decoding takes, by the widths of the layers: a table of the model's own shapes.

    time(plan) = constant + sum over axes of line(axis, units kept)

A line holds what the linears of an axis (producers and consumers together) and attention over the
cache take at the dense width and at some smaller ones, straight in between. Axes that are alike are
timed once. The constant is what the dense model takes beside its axes: embedding, norms, head, and
what the code itself takes. A layer that goes takes its part of it along, but for the head's.

Times are in picoseconds.
"""

import math
from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from ..errors import SecateurError
from ..structure import Axis, Plan, Structure
from .cache import Cache
from .registry import Specs

# Shares of its units at which an axis is timed; one with few has all its widths timed.
SHARES = (0.06, 0.12, 0.25, 0.38, 0.5, 0.62, 0.75, 0.88, 1.0)
_FEW = 8
_SECOND = 1e12
_UNTIMED = ("expert", "hidden")


@dataclass(frozen=True, slots=True)
class Attention:
    """A token's attention over `tokens` of a cache."""

    queries: int
    groups: int
    head_dim: int
    tokens: int


@dataclass(frozen=True, slots=True)
class Work:
    """What is timed: linears (out, in) one after the other on `batch` tokens, and attention."""

    linears: tuple[tuple[int, int], ...]
    batch: int
    attention: Attention | None = None


# Seconds that a work takes.
Timer = Callable[[Work], float]


@dataclass(frozen=True)
class Line:
    """Times at some numbers of kept units, both ascending; none takes none."""

    kept: tuple[int, ...]
    times: tuple[float, ...]

    @classmethod
    def of(cls, kept: Sequence[int], times: Sequence[float]) -> "Line":
        """The line through what was measured, made one that never falls.

        Between the largest of what narrower widths take and the least of what wider ones do.
        """
        upper = [max(times[: at + 1]) for at in range(len(times))]
        lower = [min(times[at:]) for at in range(len(times))]
        return cls(tuple(kept), tuple((a + b) / 2 for a, b in zip(upper, lower, strict=True)))

    def at(self, units: int) -> float:
        """The time with so many units kept."""
        if units == 0 or not self.kept:
            return 0.0
        right = min(max(bisect_left(self.kept, units), 1), len(self.kept) - 1)
        if len(self.kept) == 1:
            return self.times[0] * units / self.kept[0]
        (x0, x1), (y0, y1) = self.kept[right - 1 : right + 1], self.times[right - 1 : right + 1]
        return max(y0 + (y1 - y0) * (units - x0) / (x1 - x0), 0.0)

    @property
    def slope(self) -> float:
        """The time of one unit, on average."""
        if len(self.kept) < 2:
            return self.times[0] / self.kept[0] if self.kept else 0.0
        return (self.times[-1] - self.times[0]) / (self.kept[-1] - self.kept[0])


@dataclass(frozen=True)
class Table:
    """`lines` by the name of a fine axis; `each` is what of the `constant` goes with a layer."""

    lines: Mapping[str, Line]
    units: Mapping[str, int]
    constant: float
    each: float

    @property
    def dense(self) -> float:
        """The time of a token of the dense model."""
        return self.constant + sum(line.at(self.units[n]) for n, line in self.lines.items())

    def cost(self, axis: Axis) -> int:
        """What leaves with one unit, about; one at least."""
        if not axis.of:
            return max(round(self.lines[axis.name].slope), 1)
        whole = sum(self.lines[part].at(self.units[part]) for part in axis.of)
        return max(round(whole + (self.each if axis.kind == "layer" else 0.0)), 1)

    def predicted(self, plan: Plan, structure: Structure) -> float:
        """The time of a token of the model that a plan, of the axes of `structure`, leaves."""
        kept, constant = dict(self.units), self.constant
        for axis in structure.axes:
            if axis.name in kept:
                kept[axis.name] = len(plan.kept(axis))
        for axis in structure.axes:
            if axis.of and plan.removed(axis):
                kept |= dict.fromkeys(axis.of, 0)
                constant -= self.each if axis.kind == "layer" else 0.0
        return max(constant, 0.0) + sum(line.at(kept[n]) for n, line in self.lines.items())


def measured_table(
    structure: Structure,
    whole: Structure,
    specs: Specs,
    cache: Cache,
    *,
    grid: Callable[[Axis], int],
    routed: int,
    head: tuple[int, int],
    timer: Timer,
    dense: Callable[[], float] | None,
) -> Table:
    """The table of the axes of `structure`; `whole` has those of every granularity.

    `grid` gives the steps of an axis' width, `routed` the experts that a token goes to, `head` the
    shape of the head. `dense` measures the seconds of a token of the dense model; without one, as
    where it does not fit into memory, the head alone is taken for all that is no axis.

    Raises:
        SecateurError: units that this does not tell the time of.
    """
    axes = timed_axes(structure, whole)
    found: dict[Work, float] = {}

    def seconds(work: Work) -> float:
        if work not in found:
            found[work] = timer(work)
        return found[work]

    lines = {}
    for axis in axes:
        kept = widths(axis, grid(axis))
        times = [_SECOND * seconds(work_of(axis, k, specs, cache, routed)) for k in kept]
        lines[axis.name] = Line.of(kept, times)
    units = {axis.name: axis.units for axis in axes}
    last = _SECOND * seconds(Work((head,), cache.batch))
    rest = last
    if dense is not None:
        inside = sum(line.at(units[name]) for name, line in lines.items())
        rest = max(_SECOND * dense() - inside, 0.0)
    # the linears of layers that may lose nothing are no part of what each layer takes besides
    told = {(axis.layer, axis.kind) for axis in axes}
    others = [a for a in whole.select().axes if (a.layer, a.kind) not in told]
    works = [work_of(axis, axis.units, specs, cache, routed) for axis in others]
    beside = rest - last - _SECOND * sum(map(seconds, works))
    layers = 1 + max((axis.layer for axis in whole.axes), default=0)
    return Table(lines, units, rest, max(beside, 0.0) / layers)


def timed_axes(structure: Structure, whole: Structure) -> list[Axis]:
    """The fine axes that the units of `structure` are, or are made of.

    Raises:
        SecateurError: some have no time of their own.
    """
    kinds = {axis.granularity for axis in structure.axes}
    for name in _UNTIMED:
        if name in kinds:
            raise SecateurError(
                f"--speedup and --latency know no time of {name} units.\nType --ratio, --parameters"
                " or --memory, or name other units (--granularity)."
            )
    names = dict.fromkeys(name for axis in structure.axes for name in axis.of or (axis.name,))
    axes = [whole.by_name[name] for name in names]
    if {"kv_group", "query_head"} <= {axis.granularity for axis in axes}:
        raise SecateurError(
            "--speedup and --latency take KV groups or query heads, not both.\n"
            "Type --granularity kv_group,channel."
        )
    return axes


def widths(axis: Axis, grid: int) -> list[int]:
    """The numbers of units at which `axis` is timed, ascending, on the grid of each group."""
    each = axis.units // axis.groups
    if each <= _FEW:
        found = set(range(1, each + 1))
    else:
        found = {min(max(round(s * each / grid) * grid, min(grid, each)), each) for s in SHARES}
    return [one * axis.groups for one in sorted(found)]


def work_of(axis: Axis, kept: int, specs: Specs, cache: Cache, routed: int) -> Work:
    """What a token asks of `axis` with so many units kept."""
    linears = []
    for name in dict.fromkeys(member.tensor for member in axis.members):
        shape = list(specs[name].shape) if name in specs else []
        if len(shape) < 2 or name.endswith("bias"):
            continue
        own = [member for member in axis.members if member.tensor == name]
        outer = math.prod(shape[dim] for dim in own[0].dims[:-1])
        width = sum(member.blocks.width for member in own)
        shape[own[0].dim] -= (axis.units - kept) * width // outer
        # a token passes some experts, a batch may pass all
        times = min(shape[0], routed * cache.batch) if len(shape) == 3 else 1
        linears += [(shape[-2], shape[-1])] * times
    attention = None
    if axis.kind == "attention":
        groups = axis.groups if axis.granularity == "query_head" else kept
        tokens = cache.tokens(axis.layer)
        attention = Attention(kept * axis.per_unit, groups, cache.head_dim, tokens)
    return Work(tuple(linears), cache.batch, attention)
