"""The registry of budgets: what a user has, in a currency of its own. Searches know of none.

    left(plan) <= target      the plan's model, in the currency; found by left(dense) - budget
    axis.cost                 what leaves with one unit of an axis, in the currency

A budget's parameter names are the list of what it needs:

| parameter | what it is |
|---|---|
| `asked` | the value of the option |
| `structure` | the axes that may lose units, and the parameters of the model |
| `of` | the setting of that name |
| `cut` | plans to the shapes that are left, by tensor; None where no weights are known |
| `written` | plans to the shapes that are written, with the biases that a repair will add |
| `cache` | the `Cache` at the context and batch that were named |
| `table` | the `Table`: what layers of the model take at several widths, measured here |
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from ..checkpoint import TensorSpec
from ..registry import Function, Registered, choose, entered
from ..structure import Axis, Plan, Structure

Specs = Mapping[str, TensorSpec]
# What a plan leaves; of the model that was made by it, the shapes are known.
Left = Callable[[Plan, Specs | None], float]

INGREDIENTS = "asked structure of cut written cache table"


@dataclass(frozen=True)
class Budget:
    """What may stay of a model, in a currency.

    `target` of the `dense` model's amount may stay. `costs` says by axis name what leaves with one
    unit, about; `left` what a plan leaves, exactly (None: the costs are exact, and add up). `text`
    is an amount for people, `spelled` one to type after the `option`. Amounts divided by `scale`
    are of the `unit` that numbers are told in; `timed` ones can be measured.
    """

    option: str
    asked: str
    dense: float
    target: float
    costs: Mapping[str, int]
    left: Left | None
    text: Callable[[float], str]
    spelled: Callable[[float], str]
    unit: str = "parameters"
    scale: float = 1.0
    timed: bool = False

    @property
    def wanted(self) -> float:
        """What is to go."""
        return self.dense - self.target

    def priced(self, axes: tuple[Axis, ...]) -> tuple[Axis, ...]:
        """`axes` with their costs in the currency."""
        return tuple(replace(axis, cost=self.costs[axis.name]) for axis in axes)

    def lost(self, plan: Plan, structure: Structure) -> float:
        """What goes by a plan."""
        if self.left is None:
            return sum(len(plan.removed(a)) * self.costs[a.name] for a in structure.axes)
        return self.dense - self.left(plan, None)

    def numbers(self, plan: Plan, specs: Specs | None = None) -> dict[str, float | str]:
        """What was asked for and what becomes of it, in `unit`."""
        after = self.dense if self.left is None else self.left(plan, specs)
        return {
            "asked": f"{self.option} {self.asked}",
            "unit": self.unit,
            "before": self.dense / self.scale,
            "target": self.target / self.scale,
            "after": after / self.scale,
        }


BUDGETS: dict[str, Registered] = {}


def register_budget(name: str) -> Callable[[Function], Function]:
    """Register the decorated function as the budget that the option `name` gives."""

    def make(function: Callable[..., Budget], needs: tuple[str, ...]) -> Registered:
        for need in needs:
            choose(f"parameter of the budget {name!r}:", need, dict.fromkeys(INGREDIENTS.split()))
        return Registered(name, function, "", needs)

    return entered("budget", name, BUDGETS, make)
