"""Importance scores: one pure function a file, registered by name.

To add one, write a file like `wifv.py` and import it here.
"""

from . import fluctuation, magnitude, random, wanda
from .registry import IMPORTANCE, Importance, importance
from .scoring import Ingredients, score, statistics_needed

__all__ = [
    "IMPORTANCE",
    "Importance",
    "Ingredients",
    "fluctuation",
    "importance",
    "magnitude",
    "random",
    "score",
    "statistics_needed",
    "wanda",
]
