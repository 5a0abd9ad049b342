"""Importance scores: one pure function a file, registered by name.

To add one, write a file like `wifv.py` and import it here.
"""

from . import fluctuation, magnitude, random, taylor, wanda
from .members import REDUCTIONS
from .registry import IMPORTANCE, Importance, importance
from .scoring import Ingredients, gradients_needed, score, statistics_needed

__all__ = [
    "IMPORTANCE",
    "REDUCTIONS",
    "Importance",
    "Ingredients",
    "fluctuation",
    "gradients_needed",
    "importance",
    "magnitude",
    "random",
    "score",
    "statistics_needed",
    "taylor",
    "wanda",
]
