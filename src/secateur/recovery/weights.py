"""Training weights of the model itself: the consumers alone, or everything."""

from collections.abc import Iterable
from typing import Any

from torch import Tensor, nn


class Plain:
    """Parameters of `model` by name, trained in fp32 where they are; all others are frozen."""

    def __init__(self, model: Any, names: Iterable[str]) -> None:
        model.requires_grad_(False)
        self.parameters: dict[str, nn.Parameter] = {}
        for name in names:
            parameter = model.get_parameter(name)
            parameter.data = parameter.data.float()
            self.parameters[name] = parameter.requires_grad_()

    def tensors(self) -> dict[str, Tensor]:
        """The trained tensors by name, fp32."""
        return {name: parameter.detach().cpu() for name, parameter in self.parameters.items()}


def rms(tensor: Tensor) -> float:
    """Root mean square; a step of Adam is small or large next to it."""
    return float(tensor.detach().float().square().mean().sqrt()) if tensor.numel() else 0.0


def relative_rate(tensor: Tensor, least: float = 1e-3) -> float:
    """What a learning rate is multiplied with, so that it is a share of the tensor's own size.

    Weights of small models are ten times larger than those of large ones; a step that is a share
    of the weight suits both (as Adafactor's relative steps, Shazeer and Stern, 1804.04235).
    """
    return max(rms(tensor), least)
