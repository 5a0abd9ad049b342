"""HyWIA with learned attention: a small projection, fitted to what the probes found.

    phi_t[u] = [log t_hat, z(t), std_n(t)/mean_n(t), rank(t)]     of unit u; t = coarse, fine
    a_t = w_t . mean_u tanh(A phi_t[u] + b)                       A, b shared by all scopes
    alpha = softmax([a_c, a_f]),   I = alpha_c c_hat + alpha_f f_hat

A is [8, 4], b [8], w [2, 8]: 56 numbers for the whole model, fitted by full-batch descent to
maximise, over all scopes, cos(y - mean y, k - mean k) with y the losses of the probes and k their
sums of I. w = 0 at the start: the equal blend. This project's completion of 2403.10799.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from .blend import HYWIA, blended, relative
from .evidence import PROBES
from .probes import ask_each, cosine, disagreement_runs, keys, ranks
from .registry import BY_SAMPLE, Fused, Probe, Scope, fusion

HIDDEN, FEATURES = 8, 4
STEPS = 200
RATE = 0.02
# Weight of |w|^2: without it a few probes drive alpha to one end.
DECAY = 0.01


@dataclass(frozen=True)
class Projection:
    """The shared attention: see the equations above."""

    inner: Float[Tensor, "hidden feature"]
    offset: Float[Tensor, " hidden"]
    outer: Float[Tensor, "2 hidden"]

    def alpha(self, features: Float[Tensor, "2 unit feature"]) -> Float[Tensor, "2"]:
        """The blend of one scope."""
        pooled = torch.tanh(features @ self.inner.T + self.offset).mean(dim=1)
        return torch.softmax((self.outer * pooled).sum(dim=1), dim=0)


def initial(generator: torch.Generator) -> Projection:
    """A projection whose every blend is equal."""
    inner = torch.randn(HIDDEN, FEATURES, generator=generator, dtype=torch.float64)
    offset = torch.randn(HIDDEN, generator=generator, dtype=torch.float64)
    outer = torch.zeros(2, HIDDEN, dtype=torch.float64)
    return Projection(inner / FEATURES**0.5, offset, outer)


def features(
    scores: Float[Tensor, " unit"], by_sample: Float[Tensor, "sample unit"]
) -> Float[Tensor, "unit 4"]:
    """What the projection sees of each unit; none of it depends on the scale of the scores."""
    size = relative(scores)
    spread = (size - size.mean()) / size.std(correction=0).clamp(min=1e-12)
    each = relative(by_sample)
    variation = each.std(dim=0) / each.mean(dim=0).clamp(min=1e-12)
    place = ranks(size) / max(len(size) - 1, 1) - 0.5
    return torch.stack([size.clamp(min=1e-6).log(), spread, variation, place], dim=1)


@fusion("trained", paper=HYWIA, needs=BY_SAMPLE)
def trained(
    scopes: Mapping[str, Scope],
    probe: Probe,
    generator: torch.Generator,
    *,
    probes: int = PROBES,
    steps: int = STEPS,
) -> dict[str, Fused]:
    """A small shared attention, fitted to what masking units does to the loss."""
    masks = {axis: disagreement_runs(*scope.pair(), probes) for axis, scope in scopes.items()}
    losses = ask_each(probe, masks)
    questions = [(losses[axis], keys(scope, masks[axis])) for axis, scope in scopes.items()]
    seen: list[Tensor] = []
    for scope in scopes.values():
        pairs = zip(scope.pair(), scope.pair_by_sample(), strict=True)
        seen.append(torch.stack([features(*both) for both in pairs]))
    projection = descended(initial(generator), seen, questions, steps)
    alphas = {axis: projection.alpha(here) for axis, here in zip(scopes, seen, strict=True)}
    return blended(scopes, alphas)


def descended(
    start: Projection,
    seen: list[Tensor],
    questions: list[tuple[Tensor, Tensor]],
    steps: int,
) -> Projection:
    """Descend from `start` on features [2, unit, 4] and (losses [probe], keys [probe, 2])."""
    with torch.enable_grad():
        parameters = [
            value.clone().requires_grad_() for value in (start.inner, start.offset, start.outer)
        ]
        optimiser = torch.optim.Adam(parameters, lr=RATE)
        for _ in range(steps):
            projection = Projection(*parameters)
            agreement = [
                cosine(losses, (key * projection.alpha(here)).sum(dim=1, keepdim=True)).squeeze(0)
                for here, (losses, key) in zip(seen, questions, strict=True)
            ]
            loss = DECAY * projection.outer.square().sum() - torch.stack(agreement).mean()
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
    return Projection(*(value.detach() for value in parameters))
