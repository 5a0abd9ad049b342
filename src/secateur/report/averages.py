"""What the runs of a comparison come to over their seeds.

    mean = sum(x) / n        deviation = sqrt(sum((x - mean)^2) / (n - 1))

of the n runs that differ in nothing but their seed; of one run there is no deviation.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from .summary import form_word
from .value import Perplexity, Row

# A record of a run as the pipeline makes it: a row of comparison.json.
Record = Mapping[str, Any]

_SAME = ("model", "method", "repair", "ratio", "removed", "parameters", "stock", "seconds", "seed")


@dataclass(frozen=True, slots=True)
class Spread:
    """The mean of `count` numbers and their standard deviation; None where one is not finite."""

    mean: float | None
    deviation: float | None
    count: int

    def text(self, shown: str = ",.2f") -> str:
        """Both for people: `14.21 ± 0.33`."""
        if self.mean is None:
            return "not finite"
        if self.deviation is None:
            return f"{self.mean:{shown}}"
        return f"{self.mean:{shown}} ± {self.deviation or 0:{shown if self.deviation else ''}}"

    def to_json(self) -> dict[str, float | None]:
        """Both for programs."""
        return {"mean": self.mean, "deviation": self.deviation}


def spread(numbers: Iterable[float | None]) -> Spread:
    """Mean and sample standard deviation."""
    every = list(numbers)
    sound = [one for one in every if one is not None and math.isfinite(one)]
    if not sound or len(sound) < len(every):
        return Spread(None, None, len(every))
    mean = math.fsum(sound) / len(sound)
    if len(sound) == 1:
        return Spread(mean, None, 1)
    squares = math.fsum((one - mean) ** 2 for one in sound)
    return Spread(mean, math.sqrt(squares / (len(sound) - 1)), len(sound))


@dataclass(frozen=True, slots=True)
class Average:
    """The runs of one model, method, repair and ratio: one a seed."""

    runs: tuple[Row, ...]

    @property
    def first(self) -> Row:
        """The one that says what all have in common."""
        return self.runs[0]

    @property
    def model(self) -> str:
        """The model's name."""
        return self.first.model

    @property
    def ratio(self) -> float:
        """The ratio that was asked for."""
        return self.first.ratio

    @property
    def label(self) -> str:
        """Method and repair."""
        one = self.first
        return one.method if one.repair in ("", "none") else f"{one.method} + {one.repair}"

    @property
    def windows(self) -> list[int]:
        """The lengths in tokens that perplexity was taken at."""
        return [one.window for one in self.first.perplexity]

    @property
    def removed(self) -> float:
        """The share of the linears' parameters that went, a mean."""
        return math.fsum(run.removed for run in self.runs) / len(self.runs)

    @property
    def form(self) -> str:
        """Whether a class of transformers would load the folders; `both`: those of some seeds."""
        forms = {form_word(stock=run.stock) for run in self.runs}
        return forms.pop() if len(forms) == 1 else "both"

    def of(self, number: Callable[[Row], float | None]) -> Spread:
        """A number of each run."""
        return spread(map(number, self.runs))

    def before(self, window: int) -> Spread:
        """Perplexity of the dense model in windows of so many tokens, where there is one."""
        return spread(one.before for one in self._at(window))

    def after(self, window: int) -> Spread:
        """The same of the pruned model."""
        return spread(one.after for one in self._at(window))

    def at(self, window: int, *, before: bool = False) -> str:
        """The same for people; nothing, if there is none. Seeds may leave the dense model alone."""
        found = self.before(window) if before else self.after(window)
        if before and found.deviation == 0:
            found = replace(found, deviation=None)
        return found.text() if found.count else ""

    def _at(self, window: int) -> list[Perplexity]:
        return [one for run in self.runs for one in run.perplexity if one.window == window]

    def to_json(self) -> dict[str, Any]:
        """The means for programs."""
        one = self.first
        return {
            "model": self.model,
            "method": one.method,
            "repair": one.repair,
            "ratio": self.ratio,
            "seeds": [run.seed for run in self.runs],
            "removed": self.of(lambda run: run.removed).to_json(),
            "parameters": self.of(lambda run: run.parameters).to_json(),
            "seconds": self.of(lambda run: run.seconds).to_json(),
            "form": self.form,
            "perplexity": [
                {
                    "window": window,
                    "before": self.before(window).to_json(),
                    "after": self.after(window).to_json(),
                }
                for window in self.windows
            ],
        }


def averages(rows: Iterable[Row]) -> list[Average]:
    """The runs by all but their seed, in the order in which they come."""
    found: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        found.setdefault((row.model, row.method, row.repair, row.ratio), []).append(row)
    return [Average(tuple(runs)) for runs in found.values()]


def row_of(record: Record, **parts: Any) -> Row:
    """A record as a row of a report; `parts` are what it does not say."""
    return Row(
        **{name: record[name] for name in _SAME},
        bytes=record["parameters"] * record["bytes_each"],
        perplexity=record["perplexity"],
        **parts,
    )


def models_of(rows: Iterable[Row | Average]) -> list[str]:
    """The models, in the order in which they come."""
    return list(dict.fromkeys(row.model for row in rows))


def several_seeds(means: Sequence[Average]) -> bool:
    """Whether there is anything to take a mean of."""
    return any(len(one.runs) > 1 for one in means)
