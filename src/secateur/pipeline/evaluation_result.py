"""What an evaluation found: perplexity, agreement with the dense model, tasks, continuations."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, overload

from ..data import Beginning
from ..evaluation import Agreement, Estimate, Perplexity, TaskResult, changes, means


@dataclass(frozen=True, slots=True)
class Continuation:
    """A prompt and what follows it greedily; `dense` is what the dense model writes."""

    prompt: str
    text: str
    dense: str | None = None

    def to_json(self) -> dict[str, Any]:
        """By name."""
        own = {"prompt": self.prompt, "text": self.text}
        return own if self.dense is None else {**own, "dense": self.dense}


@dataclass(frozen=True)
class Evaluation(Sequence[Perplexity]):
    """Numbers of a model, each with a standard error; it reads as the list of its perplexities.

    `dense_perplexities` and `dense_tasks` are of the dense model, where there is one.
    `text` is the name of the one that was measured on and `begin` what windows begin with (None
    without one), `form` which class loads the model: two are equal if their numbers are.
    """

    perplexities: tuple[Perplexity, ...] = ()
    dense_perplexities: tuple[Perplexity, ...] = ()
    agreement: tuple[Agreement, ...] = ()
    tasks: tuple[TaskResult, ...] = ()
    dense_tasks: tuple[TaskResult, ...] = ()
    continuations: tuple[Continuation, ...] = ()
    text: str | None = field(default=None, compare=False)
    begin: Beginning | None = field(default=None, compare=False)
    form: Mapping[str, Any] = field(default_factory=dict, compare=False)

    @overload
    def __getitem__(self, index: int) -> Perplexity: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[Perplexity, ...]: ...
    def __getitem__(self, index: Any) -> Any:
        """The perplexity at one window length, in the order in which they were asked for."""
        return self.perplexities[index]

    def __len__(self) -> int:
        """How many window lengths there are."""
        return len(self.perplexities)

    @property
    def means(self) -> dict[str, Estimate]:
        """Means over tasks; see `secateur.evaluation.means`."""
        return means(self.tasks)

    @property
    def dense_means(self) -> dict[str, Estimate]:
        """The same of the dense model."""
        return means(self.dense_tasks)

    @property
    def task_changes(self) -> dict[str, dict[str, Estimate]]:
        """By task and metric the mean change from the dense model, question by question."""
        dense = {one.name: one for one in self.dense_tasks}
        return {one.name: changes(one, dense[one.name]) for one in self.tasks if one.name in dense}

    def to_json(self) -> dict[str, Any]:
        """All of it by name; what was not asked for is not there."""
        found: dict[str, Any] = {"form": dict(self.form)}
        if self.begin is not None:
            found["bos"] = self.begin.to_json()
        for name in ("perplexities", "dense_perplexities", "agreement", "tasks", "dense_tasks"):
            if values := getattr(self, name):
                found[_KEYS.get(name, name)] = [one.to_json() for one in values]
        if self.tasks:
            found["means"] = _said(self.means)
        if self.dense_tasks:
            found["dense_means"] = _said(self.dense_means)
            found["task_changes"] = {name: _said(one) for name, one in self.task_changes.items()}
        if self.continuations:
            found["continuations"] = [one.to_json() for one in self.continuations]
        return found


# "perplexity" is a list in every command's JSON.
_KEYS = {"perplexities": "perplexity", "dense_perplexities": "dense_perplexity"}


def _said(estimates: Mapping[str, Estimate]) -> dict[str, Any]:
    return {name: one.to_json() for name, one in estimates.items()}
