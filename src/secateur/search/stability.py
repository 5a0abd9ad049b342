"""SAAP's stability: how much a unit's importance varies from one calibration sample to the next.

    M   = std_n(x) / (mean_n(x) + eps)            importance fluctuation of a unit
    ASI = zscore within the scope of log M        comparable across scopes

over the fused scores x^(n) of calibration samples n. M is the coefficient of variation: the plain
variance is importance in disguise (rank correlation .82 to .92), and pruning by it removes the best
units. The paper (2412.15127) names both indicators and prunes the most volatile units; the formulas
and `two_stage` and `joint`, which keep importance in the choice, are this project's completion.
"""

import warnings
from collections.abc import Callable, Mapping

import torch
from jaxtyping import Float
from torch import Tensor

from ..errors import SecateurError, SecateurWarning
from .registry import BySample, Scores, register_search
from .removal import Removal, remove_lowest
from .standardise import standardised

SAAP = "https://arxiv.org/abs/2412.15127"

Ranked = Callable[[Mapping[str, Tensor]], Mapping[str, Removal]]

# Importance relative to the scope's mean, and fluctuation, below which they count as nothing.
EPSILON = 1e-12
# Spread of log M that fp32 samples have by rounding; standardised, it would rank units by chance.
_ALIKE = 1e-6
# Weight of ASI beside standardised importance in `joint`.
LAMBDA = 0.1


def fluctuation(by_sample: Float[Tensor, "sample unit"]) -> Float[Tensor, " unit"]:
    """M of every unit, fp64; identical samples give exactly 0, and so do units that are nothing.

    Raises:
        SecateurError: fewer than two samples.
    """
    if len(by_sample) < 2:
        raise SecateurError(
            "A search by stability compares calibration samples; there is"
            f" {len(by_sample) or 'none'}.\nType --samples 2 or more."
        )
    scores = by_sample.double()
    spread = (scores - scores[:1]).std(dim=0)
    return spread / (scores.mean(dim=0) + EPSILON * scores.mean()).clamp(min=1e-300)


def instability(by_sample: Float[Tensor, "sample unit"]) -> Float[Tensor, " unit"]:
    """ASI of every unit: larger varies more than the scope's other units do."""
    logs = fluctuation(by_sample).clamp(min=EPSILON).log()
    if len(logs) < 2 or logs.std() < _ALIKE:
        return torch.zeros(len(logs))
    return standardised(logs[:, None]).float()


@register_search("two_stage", paper=SAAP, scale=None)
def two_stage(by_sample: BySample, ranked: Ranked, budget: float) -> dict[str, int]:
    """One ranking by ASI says how many units of an axis go, importance which."""
    return remove_lowest(ranked(_minus_asi(by_sample)), budget, nearest=True)


@register_search("joint", paper=SAAP, scale=None)
def joint(
    scores: Scores, by_sample: BySample, ranked: Ranked, budget: float
) -> dict[str, tuple[int, ...]]:
    """One ranking by K = z(I) - lambda ASI."""
    steady = _minus_asi(by_sample)
    values = {name: standardised(own) + LAMBDA * steady[name] for name, own in scores.items()}
    return _lowest(ranked(values), budget)


@register_search("stability", paper=SAAP, scale=None)
def stability(by_sample: BySample, ranked: Ranked, budget: float) -> dict[str, tuple[int, ...]]:
    """The text of the paper to the letter: the most volatile units go, whatever they are worth."""
    warnings.warn(
        "The search 'stability' ignores importance and removes good units too; two_stage keeps it.",
        SecateurWarning,
        stacklevel=2,
    )
    return _lowest(ranked(_minus_asi(by_sample)), budget)


def _minus_asi(by_sample: BySample) -> dict[str, Tensor]:
    """The least steady units have the lowest value."""
    return {name: -instability(own) for name, own in by_sample.items()}


def _lowest(removals: Mapping[str, Removal], budget: float) -> dict[str, tuple[int, ...]]:
    """The units that go first, of all axes, by these removals."""
    steps = remove_lowest(removals, budget, nearest=True)
    return {name: removals[name].units(count) for name, count in steps.items()}
