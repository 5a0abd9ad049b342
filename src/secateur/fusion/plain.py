"""Fusions that ask nothing: one granularity alone, or both in equal shares."""

from collections.abc import Mapping

import torch

from .blend import HYWIA, blended
from .registry import Fused, Scope, fusion


@fusion("coarse", paper=HYWIA, needs=("coarse",))
def coarse(scopes: Mapping[str, Scope]) -> dict[str, Fused]:
    """The coarse score alone."""
    return _everywhere(scopes, 1.0)


@fusion("fine", paper=HYWIA, needs=("fine",))
def fine(scopes: Mapping[str, Scope]) -> dict[str, Fused]:
    """The fine score alone."""
    return _everywhere(scopes, 0.0)


@fusion("mean", paper=HYWIA)
def mean(scopes: Mapping[str, Scope]) -> dict[str, Fused]:
    """Both scores in equal shares."""
    return _everywhere(scopes, 0.5)


def _everywhere(scopes: Mapping[str, Scope], share: float) -> dict[str, Fused]:
    alpha = torch.tensor([share, 1 - share])
    return blended(scopes, dict.fromkeys(scopes, alpha))
