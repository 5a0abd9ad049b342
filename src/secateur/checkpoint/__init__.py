"""Reading and writing Hugging Face checkpoint folders, one tensor at a time."""

from .companions import LARGEST as LARGEST_COMPANION
from .companions import Companions, belongs, companions, travelling
from .files import INDEX, chosen_file, listed_files, pickles
from .folder import new_file, new_folder
from .kept import Kept, checksum, damaged, header
from .ours import companions_beside
from .packed import PARTS, Packed, PackedWeights, packed, unpacked
from .place import real_path, store_folder, training_file
from .renaming import token
from .shards import write_shards
from .store import GIB, Pass, Store, code_version, digest
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
    "GIB",
    "INDEX",
    "LARGEST_COMPANION",
    "PARTS",
    "Companions",
    "FolderWeights",
    "Kept",
    "ModuleWeights",
    "NoWeights",
    "OnDemand",
    "Packed",
    "PackedWeights",
    "Pass",
    "Store",
    "TensorSpec",
    "Weights",
    "belongs",
    "checksum",
    "chosen_file",
    "code_version",
    "companions",
    "companions_beside",
    "damaged",
    "digest",
    "header",
    "listed_files",
    "new_file",
    "new_folder",
    "packed",
    "pickles",
    "read_config",
    "read_json",
    "real_path",
    "store_folder",
    "token",
    "training_file",
    "travelling",
    "unpacked",
    "weight_files",
    "write_shards",
]
