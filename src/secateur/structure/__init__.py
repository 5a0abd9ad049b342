"""Which slices of which weights belong together, and which of them stay."""

from .axis import GRANULARITIES, Axis, Blocks, Kind, Member, Role, Structure
from .layout import Coupling, Shapes, Slice
from .plan import Plan, format_ranges, parse_ranges

__all__ = [
    "GRANULARITIES",
    "Axis",
    "Blocks",
    "Coupling",
    "Kind",
    "Member",
    "Plan",
    "Role",
    "Shapes",
    "Slice",
    "Structure",
    "format_ranges",
    "parse_ranges",
]
