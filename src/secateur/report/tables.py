"""The tables that comparing methods makes: rows for people, JSON and CSV."""

import csv
import io
import json
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from .averages import Average, Record, averages, models_of, row_of, several_seeds

_VERSIONS = ("secateur", "torch", "transformers")


def comparison_table(records: Sequence[Record]) -> tuple[list[str], list[list[str]]]:
    """Headings and cells for people, a line for each model, method, repair and ratio.

    Of one model the dense perplexity stands beside each window, of several in lines of their own.
    """
    means = averages(map(row_of, records))
    several, windows = len(models_of(means)) > 1, _windows(means)
    heads = ["model", "method", "repair", "asked", "removed", "form"]
    columns = [*heads, *(_heading(means, window) for window in windows), "time, s", "seeds"]
    lines: list[list[str]] = []
    for one in means:
        if several and (not lines or lines[-1][0] != one.model):
            lines.append(_dense_line(one, windows))
        lines.append(_line(one, windows))
    needed = {"model": several, "seeds": several_seeds(means)}
    shown = [place for place, name in enumerate(columns) if needed.get(name, True)]
    return [columns[n] for n in shown], [[line[n] for n in shown] for line in lines]


def _heading(means: Sequence[Average], window: int) -> str:
    dense = means[0].at(window, before=True) if len(models_of(means)) == 1 else ""
    return f"perplexity at {window} (dense {dense})" if dense else f"perplexity at {window}"


def _line(one: Average, windows: Sequence[int]) -> list[str]:
    return [
        one.model,
        one.first.method,
        one.first.repair,
        f"{one.first.ratio:.0%}",
        f"{one.removed:.1%}",
        one.form,
        *(one.at(window) for window in windows),
        f"{one.of(lambda run: run.seconds).mean or 0:.1f}",
        str(len(one.runs)),
    ]


def _dense_line(one: Average, windows: Sequence[int]) -> list[str]:
    """The dense model that `one` was cut from."""
    before = [one.at(window, before=True) for window in windows]
    return [one.model, "dense", "", "", "", "", *before, "", ""]


def write_comparison(
    folder: Path,
    records: Sequence[Record],
    left_out: Sequence[Mapping[str, Any]] = (),
) -> None:
    """Write comparison.json and comparison.csv: every run, and their means over seeds."""
    means = averages(map(row_of, records))
    record = {
        "models": models_of(means),
        "versions": {name: version(name) for name in _VERSIONS},
        "rows": list(records),
        "means": [one.to_json() for one in means],
        "left_out": list(left_out),
    }
    text = json.dumps(record, indent=1) + "\n"
    (folder / "comparison.json").write_text(text, encoding="utf-8")
    (folder / "comparison.csv").write_text(_csv(means), encoding="utf-8")


def _csv(means: Sequence[Average]) -> str:
    windows = _windows(means)
    names = ["model", "method", "ratio", "repair", "removed", "parameters", "seconds"]
    perplexities = [
        f"perplexity_{window}{what}" for window in windows for what in ("", "_deviation")
    ]
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow([*names, *perplexities, "seeds", "form"])
    for one in means:
        said = (one.model, one.first.method, one.first.ratio, one.first.repair)
        mean = [one.of(number).mean for number in (lambda r: r.parameters, lambda r: r.seconds)]
        after = [one.after(window) for window in windows]
        cells = [number for found in after for number in (found.mean, found.deviation)]
        writer.writerow([*map(_cell, said), one.removed, *mean, *cells, len(one.runs), one.form])
    return out.getvalue()


def _windows(means: Sequence[Average]) -> list[int]:
    """The lengths of all models, in ascending order."""
    return sorted({window for one in means for window in one.windows})


def _cell(value: Any) -> Any:
    """A text that a spreadsheet would take for a formula gets an apostrophe in front."""
    formula = isinstance(value, str) and value.startswith(("=", "+", "-", "@", "\t", "\r"))
    return f"'{value}" if formula else value
