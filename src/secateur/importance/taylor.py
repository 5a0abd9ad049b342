"""Taylor scores: how much the loss is expected to change without a unit.

With p = w dL/dw and s = w^2 mean_n g_n^2 of every weight (`secateur.stats.taylor` has them), sums
over the weights of one channel of one member:

    vector = |sum p|     first = sum |p|     second = sum s     mixed = sum |p - s/2|

then members are combined (`sum` by default) and a unit's channels added up. `coarse` has one sum
over all of a member's weights in the unit. The names without an ending are Ma, Fang, Wang:
LLM-Pruner (2305.11627), with the gradient of the mean loss (Vector, Element^1, Element^2); those
with `-per-sample` take the absolute value in every calibration window and then the mean, so that
windows that pull a weight in opposite directions do not cancel.
"""

from jaxtyping import Float
from torch import Tensor

from .members import Combine
from .registry import importance

PAPER = "https://arxiv.org/abs/2305.11627"


@importance("taylor-vector", paper=PAPER)
def vector(
    batch_vector: Float[Tensor, "member unit channel"], combine: Combine
) -> Float[Tensor, " unit"]:
    """Magnitude of weight times gradient, summed over a channel's weights with their signs."""
    return combine(batch_vector).sum(dim=1)


@importance("taylor-first", paper=PAPER)
def first(
    batch_first: Float[Tensor, "member unit channel"], combine: Combine
) -> Float[Tensor, " unit"]:
    """Sum of the magnitudes of weight times gradient."""
    return combine(batch_first).sum(dim=1)


@importance("taylor-second", paper=PAPER)
def second(
    batch_second: Float[Tensor, "member unit channel"], combine: Combine
) -> Float[Tensor, " unit"]:
    """Sum of squared weight times mean squared gradient (empirical Fisher)."""
    return combine(batch_second).sum(dim=1)


@importance("taylor-mixed", paper=PAPER)
def mixed(
    batch_mixed: Float[Tensor, "member unit channel"], combine: Combine
) -> Float[Tensor, " unit"]:
    """Sum of the magnitudes of the first-order term less half the second-order one."""
    return combine(batch_mixed).sum(dim=1)


@importance("taylor-vector-per-sample", paper=PAPER)
def vector_per_sample(
    per_sample_vector: Float[Tensor, "member unit channel"], combine: Combine
) -> Float[Tensor, " unit"]:
    """As taylor-vector in every calibration window, then the mean."""
    return combine(per_sample_vector).sum(dim=1)


@importance("taylor-coarse-per-sample", paper=PAPER)
def coarse_per_sample(
    per_sample_coarse: Float[Tensor, "member unit channel"], combine: Combine
) -> Float[Tensor, " unit"]:
    """As taylor-vector with one sum over the whole unit, in every window, then the mean."""
    return combine(per_sample_coarse).sum(dim=1)


@importance("taylor-first-per-sample", paper=PAPER)
def first_per_sample(
    per_sample_first: Float[Tensor, "member unit channel"], combine: Combine
) -> Float[Tensor, " unit"]:
    """As taylor-first in every calibration window, then the mean."""
    return combine(per_sample_first).sum(dim=1)


@importance("taylor-mixed-per-sample", paper=PAPER)
def mixed_per_sample(
    per_sample_mixed: Float[Tensor, "member unit channel"], combine: Combine
) -> Float[Tensor, " unit"]:
    """As taylor-mixed in every calibration window, then the mean."""
    return combine(per_sample_mixed).sum(dim=1)
