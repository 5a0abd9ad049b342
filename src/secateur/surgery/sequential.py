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

That holds for sequential and parallel sub-blocks, where the layer's output is h + m sum y, and for
attention before a mixture of experts, where h + m y is what comes next. It is asked of the numbers,
not of the family: where a consumer's output is normed before it is added (Gemma 2 and 3, OLMo 2),
what is missing from the stream cannot be added to it, and it is fitted to `dense_output`.

Whole layers and blocks that go are skipped by the student; what is fitted for them, `depth` says.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..checkpoint import Kept, OnDemand, digest
from ..registry import choose
from ..stats import Activations, LayerStep, Walk
from ..stats.collect import find
from ..stats.finite import not_finite
from ..stats.substitute import Substitutes, substituted
from ..structure import Axis, Plan, Structure
from .depth import WHOLE, Depth, Place, forget_streams, streams_after
from .normal import Normal
from .observe import Consumer, Seen, see, stream_multipliers
from .refit import Fit
from .repair import REPAIRS, Repair

TARGETS = {
    "residual": "the dense residual stream after the sub-block",
    "dense_output": "the dense model's output of the consumer",
    "own_output": "the consumer's own output before the cut",
    "one_shot": "the dense model's output, on the dense model's inputs",
}
# Of the windows, the share that only chooses the damping.
HELD_OUT = 1 / 8
_TINY = 1e-30


@dataclass(frozen=True)
class ConsumerReport:
    """How well one consumer could be repaired.

    `before` and `after` are squared errors as shares of the target's squares, on held-out tokens if
    there were any; `damping` is the lambda in force (infinite: the bias alone was fitted),
    `condition` that of the damped system. `fitted` is False where everything tried made the
    held-out error worse, so that the consumer is only cut.
    """

    module: str
    target: str
    damping: float
    condition: float
    before: float
    after: float
    warnings: tuple[str, ...] = ()
    fitted: bool = True


@dataclass(frozen=True)
class Repaired:
    """New tensors by name, consumers' weights with their kept columns only, and the reports.

    Tensors are read when they are asked for. `notes` say what could not be mended.
    """

    tensors: Mapping[str, Tensor]
    reports: tuple[ConsumerReport, ...]
    notes: tuple[str, ...] = ()

    @classmethod
    def of(cls, kept: Kept, depth: Depth) -> "Repaired":
        """What a whole repair found."""
        layers = {name: index for index in kept.layers for name in kept.found(index)}
        values = [kept.value(index) or {} for index in kept.layers]
        reports = [one for value in values for one in value.get("reports", ())]
        mended = {(p[0], p[1]) for value in values for p in value.get("anticipated", ())}
        return cls(
            OnDemand(layers, lambda name: kept.found(layers[name])[name]),
            tuple(ConsumerReport(**{**r, "warnings": tuple(r["warnings"])}) for r in reports),
            tuple(_unmended(depth, mended)),
        )


def sequential_repair(
    walk: Walk,
    structure: Structure,
    plan: Plan,
    *,
    repair: str = "refit",
    target: str = "residual",
    damping: float | None = None,
) -> Repaired:
    """Repair the consumers of all axes that `plan` cuts, by the calibration tokens of `walk`.

    `structure` has the fine axes of all layers, and the coarse ones that `plan` may remove.
    `damping` None is the repair's own; refit then chooses it for each consumer on the last eighth
    of the windows, which fit nothing, so that their error never rises. Consumers that lose nothing
    but come after some that do repay the error that they inherit.

    Raises:
        SecateurError: no such repair or target, activations that are not finite.
    """
    chosen = choose("repair", repair, {name: one for name, one in REPAIRS.items() if one.fits})
    choose("target", target, TARGETS)
    depth = Depth.of(structure.axes, plan)
    walk = walk.like(parts=2 + len(depth.gaps))
    kept = walk.kept(
        "repair",
        plan=digest(plan.keep),
        axes=digest([axis.name for axis in structure.axes]),
        repair=repair,
        target=target,
        damping=damping,
    )
    if not kept.whole:
        fine = [axis for axis in structure.axes if axis.granularity not in WHOLE]
        ahead = streams_after(walk, fine, depth) if target == "residual" else {}
        windows = len(walk.tokens)
        held = "held_out" in chosen.needs and damping is None and windows > 1
        stopped = any((kept.value(i) or {}).get("stopped") for i in kept.done)
        surgeon = _Surgeon(
            plan, chosen, target, damping, depth, ahead, windows if held else 0, stopped
        )
        _operate(walk, fine, surgeon, kept)
        kept.end()
        forget_streams(walk, depth)
    return Repaired.of(kept, depth)


