"""Model families: which structures they have, and how one layer at a time gets its weights."""

from .conversion import converted, reverted
from .families import FAMILIES, Family, Part, layout_for
from .left import LeftWhole, left_whole
from .opening import LIVE, OpenModel, load, open_config, open_model, resolve_device, resolve_dtype
from .registration import register
from .streamed import StreamedModel, empty_model, filled
from .structures import layer_sizes, structure_of

__all__ = [
    "FAMILIES",
    "LIVE",
    "Family",
    "LeftWhole",
    "OpenModel",
    "Part",
    "StreamedModel",
    "converted",
    "empty_model",
    "filled",
    "layer_sizes",
    "layout_for",
    "left_whole",
    "load",
    "open_config",
    "open_model",
    "register",
    "resolve_device",
    "resolve_dtype",
    "reverted",
    "structure_of",
]
