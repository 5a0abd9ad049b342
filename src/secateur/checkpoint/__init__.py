"""Reading and writing Hugging Face checkpoint folders, one tensor at a time."""

from .folder import new_folder, write_text
from .packed import PARTS, Packed, PackedWeights, packed, unpacked
from .shards import write_shards
from .weights import (
    FolderWeights,
    ModuleWeights,
    NoWeights,
    OnDemand,
    TensorSpec,
    Weights,
    read_config,
    read_json,
)

__all__ = [
    "PARTS",
    "FolderWeights",
    "ModuleWeights",
    "NoWeights",
    "OnDemand",
    "Packed",
    "PackedWeights",
    "TensorSpec",
    "Weights",
    "new_folder",
    "packed",
    "read_config",
    "read_json",
    "unpacked",
    "write_shards",
    "write_text",
]