def _operate(walk: Walk, axes: Sequence[Axis], surgeon: "_Surgeon", kept: Kept) -> None:
    """The pass: the dense model, and from the first layer that changes the student beside it."""
    touched = {axis.layer for axis in axes if axis.layer >= 0 and surgeon.plan.removed(axis)}
    begins = min(touched | surgeon.depth.begun, default=len(walk.source))
    states = {"dense": walk.embed(kept, "dense")}
    earlier = kept.state("student") if kept.done else None
    if earlier is not None:
        states["student"] = Activations.of(earlier, limit=walk.limit)
    for step in walk.layers(kept, states, stage="repair"):
        dense = states["dense"]
        if step.index < begins:
            step.run(dense)
            continue
        if "student" not in states and surgeon.target != "one_shot":
            states["student"] = dense.clone(limit=walk.limit)
        if step.index in surgeon.depth.layers:
            step.run(dense)
            continue
        student = states.get("student", dense)
        here = [axis for axis in axes if axis.layer == step.index]
        student_has = surgeon.repair_layer(step, here, dense, student)
        step.run(dense)
        if student is not dense:
            with substituted(student_has):
                step.run(student)


def _unmended(depth: Depth, mended: Iterable[Place]) -> Iterator[str]:
    """What goes, and no linear before it could be fitted to."""
    for start, (layer, kind) in depth.gaps.items():
        if start not in mended:
            yield (
                f"no linear before it is fitted to what went up to the {kind} of layer {layer}"
                " (experts, a norm or a module that is left whole stand between, or blocks run side"
                " by side): those after it repay what they can"
            )


@dataclass(frozen=True)
class _Layer:
    """One layer on the way, and the states before it; `multipliers` by consumer, None: a norm.

    `ahead` has the dense stream after the gap that follows a consumer.
    """

    step: LayerStep
    consumers: Sequence[Consumer]
    dense: Activations
    student: Activations
    multipliers: Mapping[str, float | None]
    ahead: Mapping[str, Activations]

    def target(self, name: str, asked: str) -> str:
        """The target that consumer `name` can have."""
        return "dense_output" if asked == "residual" and not self.multipliers[name] else asked


