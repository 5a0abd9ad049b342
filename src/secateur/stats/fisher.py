"""The Fisher information by a consumer's output: what an error there costs.

    F = E_t[ (dL/dy_t)(dL/dy_t)^T ]        KL(dense || with y + e) ~ 1/2 sum_t e_t^T F e_t

with L the loss summed over the tokens of a window, and y_t the consumer's output for token t. It
makes errors of different layers one thing: what they do to the predictions. The matrix knows what
its diagonal does not: behind a norm an error along the output itself costs nothing. Of experts,
whose outputs are no module's, it is that of the layer's output, without their routing weights.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ..structure import Axis
from .activations import Activations
from .collect import find
from .stream import LayerStep

OUTPUT_FISHER = "output_fisher"
# Tokens whose gradients are fp32 at once.
_ROWS = 1024


class OutputFisher:
    """Sums of g g^T [fan, fan], g a gradient by the output of a consumer of some axes of a layer.

    `gradients` are those of the layer's output.
    """

    def __init__(self, step: LayerStep, axes: Sequence[Axis], gradients: Activations) -> None:
        self._gradients, self._tokens, self._ranks = gradients, 0, step.walk.ranks
        self._device = step.walk.source.device
        self._axes: dict[nn.Module | None, list[Axis]] = {}
        for axis in axes:
            module = find(step.module, axis.consumer.module, axis.layer)
            self._axes.setdefault(module if axis.consumer.linear else None, []).append(axis)
        self._sums: dict[nn.Module | None, Tensor] = {}

    @contextmanager
    def listening(self) -> Iterator[None]:
        """While entered, gradients of a forward and backward are added."""
        hooks = [
            module.register_forward_hook(self._hook) for module in self._axes if module is not None
        ]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def _hook(self, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
        # of an output that is a view, and is added to in place, only the base is told
        base = output if output._base is None else output._base
        base.register_hook(lambda gradient: self._add(module, gradient.detach()))

    def _add(self, module: nn.Module | None, gradient: Tensor) -> None:
        rows = gradient.flatten(0, -2)
        if module not in self._sums:
            self._sums[module] = torch.zeros(rows.shape[1], rows.shape[1], device=rows.device)
        for some in rows.split(_ROWS):
            own = some.float()
            self._sums[module].addmm_(own.T, own)

    def passed(self, windows: slice) -> None:
        """Some windows went down; `gradients` are still those of the layer's output."""
        if self._axes:
            own = self._gradients[windows]
            self._tokens += own.shape[0] * own.shape[1]
            if None in self._axes:
                self._add(None, own.to(self._device))

    def found(self) -> dict[str, Tensor]:
        """The means over tokens, by AXIS/output_fisher."""
        found: dict[str, Tensor] = {}
        for module, axes in self._axes.items():
            about = f"{OUTPUT_FISHER} of {axes[0].name}"
            tokens = sum(self._ranks.each(about, self._tokens))
            (sums,) = self._ranks.summed(about, [self._sums.pop(module)])
            found |= {f"{axis.name}/{OUTPUT_FISHER}": (sums / tokens).cpu() for axis in axes}
        return found
