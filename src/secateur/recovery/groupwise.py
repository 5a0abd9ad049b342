"""Group-wise quantised tuning: a frozen few-bit weight and a low-rank change of its zero points.

    y = W~ x + s B A pool(x),   s = alpha / rank,   pool sums x over each group of columns

A is [rank, group], B [out, rank], B = 0 at the start. Since pool(x) meets the zero points of the
groups alone, the change merges exactly:  beta += s B A,  codes and scales untouched, so that the
merged model stays in b bits. The form is QA-LoRA's (2309.14717); SAAP (2412.15127) ends with it.

The codes stay packed while training: the weight is made anew on the way forward and on the way
back, one linear at a time.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..checkpoint import OnDemand, Packed, View, packed, unpacked
from ..errors import SecateurError
from ..memory import give_back
from .grid import Quantised, quantised


class GroupwiseLinear(nn.Module):
    """A linear in few bits with an adapter on its zero points."""

    def __init__(
        self,
        weight: Quantised,
        bias: nn.Parameter | None,
        *,
        rank: int,
        alpha: float,
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        out, groups = weight.scales.shape
        device = weight.scales.device
        self.in_features, self.out_features = weight.codes.shape[1], out
        self.bits, self.group, self.scale = weight.bits, weight.group, alpha / rank
        self.register_buffer("codes", packed(weight.codes.cpu(), weight.bits).to(device))
        self.register_buffer("scales", weight.scales)
        self.register_buffer("zeros", weight.zeros)
        self.bias = bias
        start = torch.empty(rank, groups)
        # As for LoRA: uniform, its spread by the number of inputs, here the groups.
        nn.init.kaiming_uniform_(start, a=math.sqrt(5), generator=generator)
        self.lora_a = nn.Parameter(start.to(device))
        self.lora_b = nn.Parameter(torch.zeros(out, rank, device=device))

    def forward(self, inputs: Float[Tensor, "*token in"]) -> Float[Tensor, "*token out"]:
        """W~ x + s B A pool(x) + bias."""
        changed = (self.pooled(inputs) @ self.lora_a.T) @ self.lora_b.T
        outputs: Tensor = _FewBits.apply(inputs, self) + self.scale * changed
        return outputs if self.bias is None else outputs + self.bias

    def pooled(self, inputs: Float[Tensor, "*token in"]) -> Float[Tensor, "*token group"]:
        """Sums over groups of columns; the last group may be shorter."""
        columns = min(self.group, self.in_features)
        short = -self.in_features % columns
        return nn.functional.pad(inputs, (0, short)).unflatten(-1, (-1, columns)).sum(dim=-1)

    def quantised(self, *, merged: bool) -> Quantised:
        """The weight in few bits, with the adapter merged into the zero points or without it."""
        codes = unpacked(self.codes, self.bits, self.in_features)  # type: ignore[arg-type]
        zeros: Tensor = self.zeros  # type: ignore[assignment]
        if merged:
            zeros = zeros + self.scale * (self.lora_b @ self.lora_a).detach()
        scales: Tensor = self.scales  # type: ignore[assignment]
        return Quantised(codes, scales, zeros, self.bits, self.group)


class _FewBits(torch.autograd.Function):
    """W~ x without a floating-point weight that lives until the way back."""

    @staticmethod
    def forward(ctx: Any, inputs: Tensor, linear: GroupwiseLinear) -> Tensor:
        ctx.linear = linear
        weight = linear.quantised(merged=False).weight.to(inputs.dtype)
        return nn.functional.linear(inputs, weight)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (gradient,) = gradients
        return gradient @ ctx.linear.quantised(merged=False).weight.to(gradient.dtype), None


class Groupwise:
    """All `linears` of a model (paths) in few bits, their adapters ready to be trained.

    They are quantised as `stored` has them, if it is given: `model` may hold them rounded.

    Raises:
        SecateurError: a module that is no plain linear.
    """

    def __init__(
        self,
        model: nn.Module,
        linears: Sequence[str],
        stored: View | None = None,
        *,
        bits: int,
        group: int,
        grid: str,
        rank: int,
        alpha: float,
        seed: int,
    ) -> None:
        generator = torch.Generator().manual_seed(seed)
        self._modules: dict[str, GroupwiseLinear] = {}
        model.requires_grad_(False)
        for path in linears:
            linear = model.get_submodule(path)
            if not isinstance(linear, nn.Linear):
                raise SecateurError(
                    f"{path} is a {type(linear).__name__}, and only nn.Linear is quantised by group"
                    ".\nType --recipe lora or --recipe distil."
                )
            weight = linear.weight.detach()
            if stored is not None:
                weight = stored.tensor(f"{path}.weight").to(weight.device)
            few = quantised(weight, bits, group, grid=grid, storage=torch.float16)
            own = GroupwiseLinear(few, linear.bias, rank=rank, alpha=alpha, generator=generator)
            parent, _, name = path.rpartition(".")
            setattr(model.get_submodule(parent), name, own)
            self._modules[path] = own
            give_back()

    @property
    def parameters(self) -> dict[str, nn.Parameter]:
        """A and B of every linear."""
        return {
            f"{path}.{name}": getattr(module, name)
            for path, module in self._modules.items()
            for name in ("lora_a", "lora_b")
        }

    def packed(self) -> dict[str, Packed]:
        """The merged linears, packed, by path."""
        found: dict[str, Packed] = {}
        for path, module in self._modules.items():
            merged = module.quantised(merged=True)
            codes, scales, zeros = (t.cpu() for t in (merged.codes, merged.scales, merged.zeros))
            found[path] = Packed.of(codes, scales, zeros, merged.bits, merged.group)
        return found

    def tensors(self) -> Mapping[str, Tensor]:
        """The merged weights in floating point, by tensor name: what the packed ones stand for.

        Each is made when it is asked for, of its codes.
        """
        linears = {f"{path}.weight": one for path, one in self.packed().items()}
        return OnDemand(linears, lambda name: linears[name].weight(torch.float32))
