"""The registry of scores. A score's parameter names are the list of what it needs.

| parameter | what it is | shape |
|---|---|---|
| `weight` | the consumer's weight, seen by unit | [unit, width, fan] |
| `input_mean`, `input_var`, `input_norm` | statistics of the consumer's input | [unit, width] |
| `input_gram` | X^T X of it, channels in unit order | `[unit*width, unit*width]` |
| `input_spread` | its covariance, tokens weighed (`stats.spread`) | the same |
| `batch_TERM` | Taylor terms from the gradient of the mean loss | [member, unit, channel] |
| `per_sample_TERM` | the same in every window, then the mean | [member, unit, channel] |
| `samples_TERM` | the same in every window, members summed | [sample, unit] |
| `output_fisher` | what an error at the consumer's output costs (`stats.fisher`) | [fan, fan] |
| `gate_fisher`, `gate_entropy` | slopes by a unit's gate, squared or not (`stats.gates`) | [unit] |
| `combine` | how members become one: [member, unit, channel] to [unit, channel] | |
| `generator` | random numbers, seeded by run and axis | |

`width` is the number of channels of a unit, `fan` the width of the consumer's output. TERM is
vector, coarse, first, second or mixed: see `secateur.stats.taylor`.
"""

from collections.abc import Callable
from dataclasses import dataclass

from ..registry import Function, Registered, entered


@dataclass(frozen=True, slots=True)
class Importance(Registered):
    """A score: a pure function of tensors to one value a unit, or one a channel of each unit."""


IMPORTANCE: dict[str, Importance] = {}


def importance(name: str, *, paper: str) -> Callable[[Function], Function]:
    """Register the decorated function as the score `name`; larger means keep."""
    return entered("score", name, IMPORTANCE, lambda f, needs: Importance(name, f, paper, needs))
