"""Training weights of the model itself: the consumers alone, or everything."""

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from ..checkpoint import View

# Root mean square below which a tensor counts as this large: biases may begin at nothing.
_LEAST = 1e-3


class Plain:
    """Parameters of `model` by name, trained in fp32 where they are; all others are frozen.

    They start from `stored`, where it has them: `model` may hold them rounded.
    """

    def __init__(self, model: Any, names: Iterable[str], stored: View | None = None) -> None:
        model.requires_grad_(False)
        self.parameters: dict[str, nn.Parameter] = {}
        for name in names:
            parameter = model.get_parameter(name)
            exact = stored.tensor(name) if stored and name in stored.specs else parameter.data
            parameter.data = exact.to(parameter.device, torch.float32)
            self.parameters[name] = parameter.requires_grad_()

    def tensors(self) -> dict[str, Tensor]:
        """The trained tensors by name, fp32."""
        return {name: parameter.detach().cpu() for name, parameter in self.parameters.items()}


def narrowed(model: Any, dtype: torch.dtype) -> None:
    """Hold the weights of frozen linears in the `dtype` that autocast gives them at every call.

    The results are the same to the bit. Whatever else reads a weight (the embedding, where it is
    tied to the head) keeps its own.
    """
    for module in model.modules():
        if type(module) is nn.Linear and not any(p.requires_grad for p in module.parameters()):
            for name, parameter in tuple(module.named_parameters(recurse=False)):
                narrow = nn.Parameter(parameter.detach().to(dtype), requires_grad=False)
                setattr(module, name, narrow)


def relative_rate(tensor: Tensor) -> float:
    """What a learning rate is multiplied with, to suit tensors of any size: 10 rms / side.

    `side` is the geometric mean of the tensor's sides. A step of Adam moves every weight by the
    learning rate, whatever its size; small models have weights ten times larger than large ones,
    and a wide matrix adds up more of them, all in the gradient's direction. So the step is a share
    of the root mean square (as in Adafactor, Shazeer and Stern, 1804.04235), and the smaller the
    wider the matrix is (as for Adam in Yang et al., 2203.03466). Measured: what suits a width of 64
    suits one of 576, which rms / sqrt(side) does not do. The 10 keeps rates at about one. Biases
    and gains of norms, whose side is their length, are given the same, which is careful of them.
    """
    if not tensor.numel():
        return 0.0
    rms = float(tensor.detach().float().square().mean().sqrt())
    sides = tensor.shape[-2:]  # of an expert, where there are several
    side: float = math.prod(sides) ** (1 / max(len(sides), 1))
    return 10 * max(rms, _LEAST) / side
