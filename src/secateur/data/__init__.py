"""Calibration and evaluation text, and the token windows cut from it."""

from .generated import generated_documents
from .sources import EMBEDDED, HUB_SETS, HubSet, documents
from .windows import CHOICE, Windows, cut, running_text, sample_windows, token_hash

__all__ = [
    "CHOICE",
    "EMBEDDED",
    "HUB_SETS",
    "HubSet",
    "Windows",
    "cut",
    "documents",
    "generated_documents",
    "running_text",
    "sample_windows",
    "token_hash",
]
