"""A share of the parameters is to go."""

from collections.abc import Callable

from ..structure import Plan, Structure
from .amounts import parameters_text
from .registry import Budget, Specs, register_budget


@register_budget("ratio")
def ratio(
    asked: float, structure: Structure, of: str, cut: Callable[[Plan], Specs] | None
) -> Budget:
    """A share of the parameters goes; biases that a repair adds are not set off."""
    whole = structure.parameters if of == "model" else structure.prunable

    def left(plan: Plan, specs: Specs | None) -> float:
        assert cut is not None, "left is None without"
        return sum(spec.elements for spec in cut(plan).values())

    dense = float(structure.parameters)
    return Budget(
        option="--ratio",
        asked=f"{asked:g}",
        dense=dense,
        target=dense - asked * whole,
        costs={axis.name: axis.cost for axis in structure.axes},
        left=left if cut is not None else None,
        text=parameters_text,
        spelled=lambda value: f"{(dense - value) / max(whole, 1):.3f}",
    )
