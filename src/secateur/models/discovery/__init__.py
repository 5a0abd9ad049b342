"""Traced discovery: the coupled structures of a family, found by running one tiny layer of it."""

from .trace import traced_couplings, traced_family

__all__ = ["traced_couplings", "traced_family"]
