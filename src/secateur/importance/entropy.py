"""How much the entropy of the predictions hangs on a unit, token by token.

With H the mean entropy of the model's predictions, a_tc the consumer's input and C_u the channels
of unit u,

    score_u = sum_t | sum over c in C_u of a_tc dH/da_tc |

a mean over windows. No labels are asked for, and unlike the divergence from the dense model,
entropy has a slope there. HFPrune (2603.08083), whose units are MLP channels, one each; units of
several channels (heads) are taken here as one before the magnitude.
"""

from jaxtyping import Float
from torch import Tensor

from .registry import importance


@importance("entropy", paper="https://arxiv.org/abs/2603.08083")
def entropy(gate_entropy: Float[Tensor, " unit"]) -> Float[Tensor, " unit"]:
    """Magnitude, summed over tokens, of what a unit's input changes of the predictions' entropy."""
    return gate_entropy
