"""Reading and writing Hugging Face checkpoint folders, one tensor at a time."""

from .files import INDEX, chosen_file, listed_files, pickles
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
    weight_files,
)

__all__ = [
    "INDEX",
    "PARTS",
    "FolderWeights",
    "ModuleWeights",
    "NoWeights",
    "OnDemand",
    "Packed",
    "PackedWeights",
    "TensorSpec",
    "Weights",
    "chosen_file",
    "listed_files",
    "new_folder",
    "packed",
    "pickles",
    "read_config",
    "read_json",
    "unpacked",
    "weight_files",
    "write_shards",
    "write_text",
]
