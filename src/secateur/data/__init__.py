"""Calibration and evaluation text, and the token windows cut from it."""

from .generated import generated_documents
from .sources import EMBEDDED, HUB_SETS, HubSet, documents
from .training import (
    IGNORED,
    INSTRUCTION_SETS,
    Examples,
    instruction_examples,
    is_instructions,
)
from .windows import CHOICE, Windows, cut, running_text, sample_windows, token_hash

__all__ = [
    "CHOICE",
    "EMBEDDED",
    "HUB_SETS",
    "IGNORED",
    "INSTRUCTION_SETS",
    "Examples",
    "HubSet",
    "Windows",
    "cut",
    "documents",
    "generated_documents",
    "instruction_examples",
    "is_instructions",
    "running_text",
    "sample_windows",
    "token_hash",
]
