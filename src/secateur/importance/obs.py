"""Group OBS: what removing a unit costs when all that stays is fitted anew.

With C the covariance of the consumer's inputs (its bias is fitted, too), its diagonal 1 + lambda
times what it is, and g the channels of a unit,

    cost_g = tr(W_g [C^-1_gg]^-1 W_g^T)

is the least squared error of the output, summed over tokens. Once g has gone,

    W <- W - W_g [C^-1_gg]^-1 C^-1_g:        C^-1 <- C^-1 - C^-1_:g [C^-1_gg]^-1 C^-1_g:

so that of two units that say the same only the first one is cheap, unless they go in one round.
The damping is each channel's
own: one that is a thousand times the others does not damp them away. Units of several channels
(heads) go one by one, single channels in sixteen rounds, each after an exact downdate. A unit's
score is the cost at its turn, and no less than that of any turn before it.

Hassibi, Stork (1992); of whole groups: Kurtic, Frantar, Alistarh, ZipLM (2302.04089).

`obs-loss` weighs the output's error by the Fisher information F there (`stats.fisher`),

    cost_g = 1/2 tr(F W_g [C^-1_gg]^-1 W_g^T)        C over weighed tokens (`stats.spread`),

which is about what the divergence from the dense model grows by, so that costs compare across
layers. (An expert's tokens are those that came to it: beside other units, rare experts are dear.) F
and C are the factors of a Kronecker-factored curvature (van der Ouderaa et al., The LLM
Surgeon, 2312.17244). With F/2 = L L^T it is `obs` of the weights L^T W.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from ..solve import factor
from .registry import importance

PAPER, SURGEON = "https://arxiv.org/abs/2302.04089", "https://arxiv.org/abs/2312.17244"
DAMPING, ROUNDS = 0.01, 16
# Of the mean of the Fisher information's diagonal, what is added to it to have a root.
_LEAST = 1e-6
# By how much the score of a later turn is larger at least, so that the order can be read off it.
LATER = 1 + 1e-6


@importance("obs", paper=PAPER)
def obs(
    weight: Float[Tensor, "unit width fan"],
    input_gram: Float[Tensor, "channel channel"],
    input_mean: Float[Tensor, "unit width"],
    input_var: Float[Tensor, "unit width"],
) -> Float[Tensor, " unit"]:
    """Squared error that is left when the weights that stay are fitted anew, at a unit's turn."""
    tokens, mean = _tokens(input_gram, input_mean, input_var), input_mean.double().flatten()
    spread = input_gram.double() / tokens - torch.outer(mean, mean)
    spread.diagonal().copy_(input_var.flatten())  # where means are large, the sums know less
    return _turns(weight * tokens.sqrt(), spread)


@importance("obs-loss", paper=SURGEON)
def obs_loss(
    weight: Float[Tensor, "unit width fan"],
    input_spread: Float[Tensor, "channel channel"],
    output_fisher: Float[Tensor, "fan fan"],
) -> Float[Tensor, " unit"]:
    """The same error weighed by what it does to the loss, so that layers compare."""
    return _turns(weight.double() @ _root(output_fisher.double() / 2), input_spread)


def _root(fisher: Float[Tensor, "fan fan"]) -> Float[Tensor, "fan fan"]:
    """L with L L^T = `fisher`, but for a damping that it takes where it is singular."""
    size = fisher.diagonal().mean()
    if not size:  # no error there costs anything
        return fisher
    return size.sqrt() * factor(fisher / size, _LEAST, where="a consumer's outputs").lower


def _turns(
    weight: Float[Tensor, "unit width fan"], spread: Float[Tensor, "channel channel"]
) -> Float[Tensor, " unit"]:
    """The cost of every unit at its turn; `spread` is the covariance of the inputs."""
    units, width, fan = weight.shape
    spread = spread.double()
    variance = spread.diagonal().clone()
    # every channel's variance becomes one: the damping is then the same for each
    scale = torch.where(variance > 0, variance, torch.ones_like(variance)).rsqrt()
    spread = spread * scale * scale[:, None]
    inverse = torch.cholesky_inverse(factor(spread, DAMPING, where="a consumer's inputs").lower)
    left = weight.double().reshape(units * width, fan) / scale[:, None]
    left[variance <= 0] = 0  # what never changes is the bias's
    stays, costs = torch.arange(units), torch.zeros(units, dtype=torch.float64)
    at_once = 1 if width > 1 else max(1, -(-units // ROUNDS))
    floor = 0.0
    while len(stays):
        own = _costs(left, inverse, width)
        turn = own.argsort(stable=True)[:at_once]
        costs[stays[turn]] = own[turn].clamp(min=floor * LATER)
        floor = float(costs[stays[turn[-1]]])
        left, inverse = _without(left, inverse, _channels(turn, width))
        stays = _others(stays, turn)
    return costs.float()


def _tokens(
    gram: Float[Tensor, "channel channel"],
    mean: Float[Tensor, "unit width"],
    variance: Float[Tensor, "unit width"],
) -> Float[Tensor, ""]:
    """How many tokens the sums are over, fp64; 1 if all inputs are zero."""
    power = (variance.double() + mean.double().square()).sum()
    found = gram.diagonal().double().sum() / power
    return torch.where(power > 0, found, torch.ones_like(found))


def _costs(
    left: Float[Tensor, "channel fan"], inverse: Float[Tensor, "channel channel"], width: int
) -> Float[Tensor, " unit"]:
    """tr(W_g [C^-1_gg]^-1 W_g^T) of every unit that is there."""
    if width == 1:
        return left.square().sum(dim=1) / inverse.diagonal()
    by_unit = left.view(-1, width, left.shape[1])
    blocks = torch.stack(
        [inverse[i : i + width, i : i + width] for i in range(0, len(left), width)]
    )
    return (by_unit * torch.linalg.solve(blocks, by_unit)).sum(dim=(1, 2))


def _without(
    left: Float[Tensor, "channel fan"], inverse: Float[Tensor, "channel channel"], gone: Tensor
) -> tuple[Tensor, Tensor]:
    """Weights and inverse when the channels `gone` are, and the rest is fitted anew."""
    stays = _others(torch.arange(len(left)), gone)
    rows = inverse[gone]
    through = torch.linalg.solve(rows[:, gone], rows[:, stays])
    return (
        left[stays] - through.T @ left[gone],
        inverse[stays][:, stays] - rows[:, stays].T @ through,
    )


def _channels(units: Tensor, width: int) -> Tensor:
    return (units[:, None] * width + torch.arange(width)).flatten()


def _others(values: Tensor, places: Tensor) -> Tensor:
    """`values` without those in some places."""
    mask = torch.ones(len(values), dtype=torch.bool)
    mask[places] = False
    return values[mask]
