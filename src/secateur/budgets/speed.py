"""Time may be taken: by a token of decoding, on this machine, by a table of the model's shapes."""

from collections.abc import Callable

from ..structure import Plan, Structure
from .amounts import TIME, amount, spelled, time_text
from .registry import Budget, Specs, register_budget
from .table import Table


@register_budget("speedup")
def speedup(asked: float, structure: Structure, table: Table) -> Budget:
    """The dense model's time of a token, divided by this."""
    dense = table.dense
    return _timed(
        "--speedup",
        f"{asked:g}",
        structure,
        table,
        dense / asked,
        # rounded down, so that it can be reached
        lambda value: f"{int(100 * dense / value) / 100:.2f}",
    )


@register_budget("latency")
def latency(asked: str, structure: Structure, table: Table) -> Budget:
    """So long may a token take."""
    target = amount(asked, "--latency", TIME, "25ms, 800us, 0.5s")
    return _timed(
        "--latency", asked, structure, table, target, lambda value: spelled(value, TIME, "ms us")
    )


def _timed(
    option: str,
    asked: str,
    structure: Structure,
    table: Table,
    target: float,
    shown: Callable[[float], str],
) -> Budget:
    def left(plan: Plan, specs: Specs | None) -> float:
        return table.predicted(plan, structure)

    return Budget(
        option=option,
        asked=asked,
        dense=table.dense,
        target=target,
        costs={axis.name: table.cost(axis) for axis in structure.axes},
        left=left,
        text=time_text,
        spelled=shown,
        unit="ms",
        scale=1e9,
        timed=True,
    )
