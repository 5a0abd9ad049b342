"""Fisher information of a unit's gate: what it costs in KL to the dense model, if it goes alone.

With m_u a factor of one on what unit u hands to its consumer, and labels y drawn from the dense
model's own predictions,

    cost_u = 1/2 E[ (d log p(y) / d m_u)^2 ]        KL(dense || without u) to second order, m_u = 0

a mean over predicted tokens (`secateur.stats.gates`). The first order is zero: the dense model is
where KL is least. It goes through the whole model to the predictions, so that layers compare; of
two units that say the same it sees each alone, and it expects no repair.

Theis, Korshunova, Tejani, Huszar (1801.05787); with the text's own labels in the place of
drawn ones: Kwon et al., A Fast Post-Training Pruning Framework for Transformers (2204.09656).
"""

from jaxtyping import Float
from torch import Tensor

from .registry import importance


@importance("fisher", paper="https://arxiv.org/abs/1801.05787")
def fisher(gate_fisher: Float[Tensor, " unit"]) -> Float[Tensor, " unit"]:
    """Half the Fisher information of a unit's gate: nats a token of KL to the dense model."""
    return gate_fisher / 2
