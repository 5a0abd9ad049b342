"""The report of a comparison: rows of runs on one model or on several, and what they do not say."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..export import without_places
from ..report import LeftOut, Report, evaluation_line, row_of
from .record import versions
from .reporting import (
    blends_of,
    calibration_of,
    cuts_of,
    not_worth_the_run,
    public_settings,
    write_report,
)
from .result import Result

# What rows say, or the parts of a method: no settings of all.
_DIFFER = (
    *("model", "method", "repair", "ratio", "seed"),
    *("removed", "parameters", "stock", "seconds", "importance", "fusion", "search"),
)

Record = Mapping[str, Any]


def part_of(result: Result) -> dict[str, Any]:
    """What the row of a run does not say, for JSON: what went where, and the blend."""
    structure = result.structure
    blends = blends_of(structure, result.numbers.get("blend"))
    return {
        "cut": [one.model_dump() for one in cuts_of(structure, result.plan)],
        "blend": [one.model_dump() for one in blends],
    }


@dataclass
class Comparison:
    """What a comparison's rows do not say, collected as each of them is made."""

    parts: list[dict[str, Any]] = field(default_factory=list)
    settings: dict[str, Any] = field(default_factory=dict)
    left_out: list[Record] = field(default_factory=list)

    def add(self, result: Result) -> None:
        """Keep the part of a run; the settings are those of the first."""
        self.settings = self.settings or result.config.model_dump()
        self.parts.append(part_of(result))

    def write_report(self, folder: Path, rows: Sequence[Record]) -> None:
        """Write the report of all `rows`."""
        with not_worth_the_run():
            write_report(folder, self._report(rows))

    def _report(self, rows: Sequence[Record]) -> Report:
        models = list(dict.fromkeys(row["model"] for row in rows))
        seeds = {row["seed"] for row in rows}
        several = len(models) > 1 or len(seeds) > 1
        settings = {
            k: v for k, v in self.settings.items() if k not in _DIFFER and v not in (None, False)
        }
        return Report(
            kind="compare",
            model=", ".join(models),
            evaluated_on=self._evaluated_on(rows, models),
            rows=tuple(
                row_of(
                    row, calibration=calibration_of(row["calibration"] if several else None), **part
                )
                for row, part in zip(rows, self.parts, strict=True)
            ),
            left_out=tuple(LeftOut(**one) for one in self.left_out),
            seed=rows[0]["seed"] if len(seeds) == 1 else None,
            calibration=None if several else calibration_of(rows[0]["calibration"]),
            settings=public_settings(settings),
            versions=versions(),
        )

    def _evaluated_on(self, rows: Sequence[Record], models: Sequence[str]) -> str:
        """Which text perplexity is on; tokens are each model's own, so that each has a line."""
        first = [next(row for row in rows if row["model"] == model) for model in models]
        lines = [without_places(evaluation_line(row), self.settings) for row in first]
        if len(set(lines)) == 1:
            return lines[0]
        return " ".join(f"{model}: {line}" for model, line in zip(models, lines, strict=True))
