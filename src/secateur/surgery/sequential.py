"""Repair in sequence: every consumer is fitted on what the repaired layers before it let through.

One walk, two sets of hidden states: those of the dense model and those of the student, whose layers
are cut and repaired as they are passed. For each consumer, in the order the layer calls them, the
inputs Z are the student's, and the target T is, by name:

| target | T |
|---|---|
| `residual` | dense residual stream after the sub-block, minus the student's before it |
| `dense_output` | the dense model's output of the consumer |
| `own_output` | what the student's own consumer gave before it was cut, on its own inputs |
| `one_shot` | as `dense_output`, and Z too is the dense model's: no student is run |

With `residual` each sub-block also repays the error that it inherits. With y_j the outputs of the
consumers called before i in the layer, h the layer's input, ' the student's and m a scalar,

    T = y_i + (h + m sum_j y_j - h' - m sum_j y'_j) / m

That holds for sequential and parallel sub-blocks, where the layer's output is h + m sum y. So it is
asked of the numbers, not of the family: where a layer does otherwise (a norm after the consumer, a
branch that is no axis), what is missing from the stream cannot be added to the consumer's output,
and the layer falls back to `dense_output`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from ..progress import Progress
from ..registry import choose
from ..stats import Activations, LayerStep, Walk
from ..stats.collect import find
from ..stats.stream import Call, hidden_of, not_finite
from ..stats.substitute import Substitutes, substituted
from ..structure import Axis, Plan, Structure
from .mask_tuning import DAMPING as MASK_DAMPING
from .mask_tuning import mask_tuning, sane
from .normal import Normal
from .refit import DAMPING, Fit, refit, refit_on_held_out

TARGETS = {
    "residual": "the dense residual stream after the sub-block",
    "dense_output": "the dense model's output of the consumer",
    "own_output": "the consumer's own output before the cut",
    "one_shot": "the dense model's output, on the dense model's inputs",
}
FITS = {
    "refit": "Refit the kept weights and a bias by least squares, layer after layer.",
    "mask_tuning": "Scale each kept unit by least squares, layer after layer (Kwon et al.).",
}
# Of the windows, the share that only chooses the damping.
HELD_OUT = 1 / 8
# Distance from 1 at which a measured multiplier is 1: in bf16 it cannot be told more exactly.
_NEARLY_ONE = 0.01
_TINY = 1e-30


@dataclass(frozen=True)
class ConsumerReport:
    """How well one consumer could be repaired.

    `before` and `after` are squared errors as shares of the target's squares, on held-out tokens if
    there were any; `damping` is the lambda in force, `condition` that of the damped system.
    """

    module: str
    target: str
    damping: float
    condition: float
    before: float
    after: float
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class Repaired:
    """New tensors by name, consumers' weights with their kept columns only, and the reports."""

    tensors: Mapping[str, Tensor]
    reports: tuple[ConsumerReport, ...]


def sequential_repair(
    walk: Walk,
    structure: Structure,
    plan: Plan,
    *,
    fit: str = "refit",
    target: str = "residual",
    damping: float | None = None,
    every: bool = True,
    progress: Progress | None = None,
) -> Repaired:
    """Repair the consumers of all axes that `plan` cuts, by the calibration tokens of `walk`.

    `damping` None is chosen for each consumer on the last eighth of the windows, which then fit
    nothing. With `every`, consumers that lose nothing but come after some that do repay the error
    that they inherit.

    Raises:
        SecateurError: no such fit or target, activations that are not finite.
    """
    choose("fit", fit, FITS)
    choose("target", target, TARGETS)
    surgeon = _Surgeon(walk, plan, fit, target, damping, every)
    dense = walk.embed()
    student: Activations | None = None
    for step in walk.layers(progress=progress, stage="repair"):
        axes = [axis for axis in structure.axes if axis.layer == step.index]
        if student is None and not any(plan.removed(axis) for axis in axes):
            step.run(dense)
            continue
        if student is None:
            student = dense if target == "one_shot" else dense.clone(limit=walk.limit)
        student_has = surgeon.repair_layer(step, axes, dense, student)
        step.run(dense)
        if student is not dense:
            with substituted(student_has):
                step.run(student)
    return Repaired(surgeon.tensors, tuple(surgeon.reports))


