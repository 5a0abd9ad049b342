"""Which slices of which weights belong together, and which of them stay."""

from .axis import Axis, Blocks, Member, Structure
from .plan import Plan, format_ranges, parse_ranges

__all__ = ["Axis", "Blocks", "Member", "Plan", "Structure", "format_ranges", "parse_ranges"]
