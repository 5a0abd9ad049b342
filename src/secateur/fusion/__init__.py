"""Fusions: two scores of one unit become one. One pure function a file, registered by name.

To add one, write a file like `precision.py` and import it here.
"""

from . import evidence, homoscedastic, plain, precision, regression, split_half, trained
from .registry import FUSIONS, Fused, Fusion, Probe, Scope, fuse, fusion

__all__ = [
    "FUSIONS",
    "Fused",
    "Fusion",
    "Probe",
    "Scope",
    "evidence",
    "fuse",
    "fusion",
    "homoscedastic",
    "plain",
    "precision",
    "regression",
    "split_half",
    "trained",
]