@dataclass(frozen=True)
class _Consumer:
    """A consumer in its layer: its module and which channels it keeps."""

    name: str
    dim: int
    module: nn.Module
    kept: Int64[Tensor, " in"]
    owner: Int64[Tensor, " in"]

    @classmethod
    def of(cls, axis: Axis, plan: Plan, layer: nn.Module) -> "_Consumer":
        member = axis.consumer
        module = layer.get_submodule(member.module.partition(f".{axis.layer}.")[2])
        size = module._parameters["weight"].shape[member.dim]  # type: ignore[union-attr]
        owner = torch.full((size,), -1)
        kept = member.blocks.indices(plan.kept_tensor(axis))
        owner[kept] = torch.arange(len(kept))[:, None]
        stays = torch.ones(size, dtype=torch.bool)
        stays[member.blocks.indices(plan.removed_tensor(axis)).flatten()] = False
        return cls(member.module, member.dim, module, stays.nonzero().flatten(), owner[stays])

    @property
    def weight(self) -> Float[Tensor, "out in"]:
        """The weights that stay, as the module holds them now."""
        whole = self.module._parameters["weight"]
        assert whole is not None
        return whole.detach().movedim(self.dim, 0)[self.kept.to(whole.device)].T

    @property
    def bias(self) -> Float[Tensor, " out"] | None:
        """The bias as the module holds it now."""
        bias = self.module._parameters.get("bias")
        return None if bias is None else bias.detach()

    def edit(self, weight: Float[Tensor, "out in"], bias: Tensor | None) -> Substitutes:
        """Parameters of the dense shape that compute what the cut consumer does."""
        whole = self.module._parameters["weight"]
        assert whole is not None
        wide = torch.zeros_like(whole.detach().movedim(self.dim, 0))
        wide[self.kept.to(whole.device)] = weight.T.to(whole.dtype)
        added = None if bias is None else nn.Parameter(bias.to(whole.dtype), requires_grad=False)
        return {
            (self.module, "weight"): nn.Parameter(wide.movedim(0, self.dim), requires_grad=False),
            (self.module, "bias"): added,
        }


@dataclass(frozen=True)
class _Seen:
    """One batch through a layer: its input and output, and each consumer's, in calling order."""

    before: Tensor
    after: Tensor
    inputs: Mapping[str, Tensor]
    outputs: Mapping[str, Tensor]


