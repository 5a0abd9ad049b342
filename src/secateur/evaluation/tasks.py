"""Zero-shot tasks: which there are, and what was found of them.

A question is answered by the choice of the largest log-likelihood (`acc`), or of the largest one
per character (`acc_norm`). The standard error of a task is that of a mean of its questions, that of
a mean over tasks counts tasks as fixed and questions as drawn: sqrt(sum of squares) / tasks. The
change from another model is of the same questions, and so is its error: that of the mean of
differences.
"""

import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from types import ModuleType
from typing import Any

from ..errors import SecateurError
from .local_tasks import LocalTask, is_local, local_tasks
from .standard_error import Estimate, mean_of_draws, mean_of_means

# The tasks of the pruning papers, and where the harness has them: to read its list of all takes
# long.
SEVEN = {
    "boolq": "super_glue/boolq",
    "piqa": "piqa",
    "hellaswag": "hellaswag",
    "winogrande": "winogrande",
    "arc_easy": "arc",
    "arc_challenge": "arc",
    "openbookqa": "openbookqa",
}
ZERO_SHOT = "zero-shot"
# The papers' tables have acc_norm of these and acc of the others.
_NORMED = ("hellaswag", "openbookqa", "openbook_qa")


@dataclass(frozen=True)
class TaskResult:
    """What was found of a task: metrics by name over so many items.

    `values` has the metric of every item, where it has one. A `group` is made of other tasks.
    """

    name: str
    items: int
    metrics: Mapping[str, Estimate]
    values: Mapping[str, Sequence[float]] = field(default_factory=dict, repr=False, compare=False)
    group: bool = False

    def to_json(self) -> dict[str, Any]:
        """By name, without the single items."""
        metrics = {name: one.to_json() for name, one in self.metrics.items()}
        return {"task": self.name, "items": self.items, **metrics}


@dataclass(frozen=True)
class Asked:
    """Tasks by name, of the harness, and those of local files."""

    names: tuple[str, ...] = ()
    local: tuple[LocalTask, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.names or self.local)


def asked_tasks(typed: Iterable[str]) -> Asked:
    """What was typed: names of tasks, `zero-shot` (the seven), files and folders; with commas
    between them, or one by one.

    Raises:
        SecateurError: a file that is none of tasks, or two tasks of one name.
    """
    names: list[str] = []
    local: list[LocalTask] = []
    for one in filter(None, (part.strip() for text in typed for part in text.split(","))):
        if one == ZERO_SHOT:
            names += [name for name in SEVEN if name not in names]
        elif one not in SEVEN and is_local(one):
            local += local_tasks(one)
        elif one not in names:
            names.append(one)
    both = [*names, *(task.name for task in local)]
    for name in both:
        if both.count(name) > 1:
            raise SecateurError(f"--tasks has two tasks {name!r}; rename a file, or leave one out.")
    return Asked(tuple(names), tuple(local))


def harness() -> ModuleType:
    """What runs tasks with lm-evaluation-harness, which takes seconds to import.

    Raises:
        SecateurError: it is not installed.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of packages that it brings along
            return import_module(".in_harness", __package__)
    except ImportError as error:
        raise SecateurError(
            f'Tasks need lm-evaluation-harness ({error}).\nType: pip install "secateur[harness]"'
        ) from error


def means(results: Sequence[TaskResult]) -> dict[str, Estimate]:
    """Means over tasks that have an accuracy: by `acc`, by `acc_norm` (by acc where there is none),
    and as the papers' tables have it; none of fewer than two tasks.
    """
    tasks = [one.metrics for one in results if "acc" in one.metrics and not one.group]
    names = [one.name for one in results if "acc" in one.metrics and not one.group]
    if len(tasks) < 2:
        return {}
    normed = [one.get("acc_norm", one["acc"]) for one in tasks]
    mixed = [
        norm if name in _NORMED else one["acc"]
        for name, norm, one in zip(names, normed, tasks, strict=True)
    ]
    return {
        "acc": mean_of_means([one["acc"] for one in tasks]),
        "acc_norm": mean_of_means(normed),
        "papers": mean_of_means(mixed),
    }


def changes(ours: TaskResult, dense: TaskResult) -> dict[str, Estimate]:
    """By metric the mean change from the dense model, question by question."""
    return {
        name: mean_of_draws([a - b for a, b in zip(own, dense.values[name], strict=True)])
        for name, own in ours.values.items()
        if len(dense.values.get(name, ())) == len(own) > 0
    }
