"""The tables that comparing methods makes: rows for people, JSON and CSV."""

import csv
import io
import json
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from .averages import Average, Record, averages, models_of, row_of, several_seeds

# Title, headings, cells.
Table = tuple[str, list[str], list[list[str]]]

_VERSIONS = ("secateur", "torch", "transformers")


def comparison_tables(records: Sequence[Record]) -> list[Table]:
    """A table for people of each model, a line for each method, repair and ratio.

    Where there are several seeds, numbers have their deviation behind them, and form and time are
    in the files alone: a terminal has no room for all.
    """
    means = averages(map(row_of, records))
    return [
        _table(model, [one for one in means if one.model == model]) for model in models_of(means)
    ]


def _table(model: str, means: Sequence[Average]) -> Table:
    seeds, windows = several_seeds(means), _windows(means)
    perplexities = [
        f"perplexity at {window} (dense {means[0].at(window, before=True)})" for window in windows
    ]
    heads = ["method", "repair", "asked", "removed"]
    lines = [
        [one.first.method, one.first.repair, f"{one.ratio:.0%}", f"{one.removed:.1%}"]
        for one in means
    ]
    after = [[one.at(window) for window in windows] for one in means]
    if seeds:
        counts = sorted({len(one.runs) for one in means})
        of = " to ".join(str(count) for count in dict.fromkeys((counts[0], counts[-1])))
        title = f"{model} pruned, means of {of} seeds"
        lines = [[*line, *own] for line, own in zip(lines, after, strict=True)]
        return title, [*heads, *perplexities], lines
    times = [f"{one.of(lambda run: run.seconds).mean or 0:.1f}" for one in means]
    whole = [
        [*line, one.form, *own, time]
        for line, one, own, time in zip(lines, means, after, times, strict=True)
    ]
    return f"{model} pruned", [*heads, "form", *perplexities, "time, s"], whole


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
