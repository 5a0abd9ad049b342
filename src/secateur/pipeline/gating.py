"""The gradient that a search by gates asks for: on parts of the calibration windows, in turns.

The windows that ways to prune are judged on take no part. The dense model's last hidden states are
made once for each part. Where the repair in force fits what stays, gates fit consumers, too.
"""

from collections.abc import Mapping

import torch
from jaxtyping import Int64
from torch import Tensor

from ..checkpoint import Kept, digest
from ..evaluation import last_states
from ..progress import telling
from ..search import Gates, Gradient
from ..stats import Activations, Statistics, Walk
from .estimate import asking_windows
from .gated import gated_divergence
from .passes import fits_gates, walk
from .scoring import gates_of_parts
from .subject import Subject


def gradient_of_gates(
    subject: Subject, tokens: Int64[Tensor, "window token"] | None, statistics: Statistics
) -> Gradient | None:
    """KL(dense || gated) and its gradient by gates of units; None if no search asks."""
    if tokens is None or not subject.config.asks_gradient:
        return None
    asking = asking_windows(tokens)
    seen = tokens if asking is None else tokens[: -len(asking)]
    fitted_by = statistics if fits_gates(subject.config) else None
    fitted_on = digest(None if fitted_by is None else walk(subject, tokens).known_by)
    dense: dict[tuple[int, int], Activations] = {}

    def found(gates: Gates, count: int, turn: int) -> tuple[float, Gates]:
        windows = min(max(count // seen.shape[1], 1), len(seen))
        start = turn * windows % len(seen)
        some = torch.arange(start, start + windows) % len(seen)
        way = walk(subject, seen[some]).shared()
        kept = way.kept("gates", gates=_mark(gates), fitted_on=fitted_on)
        if not kept.whole:
            with telling():  # the search itself tells its steps
                if (start, windows) not in dense:
                    (dense[start, windows],) = last_states([way], [Kept()], "gates")
                kept.end(*_asked(subject, way, dense[start, windows], gates, fitted_by))
        tensors, value = kept.ended
        return value, {name: tensors[name] for name in gates}

    return found


def _asked(
    subject: Subject,
    way: Walk,
    dense: Activations,
    gates: Gates,
    fitted_by: Statistics | None,
) -> tuple[Mapping[str, Tensor], float]:
    """Both passes: the gradient by name, and the divergence."""
    leaves = {name: gate.detach().float().requires_grad_() for name, gate in gates.items()}
    parts = gates_of_parts(subject.structure, subject.opened.structures, leaves)
    fine = {axis: gate.detach() for axis, gate in parts.items()}
    value, by_part = gated_divergence(way, dense, fine, fitted_by)
    made, given = list(parts.values()), [by_part[axis] for axis in parts]
    found = torch.autograd.grad(made, list(leaves.values()), given)
    return dict(zip(leaves, found, strict=True)), value


def _mark(gates: Gates) -> str:
    """What gates are known by."""
    return digest({name: gate.float().numpy().tobytes().hex() for name, gate in gates.items()})
