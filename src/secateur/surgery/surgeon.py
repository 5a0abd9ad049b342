"""The surgeon: cuts and repairs the consumers of one layer after the other, and reports on each.

A consumer's normal matrices are added in fp32. Where that may have moved what was fitted by more
than `TOLERANCE` of it, or less is left than rounding could tell, they are added again in fp64.
"""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial

import torch
from torch import Tensor, nn

from ..stats import Activations, LayerStep
from ..stats.collect import find
from ..stats.finite import not_finite
from ..stats.substitute import Substitutes, substituted
from ..structure import Axis, Plan
from .depth import Depth, Place
from .normal import Normal
from .observe import Consumer
from .refit import Fit
from .repair import Repair
from .replay import anatomy
from .rows import gathering
from .streams import Streams

# Of the windows, the share that only chooses the damping.
HELD_OUT = 1 / 8
# What rounding of fp32 sums may be, as a share of the change of the weights, or of what is left.
TOLERANCE = 1e-3
_TINY = 1e-30
_ROWS = 2**10


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
class _Gathered:
    """Normal matrices of fitted and of held-out windows; `power`: squares of the target of these.

    Without held-out windows it is that of all.
    """

    normal: Normal
    held: Normal | None
    power: float


@dataclass(eq=False)
class Surgeon:
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

    def repair_layer(
        self,
        step: LayerStep,
        axes: Sequence[Axis],
        dense: Activations,
        student: Activations | None,
    ) -> None:
        """Find the new tensors of one layer, and send both models' states through it."""
        self._tensors, self._reports, self._anticipated = {}, [], []
        edits = {**self._cut_experts(step, axes), **self.depth.silenced(step)}
        linears = [axis for axis in axes if axis.consumer.linear]
        consumers = [Consumer.of(axis, self.plan, step.module) for axis in linears]
        gone = {a.consumer.module for a in linears if (a.layer, a.kind) in self.depth.blocks}
        if self.stopped or len(gone) == len(consumers):
            self._only_cut(
                step, [c for c in consumers if c.name not in gone], edits, dense, student
            )
        else:
            self._mend(self._streams(step, axes, consumers, edits, dense, student), gone)
        step.found = self._tensors
        step.value = {
            "reports": [asdict(report) for report in self._reports],
            "anticipated": self._anticipated,
            "stopped": self.stopped,
        }

    def _only_cut(
        self,
        step: LayerStep,
        consumers: Sequence[Consumer],
        edits: Substitutes,
        dense: Activations,
        student: Activations | None,
    ) -> None:
        """Run both models where nothing is fitted."""
        step.run(dense)
        for consumer in consumers:
            edits = {**edits, **consumer.edit(consumer.weight, consumer.bias)}
        if student is not None:
            with substituted(edits):
                step.run(student)

    def _streams(
        self,
        step: LayerStep,
        axes: Sequence[Axis],
        consumers: Sequence[Consumer],
        edits: dict[tuple[nn.Module, str], nn.Parameter | None],
        dense: Activations,
        student: Activations | None,
    ) -> Streams:
        _, hidden, call = next(step.batches(dense))
        found = anatomy(step.module, hidden, call, consumers).of_first(step.walk.ranks)
        by_name = {consumer.name: consumer for consumer in consumers}
        called = [by_name[name] for name in found.multipliers]
        ahead = self._ahead_of(axes, found.multipliers)
        return Streams(step, called, dense, student, self.target, found, ahead, edits)

    def _mend(self, streams: Streams, gone: Collection[str]) -> None:
        """Fit those that are not gone, one after the other; after one that stops they are cut."""
        streams.run_dense()
        for consumer in streams.consumers:
            if consumer.name in gone:
                continue
            found = None if self.stopped else self._fit(streams, consumer)
            if found is None:
                streams.edits |= consumer.edit(consumer.weight, consumer.bias)
            else:
                streams.settle(consumer, *found)
        streams.run_student()

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
            linear = all(a.consumer.linear for a in axes if a.kind == axis.kind)
            last = max(own, key=called.index) if linear else None
            if states is not None and last is not None and multipliers[last]:
                found[last] = states
                self._anticipated.append((axis.layer, axis.kind))
        return found

    def _cut_experts(
        self, step: LayerStep, axes: Sequence[Axis]
    ) -> dict[tuple[nn.Module, str], nn.Parameter | None]:
        """Experts, whose consumers have no module of their own, are cut and not fitted."""
        edits: dict[tuple[nn.Module, str], nn.Parameter | None] = {}
        for axis in axes:
            member, removed = axis.consumer, self.plan.removed_tensor(axis)
            if not member.linear and len(removed):
                module = find(step.module, member.module, axis.layer)
                whole = module.get_parameter(member.parameter).detach()
                edits[module, member.parameter] = nn.Parameter(
                    member.masked(whole, removed), requires_grad=False
                )
        return edits

    def _fit(self, streams: Streams, consumer: Consumer) -> tuple[Tensor, Tensor | None] | None:
        """Fit one consumer, report it and give its weight and bias; None if it is to stay cut."""
        found, before, after, doubted = self._tried(streams, consumer, torch.float32)
        if doubted:
            found, before, after, _ = self._tried(streams, consumer, torch.float64)
        self.stopped = found.stop
        moved = bool(found.change.any() or found.added.any())
        self._reports.append(
            ConsumerReport(
                consumer.name,
                streams.target(consumer),
                0.0 if found.stop else found.damping,
                found.condition,
                before,
                before if found.stop else after,
                found.warnings,
                fitted=moved and not found.stop,
            )
        )
        return None if found.stop else self._kept(consumer, found)

    def _kept(self, consumer: Consumer, found: Fit) -> tuple[Tensor, Tensor | None]:
        """Note the new tensors of a consumer; the change becomes its weight."""
        weight = found.change
        for own, kept in zip(weight.split(_ROWS), consumer.weight.split(_ROWS), strict=True):
            own += kept  # some rows at a time: they are made the change's dtype for it
        bias = consumer.bias
        if bias is not None or found.added.any():
            bias = found.added + (0 if bias is None else bias)
            self._tensors[f"{consumer.name}.bias"] = bias.float().cpu()
        self._tensors[f"{consumer.name}.weight"] = weight.float().T.movedim(0, consumer.dim).cpu()
        return weight, bias

    def _tried(
        self, streams: Streams, consumer: Consumer, dtype: torch.dtype
    ) -> tuple[Fit, float, float, bool]:
        """What the repair makes of a consumer by sums in `dtype`; errors before and after.

        And whether rounding of the sums may be too much of what was fitted, or of what is left.
        """
        sums = self._gather(streams, consumer, dtype)
        given = {
            "normal": sums.normal,
            "held_out": sums.held,
            "weight": consumer.weight,
            "owner": consumer.owner,
            "damping": self.damping,
            "where": consumer.name,
        }
        fit: Fit = self.repair.function(**{name: given[name] for name in self.repair.needs})
        scored, power = sums.held or sums.normal, max(sums.power, _TINY)
        before, after = scored.error() / power, scored.error(fit.change, fit.added) / power
        doubted = fit.doubt > TOLERANCE or (scored.noise > 0 and after < TOLERANCE * before)
        return fit, before, after, doubted

    def _gather(self, streams: Streams, consumer: Consumer, dtype: torch.dtype) -> _Gathered:
        """Normal matrices of one consumer, cut and not yet repaired.

        Raises:
            SecateurError: an output that is not finite.
        """
        outputs, inputs = consumer.weight.shape
        device = consumer.weight.device
        fitted = self.held - max(1, int(self.held * HELD_OUT)) if self.held else None
        windows, length = streams.step.walk.tokens.shape
        taking_up = partial(gathering, inputs=inputs, outputs=outputs, dtype=dtype, device=device)
        sums = taking_up(length * (windows if fitted is None else fitted))
        held = None if fitted is None else taking_up(length * (windows - fitted))
        powers: list[Tensor] = []
        for part in streams.left_by(consumer):
            first = len(part.left)
            if fitted is not None:
                first = min(max(fitted - part.windows.start, 0), first)
            sums.update(*part.tokens(slice(None, first)))
            if held is not None:
                held.update(*part.tokens(slice(first, None)))
            powers.append(part.power(slice(0 if held is None else first, None)))
        ranks = streams.step.walk.ranks
        found = [one.of_all(ranks).normal() for one in (sums, held) if one is not None]
        (power,) = ranks.summed("power", [torch.stack(powers).sum()])
        if not all(math.isfinite(one.square) for one in found):
            raise not_finite(f"the output of {consumer.name}", part.gives.dtype)
        return _Gathered(found[0], None if held is None else found[1], float(power))
