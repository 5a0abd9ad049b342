"""Reading and writing Hugging Face checkpoint folders, one tensor at a time."""

from .folder import new_folder, write_text
from .shards import write_shards
from .weights import (
    FolderWeights,
    ModuleWeights,
    NoWeights,
    TensorSpec,
    Weights,
    read_config,
    read_json,
)

__all__ = [
    "FolderWeights",
    "ModuleWeights",
    "NoWeights",
    "TensorSpec",
    "Weights",
    "new_folder",
    "read_config",
    "read_json",
    "write_shards",
    "write_text",
]
