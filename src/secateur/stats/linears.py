"""Gradients of plain linears, of every window by itself, from what passes them.

For y = x W^T + b and the gradient d of the loss by y, of each window's tokens t:

    dL/dW = sum_t d_t x_t^T     dL/db = sum_t d_t

so that many windows go through a layer at once. Sums of w dL/dw with their signs need no dL/dW:

    of row o of W     sum_t (y_to - b_o) d_to          of column i     sum_t x_ti (dL/dx)_ti

That a linear computes this, and once a forward of all tokens, is asked of the numbers of the first
batch; where it does not hold (experts, tied or turned weights), gradients are left to autograd.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from .blocks import in_cache
from .finite import Finite
from .products import Weight

# How far a linear's output may lie from ours, in units of the last place of what is summed up; and
# of how many tokens and outputs it is looked at.
_ULPS, _SOME = 4, 16


@dataclass(frozen=True)
class Linear:
    """A module of a layer, with those of its weight and its bias that gradients are wanted of.

    `turned`: its weight is [in, out] (GPT-2's Conv1D).
    """

    module: nn.Module
    weight: Weight | None
    bias: Weight | None

    @property
    def turned(self) -> bool:
        """Whether the weight is [in, out]."""
        return type(self.module).__name__ == "Conv1D"

    @property
    def rows(self) -> int:
        """The weight's dimension that runs over outputs."""
        return 1 if self.turned else 0

    @property
    def by_rows(self) -> bool:
        """Whether the output tells all that is wanted of the weight's outputs."""
        weight = self.weight
        return weight is not None and weight.signed_alone and weight.along(self.rows)

    @property
    def by_columns(self) -> bool:
        """Whether the gradient by the input tells all that is wanted of the weight's inputs."""
        weight = self.weight
        return weight is not None and weight.signed_alone and weight.along(1 - self.rows)


def linears(layer: nn.Module, weights: Mapping[nn.Parameter, Weight]) -> list[Linear] | None:
    """The linears that have all of `weights`; None if others have some."""
    found: list[Linear] = []
    left = set(weights)
    for module in layer.modules():
        own = {name: p for name, p in module._parameters.items() if p is not None and p in weights}
        if not own:
            continue
        plain = isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D"
        if not plain or set(own) - {"weight", "bias"} or not left.issuperset(own.values()):
            return None
        left -= set(own.values())
        weight, bias = (weights[own[n]] if n in own else None for n in ("weight", "bias"))
        found.append(Linear(module, weight, bias))
    return None if left else found


@contextmanager
def tapped(
    chosen: Sequence[Linear], shape: tuple[int, int], finite: Finite, *, check: bool
) -> Iterator[Callable[[], bool]]:
    """While entered, what a forward and backward of `shape` windows and tokens tells is taken up.

    The function that is given says between them whether every module was called once with all
    tokens, and (with `check`) did what a plain linear does.
    """
    windows = shape[0]
    calls: list[nn.Module] = []
    others: list[nn.Module] = []
    told: set[nn.Module] = set()

    def before(one: Linear) -> Callable[[nn.Module, tuple[Any, ...]], Any]:
        def hook(module: nn.Module, args: tuple[Any, ...]) -> Any:
            given = args[0]
            if one.weight is None or not one.by_columns:
                return None
            alias = given.view_as(given)  # whose gradient is by this reader alone
            alias.register_hook(lambda grad: _of_columns(one, given, grad, windows, finite))
            return (alias, *args[1:])

        return hook

    def after(one: Linear) -> Callable[[nn.Module, tuple[Any, ...], Tensor], None]:
        def hook(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
            calls.append(module)
            given, made = args[0].detach(), output.detach()
            if not _whole(given, made, shape) or (check and not _plain(one, given, made)):
                others.append(module)
            # a copy: Falcon adds its attention to what its MLP gave, in place
            kept = made.clone() if one.by_rows else None
            # of an output that is a view, and is added to in place, only the base is told
            base = output if output._base is None else output._base

            def tell(gradient: Tensor) -> None:
                told.add(module)
                _of_rows(one, given, kept, gradient, windows, finite)

            base.register_hook(tell)

        return hook

    def plain() -> bool:
        once = len(calls) == len(set(calls)) == len(chosen)
        return once and not others

    with ExitStack() as stack:
        for one in chosen:
            stack.callback(one.module.register_forward_pre_hook(before(one)).remove)
            stack.callback(one.module.register_forward_hook(after(one)).remove)
        yield plain
    assert len(told) in (0, len(chosen)), "a linear told nothing: its gradient would be missing"


def _whole(given: Tensor, made: Tensor, shape: tuple[int, int]) -> bool:
    """Whether a module was given all tokens of all windows, in whatever shape.

    Of some families a token has several streams.
    """
    rows, tokens = given.shape[:-1].numel(), shape[0] * shape[1]
    return made.shape[:-1] == given.shape[:-1] and rows >= tokens and rows % tokens == 0


def _plain(one: Linear, given: Tensor, made: Tensor) -> bool:
    """Whether some values of the output are those of a plain linear."""
    weight, bias = (one.module._parameters.get(name) for name in ("weight", "bias"))
    assert weight is not None, "it is a linear"
    matrix = (weight if one.turned else weight.T).detach()[:, :_SOME].float()
    rows, got = (tensor.flatten(0, -2)[:_SOME].float() for tensor in (given, made))
    expected, size = rows @ matrix, rows.abs() @ matrix.abs()
    if bias is not None:
        own = bias.detach()[:_SOME].float()
        expected, size = expected + own, size + own.abs()
    near = _ULPS * torch.finfo(made.dtype).eps * size
    far = (got[:, :_SOME] - expected).abs() > near
    return not bool((far & expected.isfinite()).any())


def _of_rows(
    one: Linear,
    given: Tensor,
    made: Tensor | None,
    gradient: Tensor,
    windows: int,
    finite: Finite,
) -> None:
    """What the gradient by a linear's output says of its bias and its weight, or its rows."""
    inputs, by_output = _by_window(given, windows), _by_window(gradient.detach(), windows)
    if one.bias is not None:
        one.bias.add([by_output.sum(dim=1, dtype=torch.float32)], finite)
    if one.weight is not None and not one.weight.signed_alone:
        left, right = (inputs, by_output) if one.turned else (by_output, inputs)
        one.weight.add(_gradients(one.weight, left, right), finite)
    if one.weight is not None and made is not None:
        bias = one.module._parameters.get("bias")
        sums = _summed(_by_window(made, windows), by_output, less=bias)
        one.weight.add_signed(one.rows, sums, finite)


def _of_columns(one: Linear, given: Tensor, gradient: Tensor, windows: int, finite: Finite) -> None:
    """What the gradient by a linear's input says of the columns of its weight."""
    assert one.weight is not None, "it is asked for by its weight"
    inputs, by_input = _by_window(given.detach(), windows), _by_window(gradient.detach(), windows)
    one.weight.add_signed(1 - one.rows, _summed(inputs, by_input), finite)


def _gradients(weight: Weight, left: Tensor, right: Tensor) -> Iterator[Tensor]:
    """The gradients of the weight, of some windows at once; one of all if that will do."""
    if weight.linear:
        yield (left.flatten(0, 1).T @ right.flatten(0, 1))[None]
        return
    for some, others in zip(left.split(weight.at_once), right.split(weight.at_once), strict=True):
        yield some.mT @ others


def _summed(
    one: Tensor, other: Tensor, *, less: Tensor | None = None
) -> Float[Tensor, "window width"]:
    """Products summed over the tokens of each window, in fp32; `less` is taken off the first."""
    shift = None if less is None else less.detach().float()
    sums = torch.zeros(len(one), one.shape[-1], device=one.device)
    for into, own, others in zip(sums, one, other, strict=True):
        for some, with_them in zip(in_cache(own), in_cache(others), strict=True):
            values = some.float() if shift is None else some.float() - shift
            into += (values * with_them.float()).sum(dim=0)
    return sums


def _by_window(tensor: Tensor, windows: int) -> Float[Tensor, "window token width"]:
    return tensor.reshape(windows, -1, tensor.shape[-1])
