"""SAAP's stability: how much a unit's importance varies from one calibration sample to the next.

    M   = std_n(x) / (mean_n(x) + eps)            importance fluctuation of a unit
    ASI = zscore within the scope of log M        comparable across scopes

over the fused scores x^(n) of calibration samples n. M is the coefficient of variation: the plain
variance is importance in disguise (rank correlation .82 to .92), and pruning by it removes the best
units. The paper (2412.15127) names both indicators and prunes the most volatile units; the formulas
and `two_stage` and `joint`, which keep importance in the choice, are this project's completion.
"""

import warnings

import torch
from jaxtyping import Float
from torch import Tensor

from ..errors import SecateurError, SecateurWarning
from .standardise import standardised

# Importance relative to the scope's mean, and fluctuation, below which they count as nothing.
EPSILON = 1e-12
# Spread of log M that fp32 samples have by rounding; standardised, it would rank units by chance.
_ALIKE = 1e-6
# Weight of ASI beside standardised importance in `joint`.
LAMBDA = 0.1


def fluctuation(samples: Float[Tensor, "sample unit"]) -> Float[Tensor, " unit"]:
    """M of every unit, fp64; identical samples give exactly 0, and so do units that are nothing.

    Raises:
        SecateurError: fewer than two samples.
    """
    if len(samples) < 2:
        raise SecateurError(
            "A search by stability compares calibration samples; there is"
            f" {len(samples) or 'none'}.\nType --samples 2 or more."
        )
    samples = samples.double()
    spread = (samples - samples[:1]).std(dim=0)
    return spread / (samples.mean(dim=0) + EPSILON * samples.mean()).clamp(min=1e-300)


def instability(samples: Float[Tensor, "sample unit"]) -> Float[Tensor, " unit"]:
    """ASI of every unit: larger varies more than the scope's other units do."""
    logs = fluctuation(samples).clamp(min=EPSILON).log()
    if len(logs) < 2 or logs.std() < _ALIKE:
        return torch.zeros(len(logs))
    return standardised(logs[:, None]).float()


def steady(
    scores: Float[Tensor, "unit width"], samples: Float[Tensor, "sample unit"]
) -> Float[Tensor, " unit"]:
    """-ASI: the least steady units go first, or set how many of a scope go."""
    return -instability(samples)


def joint(
    scores: Float[Tensor, "unit width"], samples: Float[Tensor, "sample unit"]
) -> Float[Tensor, " unit"]:
    """K = z(I) - lambda ASI."""
    return standardised(scores) - LAMBDA * instability(samples)


def volatile(
    scores: Float[Tensor, "unit width"], samples: Float[Tensor, "sample unit"]
) -> Float[Tensor, " unit"]:
    """The text of the paper to the letter: the most volatile units go, whatever they are worth."""
    warnings.warn(
        "The search 'stability' ignores importance and removes good units too; two_stage keeps it.",
        SecateurWarning,
        stacklevel=2,
    )
    return steady(scores, samples)
