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
it is fitted to what makes the norm give T (`norms`); what is added in yet another way is fitted to
`dense_output`.

Whole layers and blocks that go are skipped by the student; what is fitted for them, `depth` says.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from ..checkpoint import Kept, OnDemand, digest
from ..registry import choose
from ..stats import Walk
from ..structure import Axis, Plan, Structure
from .depth import WHOLE, Depth, Place, forget_streams, streams_after
from .repair import REPAIRS
from .streams import TARGETS, parts_kept
from .surgeon import ConsumerReport, Surgeon


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
    walk = walk.shared().like(parts=2 + len(depth.gaps) + parts_kept(structure.axes))
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
        held_of = windows if held else 0
        surgeon = Surgeon(plan, chosen, target, damping, depth, ahead, held_of, stopped)
        _operate(walk, fine, surgeon, kept)
        kept.end()
        forget_streams(walk, depth)
    return Repaired.of(kept, depth)


def _operate(walk: Walk, axes: Sequence[Axis], surgeon: Surgeon, kept: Kept) -> None:
    """The pass: the dense model, and from the first layer that changes the student beside it."""
    touched = {axis.layer for axis in axes if axis.layer >= 0 and surgeon.plan.removed(axis)}
    begins = min(touched | surgeon.depth.begun, default=len(walk.source))
    states = {"dense": walk.embed(kept, "dense")}
    earlier = kept.state("student") if kept.done else None
    if earlier is not None:
        states["student"] = walk.states_of(earlier)
    for step in walk.layers(kept, states, stage="repair"):
        dense = states["dense"]
        if step.index >= begins and "student" not in states and surgeon.target != "one_shot":
            states["student"] = dense.clone(limit=walk.limit)
        if step.index < begins or step.index in surgeon.depth.layers:
            step.run(dense)
        else:
            here = [axis for axis in axes if axis.layer == step.index]
            surgeon.repair_layer(step, here, dense, states.get("student"))


def _unmended(depth: Depth, mended: Iterable[Place]) -> Iterator[str]:
    """What goes, and no linear before it could be fitted to."""
    for start, (layer, kind) in depth.gaps.items():
        if start not in mended:
            yield (
                f"no linear before it is fitted to what went up to the {kind} of layer {layer}"
                " (experts, a norm or a module that is left whole stand between, or blocks run side"
                " by side): those after it repay what they can"
            )