def _see(layer: nn.Module, hidden: Tensor, call: Call, consumers: Sequence[_Consumer]) -> _Seen:
    inputs: dict[str, Tensor] = {}
    outputs: dict[str, Tensor] = {}

    def record(name: str) -> Any:
        def hook(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
            # some families flatten windows and tokens before the MLP
            shape = hidden.shape[:-1]
            inputs[name] = args[0].detach().view(*shape, -1)
            outputs[name] = output.detach().view(*shape, -1)

        return hook

    hooks = [c.module.register_forward_hook(record(c.name)) for c in consumers]
    try:
        with torch.no_grad():
            after = hidden_of(layer(hidden, *call[0], **call[1]))
    finally:
        for handle in hooks:
            handle.remove()
    return _Seen(hidden, after, inputs, outputs)


def residual_multiplier(
    before: Float[Tensor, "*token hidden"],
    after: Float[Tensor, "*token hidden"],
    outputs: Sequence[Float[Tensor, "*token hidden"]],
) -> float | None:
    """The scalar m of a layer that computes after = before + m sum(outputs); None if it does not.

    An element tells something where the outputs exceed the rounding of the stream; 99% of those
    must agree.
    """
    total = torch.stack([output.float() for output in outputs]).sum(dim=0)
    size = torch.stack([output.float().abs() for output in outputs]).sum(dim=0)
    rounding = torch.finfo(after.dtype).eps
    delta = after.float() - before.float()
    power = float(total.square().sum())
    multiplier = float((delta * total).sum()) / power if power > 0 else 0.0
    if abs(multiplier - 1) < _NEARLY_ONE:
        multiplier = 1.0
    tolerance = 2 * rounding * (before.float().abs() + after.float().abs() + size)
    telling = (multiplier * total).abs() > 4 * tolerance
    agrees = (delta - multiplier * total).abs() <= tolerance
    if telling.float().mean() < 0.01 or agrees[telling].float().mean() < 0.99:
        return None
    return multiplier


@dataclass(frozen=True)
class _Layer:
    """One layer on the way, and the states before it; `multiplier` is None where none fits."""

    step: LayerStep
    consumers: Sequence[_Consumer]
    dense: Activations
    student: Activations
    multiplier: float | None


class _Surgeon:
    """Repairs layer after layer and keeps what it has found."""

    def __init__(
        self, walk: Walk, plan: Plan, fit: str, target: str, damping: float | None, every: bool
    ) -> None:
        self.tensors: dict[str, Tensor] = {}
        self.reports: list[ConsumerReport] = []
        self._plan, self._fit, self._target, self._every = plan, fit, target, every
        self._damping = damping
        windows = len(walk.tokens)
        self._held = fit == "refit" and damping is None and windows > 1
        self._fitted = windows - max(1, int(windows * HELD_OUT)) if self._held else windows
        self._stopped = False

    def repair_layer(
        self, step: LayerStep, axes: Sequence[Axis], dense: Activations, student: Activations
    ) -> Substitutes:
        """Find the new tensors of one layer; give the parameters that make it the student's."""
        linears = [axis for axis in axes if axis.consumer.parameter == "weight"]
        consumers = [_Consumer.of(axis, self._plan, step.module) for axis in linears]
        edits = self._cut_experts(step, axes)
        if not consumers:
            return edits
        cut = {axis.consumer.module for axis in axes if self._plan.removed(axis)}
        _, inputs, call = next(step.batches(dense))
        seen = _see(step.module, inputs, call, consumers)
        multiplier = residual_multiplier(seen.before, seen.after, list(seen.outputs.values()))
        layer = _Layer(step, consumers, dense, student, multiplier)
        by_name = {consumer.name: consumer for consumer in consumers}
        for consumer in (by_name[name] for name in seen.outputs):
            if consumer.name not in cut and not self._every:
                continue
            only_cut = consumer.edit(consumer.weight, consumer.bias)
            edits = {**edits, **only_cut}
            if not self._stopped:
                before = only_cut if self._target == "one_shot" else edits
                edits = {**edits, **self._repair(layer, consumer, before)}
        return edits

    def _cut_experts(self, step: LayerStep, axes: Sequence[Axis]) -> Substitutes:
        """Experts, whose consumers have no module of their own, are cut and not fitted."""
        edits: dict[tuple[nn.Module, str], nn.Parameter | None] = {}
        for axis in axes:
            member, removed = axis.consumer, self._plan.removed_tensor(axis)
            if member.parameter != "weight" and len(removed):
                module = find(step.module, member.module, axis.layer)
                whole = module.get_parameter(member.parameter).detach()
                masked = member.masked(whole, removed)
                edits[module, member.parameter] = nn.Parameter(masked, requires_grad=False)
        return edits

    def _repair(self, layer: _Layer, consumer: _Consumer, edits: Substitutes) -> Substitutes:
        """Fit one consumer, note and report it; nothing if it is to stay cut as it is."""
        normal, held, power = self._gather(layer, consumer, edits)
        scored = held or normal
        before = scored.error() / max(power, _TINY)
        found = self._fit_to(consumer, normal, held)
        target = self._target
        if target == "residual" and layer.multiplier is None:
            target = "dense_output"
        if self._stopped:
            why = f"{consumer.name}: a scale left [-10, 10]; nothing from here on is tuned"
            warnings = (*found.warnings, why)
            self.reports.append(
                ConsumerReport(
                    consumer.name, target, 0.0, found.condition, before, before, warnings
                )
            )
            return {}
        after = scored.error(found.change, found.added) / max(power, _TINY)
        self.reports.append(
            ConsumerReport(
                consumer.name, target, found.damping, found.condition, before, after, found.warnings
            )
        )
        weight = consumer.weight.to(found.change.dtype) + found.change
        bias = consumer.bias
        if bias is not None or found.added.any():
            bias = found.added + (0 if bias is None else bias)
            self.tensors[f"{consumer.name}.bias"] = bias.float().cpu()
        self.tensors[f"{consumer.name}.weight"] = weight.float().T.movedim(0, consumer.dim).cpu()
        return consumer.edit(weight, bias)

    def _fit_to(self, consumer: _Consumer, normal: Normal, held: Normal | None) -> Fit:
        """The fit that was asked for; a scale out of bounds stops all that follow."""
        where = consumer.name
        if self._fit == "mask_tuning":
            damping = MASK_DAMPING if self._damping is None else self._damping
            scales, found = mask_tuning(
                normal, consumer.weight, consumer.owner, damping, where=where
            )
            self._stopped = not sane(scales)
            return found
        if held is not None:
            return refit_on_held_out(normal, held, where=where)
        return refit(normal, DAMPING if self._damping is None else self._damping, where=where)

    def _gather(
        self, layer: _Layer, consumer: _Consumer, edits: Substitutes
    ) -> tuple[Normal, Normal | None, float]:
        """Normal matrices of one consumer on fitted and on held-out windows; squares of its target.

        `edits` hold the consumer itself: cut, not yet repaired. The squares are those of the
        held-out windows if there are any.
        """
        outputs, inputs = consumer.weight.shape
        device = consumer.weight.device
        normal = Normal.empty(inputs, outputs, device=device)
        held = Normal.empty(inputs, outputs, device=device) if self._held else None
        power = 0.0
        pairs = zip(layer.step.batches(layer.dense), layer.step.batches(layer.student), strict=True)
        for (windows, hidden, call), (_, other, _) in pairs:
            teacher = _see(layer.step.module, hidden, call, layer.consumers)
            with substituted(edits):
                pupil = _see(layer.step.module, other, call, layer.consumers)
            goal = self._goal(consumer, teacher, pupil, layer.multiplier)
            residual = goal - pupil.outputs[consumer.name].float()
            if not torch.isfinite(residual).all():
                raise not_finite(f"the output of {consumer.name}", other.dtype)
            kept = pupil.inputs[consumer.name][..., consumer.kept.to(device)]
            fitted = min(max(self._fitted - windows.start, 0), len(goal))
            normal.update(kept[:fitted].flatten(0, -2), residual[:fitted].flatten(0, -2))
            if held is not None:
                held.update(kept[fitted:].flatten(0, -2), residual[fitted:].flatten(0, -2))
                goal = goal[fitted:]
            power += float(goal.square().sum())
        return normal, held, power

    def _goal(
        self, consumer: _Consumer, teacher: _Seen, pupil: _Seen, multiplier: float | None
    ) -> Float[Tensor, "*token out"]:
        """The target of one consumer for one batch, fp32."""
        if self._target == "own_output":
            with torch.no_grad():
                own: Tensor = consumer.module(pupil.inputs[consumer.name])
            return own.float()
        goal = teacher.outputs[consumer.name].float()
        if self._target != "residual" or multiplier is None:
            return goal
        gap = teacher.before.float() - pupil.before.float()
        for name in teacher.outputs:
            if name == consumer.name:
                break
            gap += multiplier * (teacher.outputs[name].float() - pupil.outputs[name].float())
        return goal + gap / multiplier