@dataclass(eq=False)
class _Surgeon:
    """Repairs one layer after the other; each finds its tensors and says how well it went.

    Of `held` windows the last ones are held out; 0: none are. What is `stopped` only cuts.
    """

    plan: Plan
    repair: Repair
    target: str
    damping: float | None
    depth: Depth
    ahead: Mapping[Place, Activations]
    held: int = 0
    stopped: bool = False
    _tensors: dict[str, Tensor] = field(default_factory=dict)
    _reports: list[ConsumerReport] = field(default_factory=list)
    _anticipated: list[Place] = field(default_factory=list)

    @property
    def _fitted(self) -> int | None:
        """How many windows are fitted to, if others are held out."""
        return self.held - max(1, int(self.held * HELD_OUT)) if self.held else None

    def repair_layer(
        self, step: LayerStep, axes: Sequence[Axis], dense: Activations, student: Activations
    ) -> Substitutes:
        """Find the new tensors of one layer; give the parameters that make it the student's."""
        self._tensors, self._reports, self._anticipated = {}, [], []
        edits = self._mended(step, axes, dense, student)
        step.found = self._tensors
        step.value = {
            "reports": [asdict(report) for report in self._reports],
            "anticipated": self._anticipated,
            "stopped": self.stopped,
        }
        return edits

    def _mended(
        self, step: LayerStep, axes: Sequence[Axis], dense: Activations, student: Activations
    ) -> Substitutes:
        linears = [axis for axis in axes if axis.consumer.parameter == "weight"]
        consumers = [Consumer.of(axis, self.plan, step.module) for axis in linears]
        edits = {**self._cut_experts(step, axes), **self.depth.silenced(step)}
        if not consumers:
            return edits
        gone = {a.consumer.module for a in linears if (a.layer, a.kind) in self.depth.blocks}
        _, inputs, call = next(step.batches(dense))
        multipliers = stream_multipliers(step.module, inputs, call, consumers)
        ahead = self._ahead_of(axes, multipliers)
        layer = _Layer(step, consumers, dense, student, multipliers, ahead)
        by_name = {consumer.name: consumer for consumer in consumers}
        for consumer in (by_name[name] for name in multipliers if name not in gone):
            only_cut = consumer.edit(consumer.weight, consumer.bias)
            edits = {**edits, **only_cut}
            if not self.stopped:
                before = only_cut if self.target == "one_shot" else edits
                edits = {**edits, **self._fit(layer, consumer, before)}
        return edits

    def _ahead_of(
        self, axes: Sequence[Axis], multipliers: Mapping[str, float | None]
    ) -> dict[str, Activations]:
        """By consumer, the dense stream after the gap that it is the last linear before.

        Experts after it would change the stream that it is fitted to, and so it is left to those
        after the gap to repay.
        """
        found: dict[str, Activations] = {}
        called = list(multipliers)
        for axis in axes:
            states = self.ahead.get((axis.layer, axis.kind))
            own = [a.consumer.module for a in axes if a.kind == axis.kind]
            linear = all(a.consumer.parameter == "weight" for a in axes if a.kind == axis.kind)
            last = max(own, key=called.index) if linear else None
            if states is not None and last is not None and multipliers[last]:
                found[last] = states
                self._anticipated.append((axis.layer, axis.kind))
        return found

    def _cut_experts(self, step: LayerStep, axes: Sequence[Axis]) -> Substitutes:
        """Experts, whose consumers have no module of their own, are cut and not fitted."""
        edits: dict[tuple[nn.Module, str], nn.Parameter | None] = {}
        for axis in axes:
            member, removed = axis.consumer, self.plan.removed_tensor(axis)
            if member.parameter != "weight" and len(removed):
                module = find(step.module, member.module, axis.layer)
                whole = module.get_parameter(member.parameter).detach()
                edits[module, member.parameter] = nn.Parameter(
                    member.masked(whole, removed), requires_grad=False
                )
        return edits

    def _fit(self, layer: _Layer, consumer: Consumer, edits: Substitutes) -> Substitutes:
        """Fit one consumer, note and report it; nothing if it is to stay cut as it is."""
        normal, held, power = self._gather(layer, consumer, edits)
        scored = held or normal
        before = scored.error() / max(power, _TINY)
        found = self._found(consumer, normal, held)
        self.stopped = found.stop
        after = scored.error(found.change, found.added) / max(power, _TINY)
        moved = bool(found.change.any() or found.added.any())
        self._reports.append(
            ConsumerReport(
                consumer.name,
                layer.target(consumer.name, self.target),
                0.0 if found.stop else found.damping,
                found.condition,
                before,
                before if found.stop else after,
                found.warnings,
                fitted=moved and not found.stop,
            )
        )
        return {} if found.stop else self._kept(consumer, found)

    def _kept(self, consumer: Consumer, found: Fit) -> Substitutes:
        """Note the new tensors of a consumer."""
        weight = consumer.weight.to(found.change.dtype) + found.change
        bias = consumer.bias
        if bias is not None or found.added.any():
            bias = found.added + (0 if bias is None else bias)
            self._tensors[f"{consumer.name}.bias"] = bias.float().cpu()
        self._tensors[f"{consumer.name}.weight"] = weight.float().T.movedim(0, consumer.dim).cpu()
        return consumer.edit(weight, bias)

    def _found(self, consumer: Consumer, normal: Normal, held: Normal | None) -> Fit:
        """What the repair makes of a consumer."""
        given = {
            "normal": normal,
            "held_out": held,
            "weight": consumer.weight,
            "owner": consumer.owner,
            "damping": self.damping,
            "where": consumer.name,
        }
        fit: Fit = self.repair.function(**{name: given[name] for name in self.repair.needs})
        return fit

    def _gather(
        self, layer: _Layer, consumer: Consumer, edits: Substitutes
    ) -> tuple[Normal, Normal | None, float]:
        """Normal matrices of one consumer on fitted and on held-out windows; squares of its target.

        `edits` hold the consumer itself: cut, not yet repaired. The squares are those of the
        held-out windows if there are any.
        """
        outputs, inputs = consumer.weight.shape
        device = consumer.weight.device
        normal = Normal.empty(inputs, outputs, device=device)
        held = None if self._fitted is None else Normal.empty(inputs, outputs, device=device)
        power = 0.0
        pairs = zip(layer.step.batches(layer.dense), layer.step.batches(layer.student), strict=True)
        for (windows, hidden, call), (_, other, _) in pairs:
            teacher = see(layer.step.module, hidden, call, layer.consumers)
            with substituted(edits):
                pupil = see(layer.step.module, other, call, layer.consumers)
            goal = self._goal(layer, consumer, teacher, pupil, windows)
            residual = goal - pupil.outputs[consumer.name].float()
            if not torch.isfinite(residual).all():
                raise not_finite(f"the output of {consumer.name}", other.dtype)
            kept = pupil.inputs[consumer.name][..., consumer.kept.to(device)]
            fitted = len(goal)
            if self._fitted is not None:
                fitted = min(max(self._fitted - windows.start, 0), len(goal))
            normal.update(kept[:fitted].flatten(0, -2), residual[:fitted].flatten(0, -2))
            if held is not None:
                held.update(kept[fitted:].flatten(0, -2), residual[fitted:].flatten(0, -2))
                goal = goal[fitted:]
            power += float(goal.square().sum())
        return normal, held, power

    def _goal(
        self, layer: _Layer, consumer: Consumer, teacher: Seen, pupil: Seen, windows: slice
    ) -> Float[Tensor, "*token out"]:
        """The target of one consumer for one batch, fp32."""
        if self.target == "own_output":
            with torch.no_grad():
                own: Tensor = consumer.module(pupil.inputs[consumer.name])
            return own.float()
        goal = teacher.outputs[consumer.name].float()
        multiplier = layer.multipliers[consumer.name]
        if layer.target(consumer.name, self.target) != "residual" or multiplier is None:
            return goal
        gap = teacher.before.float() - pupil.before.float()
        for name in teacher.outputs:
            if name == consumer.name:
                break
            gap += multiplier * (teacher.outputs[name].float() - pupil.outputs[name].float())
        if consumer.name in layer.ahead:
            gap += self._missing(layer, consumer, teacher, windows)
        return goal + gap / multiplier

    def _missing(
        self, layer: _Layer, consumer: Consumer, teacher: Seen, windows: slice
    ) -> Float[Tensor, "*token out"]:
        """What the gap after `consumer` adds to the dense stream."""
        multiplier = layer.multipliers[consumer.name]
        stream = teacher.before.float()
        for name in teacher.outputs:
            stream = stream + (multiplier or 0.0) * teacher.outputs[name].float()
            if name == consumer.name:
                break
        return layer.ahead[consumer.name][windows].to(stream.device).float() - stream
