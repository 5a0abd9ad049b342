"""Which activation each weight reads, seen while the family's own code runs.

A *read* is an operation of an activation and a weight (or a slice of one: an expert's). No rule
says what the operation is: that the weight multiplies its input, which of its indices meet which
input channel, and which make which output channel, is read off gradients.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

Indices = tuple[frozenset[int], ...]


@dataclass(frozen=True)
class Read:
    """One operation `function(activation, weight)`; `weight` is the parameter's name in the layer.

    `inputs` is the activation [..., channel].
    """

    weight: str
    inputs: Tensor
    function: Any
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    position: int
    width: int

    def apply(self, inputs: Tensor) -> Tensor:
        """The operation on other inputs."""
        args = list(self.args)
        args[self.position] = inputs
        result: Tensor = self.function(*args, **self.kwargs)
        return result


class Watcher(TorchFunctionMode):
    """While entered, notes what reads the parameters of `layer`.

    Reads number `cut` pass no gradient to what came before.
    """

    def __init__(self, layer: nn.Module, cut: frozenset[int] = frozenset()) -> None:
        super().__init__()
        self.reads: list[Read] = []
        self._cut = cut
        # Results are kept with their ids: another tensor could get the id of one that is gone.
        self._weights: dict[int, tuple[Tensor, str]] = {
            id(parameter): (parameter, name) for name, parameter in layer.named_parameters()
        }

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        tensors = [value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)]
        owned = [(t.dim(), self._weights[id(t)][1]) for t in tensors if id(t) in self._weights]
        if not owned:
            return func(*args, **kwargs)
        free = [t for t in tensors if id(t) not in self._weights and t.is_floating_point()]
        if not free:
            result = func(*args, **kwargs)
            if isinstance(result, Tensor):
                self._weights[id(result)] = (result, owned[0][1])
            return result
        position = next((i for i, value in enumerate(args) if value is free[0]), None)
        if position is None or not free[0].requires_grad:
            return func(*args, **kwargs)
        arguments = list(args)
        if len(self.reads) in self._cut:
            arguments[position] = free[0].detach().requires_grad_()
        result = func(*arguments, **kwargs)
        if isinstance(result, Tensor):
            # the weight, where an operation takes its bias along
            weight = max(owned, key=lambda item: item[0])[1]
            read = Read(
                weight, arguments[position], func, tuple(arguments), kwargs, position,
                result.shape[-1],
            )  # fmt: skip
            self.reads.append(read)
        return result


def touched(value: Tensor, parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Of which parameters, and where, the gradient of `value` is not zero; same shapes, bool."""
    gradients = torch.autograd.grad(
        value, list(parameters.values()), retain_graph=True, allow_unused=True
    )
    return {
        name: gradient != 0
        for name, gradient in zip(parameters, gradients, strict=True)
        if gradient is not None and bool((gradient != 0).any())
    }


def probe_sum(values: Tensor, seed: int = 0) -> Tensor:
    """A random linear functional: no sum of independent parts cancels in it."""
    generator = torch.Generator().manual_seed(seed)
    weights = torch.rand(values.shape, generator=generator, dtype=values.dtype) + 0.5
    return (values * weights).sum()


def read_map(read: Read, parameter: Tensor) -> list[Tensor] | None:
    """For each input channel, where the weight meets it (bool); None if it only adds to it."""
    inputs = read.inputs.detach()
    at_zero = read.apply(torch.zeros_like(inputs))
    if at_zero.requires_grad and touched(probe_sum(at_zero), {"p": parameter}):
        return None
    masks: list[Tensor] = []
    for channel in range(inputs.shape[-1]):
        alone = torch.zeros_like(inputs)
        alone[..., channel] = inputs[..., channel]
        found = touched(probe_sum(read.apply(alone)), {"p": parameter})
        if "p" not in found:
            return None
        masks.append(found["p"])
    return masks


def write_dims(read: Read, parameter: Tensor) -> tuple[int, ...]:
    """The dimensions of the weight along which output channels have indices of their own."""
    output = read.apply(read.inputs.detach())
    masks = [touched(probe_sum(output[..., c]), {"p": parameter})["p"] for c in range(read.width)]
    return own_dims(masks)


def own_dims(masks: list[Tensor]) -> tuple[int, ...]:
    """The dimensions along which no two masks share an index."""
    dims = []
    for dim in range(masks[0].dim()):
        used = torch.stack([along(mask, dim) for mask in masks])
        if len(masks) > 1 and bool((used.sum(0) <= 1).all()):
            dims.append(dim)
    return tuple(dims)


def along(mask: Tensor, dim: int) -> Tensor:
    """Which indices of one dimension a mask touches."""
    others = [other for other in range(mask.dim()) if other != dim]
    return mask.amax(dim=others) if others else mask
