"""Reading and writing Hugging Face checkpoint folders, one tensor at a time."""

from .companions import LARGEST as LARGEST_COMPANION
from .companions import belongs, companions, travelling
from .files import INDEX, chosen_file, listed_files, pickles
from .folder import new_file, new_folder
from .kept import Kept, checksum, crc, damaged, header
from .lock import locked
from .ours import EXPORT, companions_beside
from .packed import PARTS, Packed, packed, packed_linears, unpacked, unpacked_view
from .place import real_path, store_folder, training_file
from .renaming import token
from .shards import write_shards
from .store import GIB, Pass, Store, code_version, digest
from .view import OnDemand, TensorSpec, View, held, only, renamed, together, zero_filled
from .weights import folder_view, module_view, read_config, read_json, weight_files
