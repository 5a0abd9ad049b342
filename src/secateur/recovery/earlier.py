"""How a training went, and how far an earlier one came whose state is on disk."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..checkpoint import OnDemand
from ..errors import SecateurError
from ..ranks import this
from .state import State, damaged, forget, read_state

MOMENTS = ("exp_avg", "exp_avg_sq")


@dataclass(frozen=True, slots=True)
class Check:
    """Losses per token after `step` steps: on what was trained on since the last check, held out.

    `trained` is None before the first step.
    """

    step: int
    trained: float | None
    held_out: float


@dataclass
class Outcome:
    """How training went. `stopped` says why it ended before its last step, if it did."""

    checks: list[Check] = field(default_factory=list)
    steps: int = 0
    best_step: int = 0
    stopped: str | None = None
    tokens: int = 0
    seconds: float = 0.0

    @property
    def overfits(self) -> bool:
        """Whether the loss fell on what was trained on while it rose on held-out examples."""
        later = [check for check in self.checks if check.trained is not None]
        if len(later) < 2:
            return False
        best = min(check.held_out for check in self.checks)
        falls = (later[-1].trained or 0) < (later[0].trained or 0)
        return falls and later[-1].held_out > 1.01 * best


@dataclass(frozen=True, slots=True)
class Earlier:
    """What an earlier run left: tensors by name, and where it stood.

    `mark` says which file has the best parameters; `now`, which tensors were trained: "now", or
    "best" where they are the same.
    """

    tensors: Mapping[str, Tensor]
    outcome: Outcome
    best_loss: float
    worse: int
    share: float
    mark: str
    now: str
    since: list[tuple[float, int]]

    @classmethod
    def of(cls, state: State, steps: int) -> "Earlier":
        """What `state` says, of a training of so many `steps`; its tensors are not looked at.

        Raises:
            KeyError, TypeError, ValueError: it is of another kind.
        """
        values = dict(state.values)
        mark, now = str(values.pop("best")), "best" if values.pop("at_best") else "now"
        best_loss, share = float(values.pop("best_loss")), float(values.pop("share"))
        worse = _count(values.pop("worse"))
        since = [(float(loss), _count(count)) for loss, count in values.pop("since")]
        checks = [Check(**_check(check)) for check in values.pop("checks")]
        outcome = Outcome(checks=checks, **values)
        if max(_count(outcome.steps), _count(outcome.best_step)) > steps:
            raise ValueError("more steps than there are")
        outcome.tokens, outcome.seconds = _count(outcome.tokens), float(outcome.seconds)
        return cls(state.tensors, outcome, best_loss, worse, share, mark, now, since)


def earlier_run(
    store: Path | None,
    fingerprint: str,
    shapes: Mapping[str, torch.Size],
    steps: int,
    *,
    anew: bool,
) -> Earlier | None:
    """What an earlier run left in the file `store`, which the first rank has; None if nothing.

    Its tensors come from there when they are asked for, by all ranks in the same order. `shapes`
    are those of what is trained; a damaged state is forgotten, if `anew`.

    Raises:
        SecateurError: it is of another run, or damaged.
    """
    ranks, found = this(), list[State]()

    def look() -> Any:
        state = read_state(store, fingerprint) if store else None
        if state is None or store is None:
            return None
        try:
            now = Earlier.of(state, steps).now
            for name, shape in shapes.items():
                _check_tensors(state.tensors, now, name, shape)
        except (KeyError, TypeError, ValueError, SecateurError) as error:
            if not anew:
                raise damaged(store) from error
            forget(store)
            return None
        found.append(state)
        return {"names": list(state.tensors), "values": dict(state.values)}

    said = ranks.told("an earlier run", look)
    if said is None:
        return None
    tensors = OnDemand(said["names"], lambda name: ranks.sent(name, lambda: found[0].tensors[name]))
    return Earlier.of(State(tensors, said["values"]), steps)


def _check_tensors(tensors: Mapping[str, Tensor], now: str, name: str, shape: torch.Size) -> None:
    moments = [f"{key}/{name}" for key in MOMENTS if f"{key}/{name}" in tensors]
    for key in {f"{now}/{name}", f"best/{name}", *moments}:
        tensor = tensors[key]
        if tensor.shape != shape or not tensor.is_floating_point():
            raise ValueError(f"{key} is of another kind")
    if not tensors[f"best/{name}"].isfinite().all():  # it would be the result
        raise ValueError(f"the best {name} is not finite")
    if moments and (len(moments) < len(MOMENTS) or tensors[f"step/{name}"].numel() != 1):
        raise ValueError(f"the moments of {name} are not whole")


def _check(raw: dict[str, Any]) -> dict[str, Any]:
    """The fields of a `Check`, as numbers."""
    trained = raw["trained"]
    return {
        **raw,
        "step": _count(raw["step"]),
        "trained": None if trained is None else float(trained),
        "held_out": float(raw["held_out"]),
    }


def _count(value: Any) -> int:
    if type(value) is not int or value < 0:
        raise ValueError(f"{value!r} is no count")
    return value
