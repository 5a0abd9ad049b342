"""HyWIA with a fitted query: many scopes masked at once, the losses regressed on both keys.

    y_p = b + sum_s (beta_c,s k_c,p,s + beta_f,s k_f,p,s),   beta >= 0
    minimise |y - ...|^2 + lambda v sum_s (beta_c,s - m)^2 + (beta_f,s - m)^2
    alpha_s = beta_s / (beta_c,s + beta_f,s),   I = alpha_c c_hat + alpha_f f_hat

v is the mean square of the keys, m the best common coefficient: a large lambda gives the equal
blend wherever the losses do not decide. Each probe masks, in every scope, one of the runs over
which the granularities disagree, or none. All probes then say something of all scopes, where
`evidence` asks about one scope at a time. This project's completion of 2403.10799.
"""

from collections.abc import Mapping

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ..errors import SecateurError
from .blend import HYWIA, blended
from .evidence import PROBES
from .probes import ask, disagreement_runs, keys
from .registry import Fused, Probe, Scope, fusion

SHRINKAGE = 0.1
# The least lambda: without any, keys that go together have no single minimum.
_LEAST = 1e-9
_TINY = torch.finfo(torch.float64).tiny


@fusion("regression", paper=HYWIA)
def regression(
    scopes: Mapping[str, Scope],
    probe: Probe,
    generator: torch.Generator,
    *,
    shrinkage: float = SHRINKAGE,
    probes: int = PROBES,
) -> dict[str, Fused]:
    """Attention fitted to the loss of masks over many scopes at once (`probes` for each scope)."""
    masks = drawn_masks(scopes, probes * len(scopes), generator)
    losses = ask(probe, masks)
    sums = torch.stack([keys(scope, masks[axis]) for axis, scope in scopes.items()], dim=1)
    alpha = fitted_blend(losses, sums[:, :, 0], sums[:, :, 1], shrinkage)
    return blended(scopes, dict(zip(scopes, alpha, strict=True)))


def drawn_masks(
    scopes: Mapping[str, Scope], probes: int, generator: torch.Generator
) -> dict[str, Bool[Tensor, "probe _"]]:
    """For each probe and scope, one of the scope's runs of disagreement or no unit at all."""
    masks: dict[str, Tensor] = {}
    for axis, scope in scopes.items():
        runs = disagreement_runs(*scope.pair(), PROBES)
        runs = torch.cat([runs, runs.new_zeros(1, runs.shape[1])])
        masks[axis] = runs[torch.randint(len(runs), (probes,), generator=generator)]
    return masks


def fitted_blend(
    losses: Float[Tensor, " probe"],
    coarse: Float[Tensor, "probe scope"],
    fine: Float[Tensor, "probe scope"],
    shrinkage: float = SHRINKAGE,
) -> Float[Tensor, "scope 2"]:
    """The blend of every scope, from its keys and the losses of probes over several scopes.

    Raises:
        SecateurError: the shrinkage is negative.
    """
    if shrinkage < 0:
        raise SecateurError(f"shrinkage = {shrinkage} will not do: 0 or more, for example 0.1.")
    design = torch.cat([coarse, fine], dim=1).double()
    design = design - design.mean(dim=0)
    target = losses.double() - losses.double().mean()
    # Losses that are all alike leave rounding, which must not be blown up to a signal.
    target = target / target.norm().maximum(1e-9 * losses.double().norm()).clamp(min=_TINY)
    total = design.sum(dim=1)
    common = (total @ target / total.square().sum().clamp(min=_TINY)).clamp(min=0)
    products = design.T @ design
    damping = max(shrinkage, _LEAST) * products.diagonal().mean().clamp(min=_TINY)
    matrix = products + damping * torch.eye(len(products), dtype=torch.float64)
    found = non_negative_minimum(matrix, design.T @ target + damping * common)
    shares = found.view(2, -1).T
    sums = shares.sum(dim=1, keepdim=True)
    return torch.where(sums > 0, shares / sums.clamp(min=_TINY), 0.5)


def non_negative_minimum(
    matrix: Float[Tensor, "n n"], right: Float[Tensor, " n"]
) -> Float[Tensor, " n"]:
    """Minimise x A x / 2 - b x over x >= 0, A positive definite, by active sets.

    Lawson and Hanson, Solving Least Squares Problems (1974), chapter 23.
    """
    solution, free = torch.zeros_like(right), torch.zeros_like(right, dtype=torch.bool)
    tolerance = 1e-10 * right.abs().max()
    for _ in range(3 * len(right)):
        slope = torch.where(free, -torch.inf, right - matrix @ solution)
        if slope.max() <= tolerance:
            break
        free[slope.argmax()] = True
        solution, free = _onto_the_free(matrix, right, solution, free)
    return solution


def _onto_the_free(
    matrix: Tensor, right: Tensor, solution: Tensor, free: Tensor
) -> tuple[Tensor, Tensor]:
    """Move towards the minimum over the free variables; those that reach 0 are free no more."""
    while free.any():
        trial = torch.zeros_like(solution)
        trial[free] = torch.linalg.solve(matrix[free][:, free], right[free])
        blocked = free & (trial <= 0)
        if not blocked.any():
            return trial, free
        steps = solution[blocked] / (solution[blocked] - trial[blocked]).clamp(min=_TINY)
        solution = solution + steps.min() * (trial - solution)
        free = free & ~(blocked & (solution <= 1e-14 * solution.abs().max()))
        solution = torch.where(free, solution, 0.0)
    return solution, free
