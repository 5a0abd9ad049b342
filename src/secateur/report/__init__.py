"""Numbers as rows that people read."""

from .rows import evaluation_line, layer_rows, number_rows, plan_difference

__all__ = ["evaluation_line", "layer_rows", "number_rows", "plan_difference"]
