"""Reading and writing Hugging Face checkpoint folders, one tensor at a time."""

from .folder import new_file, new_folder
from .packed import PARTS, Packed, PackedWeights, packed, unpacked
from .place import real_path, training_file
from .renaming import token
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
    "new_file",
    "new_folder",
    "packed",
    "read_config",
    "read_json",
    "real_path",
    "token",
    "training_file",
    "unpacked",
    "write_shards",
]
