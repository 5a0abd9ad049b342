"""Slopes by a unit's gate: a factor of one on all that the unit hands to its consumer.

With a the consumer's input, J what goes back (`objective`) and, for token t and unit u,

    s_tu = sum over channels c of u of a_tc dJ/da_tc

    gate_fisher  = mean_n (sum_t s_tu)^2 / (T-1)     J = -sum_t log p(y_t), y drawn from the model
    gate_entropy = mean_n sum_t |s_tu| / (T-1)       J = sum_t entropy of p_t

The first is the diagonal of the Fisher information of the gates, a mean over predictions: without
the unit alone, KL(dense || without) ~ gate_fisher / 2 nats a token. Labels of one window are drawn
each by itself, so that the square of the sum is, in the mean, the sum of squares.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..device_memory import sent
from ..structure import Axis
from .blocks import in_cache
from .collect import find
from .objective import DRAWN, ENTROPY
from .slices import watched
from .stream import LayerStep

GATE_FISHER, GATE_ENTROPY = "gate_fisher", "gate_entropy"
# Each by what goes back for it.
GATES = {GATE_FISHER: DRAWN, GATE_ENTROPY: ENTROPY}


class Gates:
    """The term `need` of some axes of a layer, as single windows go back; `predictions` in all."""

    def __init__(self, step: LayerStep, axes: Sequence[Axis], need: str, predictions: int) -> None:
        device = step.walk.source.device
        self._need, self._predictions, self._finite = need, predictions, step.finite
        self._ranks = step.walk.ranks
        self._linears: dict[nn.Module, list[Axis]] = {}
        self._experts: dict[Tensor, Callable[[int, Tensor], None]] = {}
        for axis in axes:
            module = find(step.module, axis.consumer.module, axis.layer)
            if axis.consumer.linear:
                self._linears.setdefault(module, []).append(axis)
            else:
                self._experts[module.get_parameter(axis.consumer.parameter)] = self._expert(axis)
        self._window, self._total = (
            {axis.name: torch.zeros(axis.units, device=device) for axis in axes} for _ in range(2)
        )
        self._channels = {
            axis.name: sent(axis.consumer.blocks.indices(torch.arange(axis.units)), device)
            for axis in axes
            if axis.consumer.linear
        }

    @contextmanager
    def listening(self) -> Iterator[None]:
        """While entered, slopes of a forward and backward of one window are added."""
        with ExitStack() as stack:
            for module, axes in self._linears.items():
                stack.callback(module.register_forward_pre_hook(self._linear(axes)).remove)
            stack.enter_context(watched(self._experts))
            yield

    def _linear(self, axes: Sequence[Axis]) -> Callable[[nn.Module, tuple[Any, ...]], Any]:
        def hook(module: nn.Module, args: tuple[Any, ...]) -> Any:
            alias = args[0].view_as(args[0])  # whose gradient is by this reader alone
            given = args[0].detach()

            def tell(gradient: Tensor) -> None:
                for axis in axes:
                    channels = self._channels[axis.name]
                    for slopes in self._slopes(axis, given, gradient):
                        self._add(axis, slice(None), slopes[:, channels].sum(dim=2))

            alias.register_hook(tell)
            return (alias, *args[1:])

        return hook

    def _expert(self, axis: Axis) -> Callable[[int, Tensor], None]:
        units = axis.units // axis.groups

        def observe(group: int, inputs: Tensor) -> None:
            given, own = inputs.detach(), slice(group * units, (group + 1) * units)

            def tell(gradient: Tensor) -> None:
                for slopes in self._slopes(axis, given, gradient):
                    self._add(axis, own, slopes.unflatten(1, (units, -1)).sum(dim=2))

            inputs.register_hook(tell)

        return observe

    def _slopes(
        self, axis: Axis, given: Tensor, gradient: Tensor
    ) -> Iterator[Float[Tensor, "row channel"]]:
        """Inputs times their gradients, fp32, some rows at a time."""
        rows, by_rows = given.flatten(0, -2), gradient.detach().flatten(0, -2)
        self._finite.see(f"the gradient of the input of {axis.consumer.module}", by_rows)
        for some, others in zip(in_cache(rows), in_cache(by_rows), strict=True):
            yield some.float() * others.float()

    def _add(self, axis: Axis, units: slice, slopes: Float[Tensor, "row unit"]) -> None:
        slopes = slopes.abs() if self._need == GATE_ENTROPY else slopes
        self._window[axis.name][units] += slopes.sum(dim=0)

    def passed(self, windows: slice) -> None:
        """One window went down."""
        assert windows.stop - windows.start == 1, "what experts are given says no window"
        for name, sums in self._window.items():
            self._total[name] += sums.square() if self._need == GATE_FISHER else sums
            sums.zero_()

    def found(self) -> dict[str, Tensor]:
        """The term [unit], fp32, by AXIS/NEED."""
        totals = self._ranks.summed(self._need, list(self._total.values()))
        return {
            f"{name}/{self._need}": (total / self._predictions).cpu()
            for name, total in zip(self._total, totals, strict=True)
        }
