"""Model families: which structures they have, and how one layer at a time gets its weights."""

from .families import FAMILIES, Family, Part
from .opening import OpenModel, load, open_model, resolve_device, resolve_dtype
from .registration import register
from .streamed import StreamedModel, empty_model, filled
from .structures import declared_structure

__all__ = [
    "FAMILIES",
    "Family",
    "OpenModel",
    "Part",
    "StreamedModel",
    "declared_structure",
    "empty_model",
    "filled",
    "load",
    "open_model",
    "register",
    "resolve_device",
    "resolve_dtype",
]
