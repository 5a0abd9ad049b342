"""Many runs on one model: it is opened once, its texts are read once, its passes are shared.

Each kind of pass (inputs, gradients) is made once for all runs that need it. What a run gives does
not depend on which of the others are made, only on which were asked for together.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..checkpoint import Store
from ..config import PruneConfig
from ..evaluation import Perplexity
from ..progress import Progress, telling
from .contest import Known, best_of, cut_by, look_for, read_for
from .measuring import measure, perplexity_of
from .passes import Seen
from .result import Result
from .subject import Subject
from .texts import Texts

# The ways of a run: one, but for the method `best`.
Ways = Sequence[Subject]


@dataclass(frozen=True)
class Together:
    """What runs on one model have in common: texts, statistics, the dense model's perplexity.

    `runs` are the ways of each; `known` are scores, which another ratio or repair has too.
    """

    runs: Sequence[Ways]
    texts: Texts
    seen: Seen
    dense: Sequence[Perplexity]
    known: Known = field(default_factory=dict)


def read_together(runs: Sequence[Ways], store: Store | None, given: Mapping[str, Any]) -> Together:
    """Read the texts, and make the passes that any of the `runs` needs.

    Raises:
        SecateurError: as `read_texts` and `look`.
    """
    read, texts = read_for([way for ways in runs for way in ways], store, given)
    seen = look_for(read, read[0].everywhere, texts.tokens)
    dense = perplexity_of(read[0], texts, "before")
    left = iter(read)
    return Together([[next(left) for _ in ways] for ways in runs], texts, seen, dense)


@dataclass(frozen=True)
class Run:
    """What a run came to, and its row of the comparison."""

    result: Result
    row: dict[str, Any]


def run_of(ways: Ways, shared: Together, progress: Progress | None) -> Run:
    """Cut by the best of `ways`, and measure.

    Raises:
        SecateurError: a ratio that the method cannot meet, or what `cut` refuses.
    """
    with telling(progress, about(ways[0].config)) as told:
        best = best_of(ways, shared.texts.tokens, shared.seen, shared.known)
        subject, plan = best.subject, best.plan
        small = cut_by(best, shared.texts.tokens, shared.seen)
        numbers = measure(subject, shared.texts, best, plan, small, shared.dense)
        result = Result.of(subject, plan, numbers, told, small.form, None)
        return Run(result, _row(subject, shared.texts, result))


def runs_of(shared: Together, progress: Progress | None) -> Iterator[Run]:
    """All of them, in order.

    Raises:
        SecateurError: as `run_of`.
    """
    for ways in shared.runs:
        yield run_of(ways, shared, progress)


def about(config: PruneConfig) -> str:
    """A run in a few words, for notes."""
    return f"{config.method} at {config.ratio:g}, {config.repair_name}"


def _row(subject: Subject, texts: Texts, result: Result) -> dict[str, Any]:
    numbers: Mapping[str, Any] = result.numbers
    return {
        "model": subject.opened.name,
        "method": subject.config.method,
        "ratio": subject.config.ratio,
        "repair": subject.config.repair_name,
        "removed": numbers["removed_share"],
        "stock": numbers["form"]["stock"],
        "why_not_stock": numbers["form"]["why_not_stock"],
        "parameters": numbers["parameters"]["after"],
        "dense_parameters": numbers["parameters"]["before"],
        "bytes_each": subject.opened.dtype.itemsize,
        "search": subject.config.search_name,
        "seed": subject.config.seed,
        "calibration": texts.to_json(),
        "evaluation": numbers.get("evaluation"),
        "blend": numbers.get("blend"),
        "seconds": result.seconds["total"],
        "perplexity": [
            {name: entry[name] for name in ("window", "tokens", "before", "after")}
            for entry in numbers.get("perplexity", ())
        ],
    }
