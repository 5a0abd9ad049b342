"""HyWIA with the loss as query: the granularity that foretells ablation gets the weight.

    query  y_p   = L(units of B_p masked) - L       on samples that the scores have not seen
    keys   k_t,p = sum of t_hat over B_p            t = coarse, fine;  t_hat = t / mean(t)
    a_t = cos(y - mean y, k_t - mean k_t),  alpha = softmax([a_c, a_f] / tau)
    I = alpha_c c_hat + alpha_f f_hat

The sets B_p are where the granularities disagree most. The paper (2403.10799) gives the attention
over the two granularities and its headline, a blend for each layer, not the formula; the query is
this project's completion. (A query symmetric in the two keys would force alpha = 1/2.)
"""

from collections.abc import Mapping

from .blend import HYWIA, attention, blended
from .probes import ask_each, cosine, disagreement_runs, keys
from .registry import Fused, Probe, Scope, fusion

PROBES = 8
TAU = 0.1


@fusion("evidence", paper=HYWIA)
def evidence(
    scopes: Mapping[str, Scope], probe: Probe, *, tau: float = TAU, probes: int = PROBES
) -> dict[str, Fused]:
    """Attention to the granularity that foretells the loss of masked units, scope by scope."""
    masks = {axis: disagreement_runs(*scope.pair(), probes) for axis, scope in scopes.items()}
    losses = ask_each(probe, masks)
    agreement = {
        axis: cosine(losses[axis], keys(scope, masks[axis])) for axis, scope in scopes.items()
    }
    return blended(scopes, {axis: attention(found, tau) for axis, found in agreement.items()})
