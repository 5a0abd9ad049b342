"""Importance scores: one pure function a file, registered by name.

To add one, write a file like `fluctuation.py` and import it here.
"""

from . import entropy, fisher, fluctuation, magnitude, obs, random, redundancy, taylor
from .members import REDUCTIONS
from .registry import IMPORTANCE, Importance, importance
from .scoring import MATRICES, Ingredients, gradients_needed, score

__all__ = [
    "IMPORTANCE",
    "MATRICES",
    "REDUCTIONS",
    "Importance",
    "Ingredients",
    "entropy",
    "fisher",
    "fluctuation",
    "gradients_needed",
    "importance",
    "magnitude",
    "obs",
    "random",
    "redundancy",
    "score",
    "taylor",
]
