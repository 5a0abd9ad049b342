"""Numbers as rows that people read."""

from .rows import evaluation_line, layer_rows, number_rows, plan_difference
from .tables import comparison_columns, comparison_row, write_comparison

__all__ = [
    "comparison_columns",
    "comparison_row",
    "evaluation_line",
    "layer_rows",
    "number_rows",
    "plan_difference",
    "write_comparison",
]
