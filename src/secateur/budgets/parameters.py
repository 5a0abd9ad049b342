"""A number of parameters may stay: of the model that is written, added biases included."""

from collections.abc import Callable

from ..structure import Plan, Structure
from .amounts import PARAMETERS, amount, parameters_text, spelled
from .registry import Budget, Specs, register_budget


@register_budget("parameters")
def parameters(asked: str, structure: Structure, written: Callable[[Plan], Specs]) -> Budget:
    """So many parameters may stay."""

    def left(plan: Plan, specs: Specs | None) -> float:
        found = written(plan) if specs is None else specs
        return sum(spec.elements for spec in found.values())

    return Budget(
        option="--parameters",
        asked=asked,
        dense=float(structure.parameters),
        target=amount(asked, "--parameters", PARAMETERS, "5.4B, 108M, 950k"),
        costs={axis.name: axis.cost for axis in structure.axes},
        left=left,
        text=parameters_text,
        spelled=lambda value: spelled(value, PARAMETERS, "B M k"),
    )
