"""Reading and writing Hugging Face checkpoint folders, one tensor at a time."""

from .companions import LARGEST as LARGEST_COMPANION
from .companions import Companions, belongs, companions, travelling
from .files import INDEX, chosen_file, listed_files, pickles
from .folder import new_file, new_folder
from .ours import companions_beside
from .packed import PARTS, Packed, packed, unpacked, unpacked_view
from .place import real_path, training_file
from .renaming import token
from .shards import write_shards
from .view import OnDemand, TensorSpec, View, held, only, renamed, together, zero_filled
from .weights import folder_view, module_view, read_config, read_json, weight_files

__all__ = [
    "INDEX",
    "LARGEST_COMPANION",
    "PARTS",
    "Companions",
    "OnDemand",
    "Packed",
    "TensorSpec",
    "View",
    "belongs",
    "chosen_file",
    "companions",
    "companions_beside",
    "folder_view",
    "held",
    "listed_files",
    "module_view",
    "new_file",
    "new_folder",
    "only",
    "packed",
    "pickles",
    "read_config",
    "read_json",
    "real_path",
    "renamed",
    "together",
    "token",
    "training_file",
    "travelling",
    "unpacked",
    "unpacked_view",
    "weight_files",
    "write_shards",
    "zero_filled",
]
