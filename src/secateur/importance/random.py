"""Random scores: what any method must beat."""

import torch
from jaxtyping import Float
from torch import Tensor

from .registry import importance


@importance("random", paper="https://arxiv.org/abs/2305.11627")
def random(
    weight: Float[Tensor, "unit width fan"], generator: torch.Generator
) -> Float[Tensor, " unit"]:
    """A uniform number for each unit, from the run's seed."""
    return torch.rand(len(weight), generator=generator)
