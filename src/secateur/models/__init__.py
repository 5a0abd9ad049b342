"""Model families: which structures they have, and how one layer at a time gets its weights."""

from .conversion import converted, reverted
from .devices import (
    computing_dtype,
    dtype_name,
    multiplies_bfloat16,
    resolve_device,
    resolve_dtype,
)
from .families import FAMILIES, Family, layout_for
from .hub import hub_name
from .inputs import Outer
from .left import LeftWhole, left_whole
from .loading import load, loaded
from .opened import OpenModel
from .opening import LIVE, open_config, open_model
from .registration import auto_classes, register
from .streamed import StreamedModel, empty_model, filled
from .structures import routed_experts, structure_of
from .upload import check_upload, upload
