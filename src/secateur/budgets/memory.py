"""Bytes may stay: of the weights as they are written, and of the KV cache."""

from collections.abc import Callable

from ..structure import Axis, Plan, Structure
from ..units import size_text
from .amounts import BYTES, amount, spelled
from .cache import Cache
from .registry import Budget, Specs, register_budget


@register_budget("memory")
def memory(
    asked: str, structure: Structure, written: Callable[[Plan], Specs], cache: Cache
) -> Budget:
    """So many bytes may stay, of weights and KV cache: a KV group costs both, a channel weights."""
    whole = Plan({}, structure.architecture, structure.weights)
    dense = written(whole)

    def left(plan: Plan, specs: Specs | None) -> float:
        found = written(plan) if specs is None else specs
        return sum(spec.bytes for spec in found.values()) + cache.bytes(plan, structure)

    return Budget(
        option="--memory",
        asked=asked,
        dense=float(left(whole, dense)),
        target=amount(asked, "--memory", BYTES, "8GB, 600MB, 7.5GiB"),
        costs={
            axis.name: axis.cost * _itemsize(axis, dense) + cache.cost(axis)
            for axis in structure.axes
        },
        left=left,
        text=size_text,
        spelled=lambda value: spelled(value, BYTES, "GB MB kB B"),
        unit="bytes",
    )


def _itemsize(axis: Axis, specs: Specs) -> int:
    """Bytes of a value in the tensors of `axis`: those of the widest, which is the weights' own."""
    return max(
        (specs[m.tensor].dtype.itemsize for m in axis.members if m.tensor in specs), default=1
    )
