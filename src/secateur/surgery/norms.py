"""Norms between a consumer and the residual stream (Gemma 2 and 3, OLMo 2).

    N y = g * y / |y|            |y|^2 the mean of squares over channels, g the norm's gain

What a consumer is to add to the stream beside N y, c, it can give by

    N (y + |y| g / (g^2 + e) c) = N y + g^2 / (g^2 + e) c + what the change does to |y|

e a small share of the mean of g^2: a channel of hardly any gain is not asked to give much.
"""

from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..stats.spread import may_be_norm
from ..stats.stream import Call, hidden_of
from .observe import Seen, hooked

_EPSILON, _SHARE = 1e-6, 0.1
# How far the norms' outputs may lie from N y, and the stream from its sums, as a share.
_NEARLY = 0.02


def normed(
    output: Float[Tensor, "*token out"], gain: Float[Tensor, " out"]
) -> Float[Tensor, "*token out"]:
    """N y, fp32."""
    values = output.float()
    return gain * values / _sizes(values)


def before_norm(
    change: Float[Tensor, "*token out"],
    output: Float[Tensor, "*token out"],
    gain: Float[Tensor, " out"],
) -> Float[Tensor, "*token out"]:
    """By how much `output` has to change for the norm to give `change` more, fp32."""
    power = gain.square()
    return change * _sizes(output.float()) * (gain / (power + _SHARE * power.mean()))


def _sizes(values: Float[Tensor, "*token out"]) -> Float[Tensor, "*token 1"]:
    return values.square().mean(dim=-1, keepdim=True).add(_EPSILON).sqrt()


def gains(
    layer: nn.Module, hidden: Tensor, call: Call, seen: Seen
) -> Mapping[str, Float[Tensor, " out"]]:
    """The gains of the norms behind all consumers of a layer; none if one has no norm.

    It is asked of the numbers of one batch: that some module is given just what each consumer
    gave, does what is said above, and that the stream grows by what these give.
    """
    given: dict[nn.Module, Tensor] = {}

    def keep(module: nn.Module, args: tuple[Tensor, ...]) -> None:
        if args and isinstance(args[0], Tensor):
            given[module] = args[0].clone()

    norms = [module for module in layer.modules() if may_be_norm(module)]
    with hooked(module.register_forward_pre_hook(keep) for module in norms), torch.no_grad():
        hidden_of(layer(hidden, *call[0], **call[1]))
    found: dict[str, Tensor] = {}
    total = torch.zeros_like(seen.before, dtype=torch.float32)
    for name, output in seen.outputs.items():
        module = next((m for m, own in given.items() if _alike(own, output)), None)
        if module is None:
            return {}
        with torch.no_grad():
            gave = module(output).float()
            found[name] = module(torch.ones_like(output[:1, :1])).float()[0, 0]
        if not _near(normed(output, found[name]), gave):
            return {}
        total += gave
    return found if _near(seen.after.float() - seen.before.float(), total) else {}


def _alike(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and torch.equal(one, other)


def _near(one: Tensor, other: Tensor) -> bool:
    return bool((one - other).norm() <= _NEARLY * other.norm())
