"""The table that comparing methods makes: rows for people, JSON, CSV, and a page with a chart."""

import csv
import io
import json
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from ..shown import one_line
from .blends import blends_of
from .comparison import Trial, page
from .summary import form_word

Row = Mapping[str, Any]

_VERSIONS = ("secateur", "torch", "transformers")


def comparison_columns(rows: Sequence[Row]) -> list[str]:
    """Headings of `comparison_row`, the dense perplexity beside each window."""
    windows = [
        f"perplexity at {entry['window']} (dense {entry['before']:.2f})"
        for entry in rows[0]["perplexity"]
    ]
    return ["method", "repair", "asked", "removed", "form", *windows, "time, s"]


def comparison_row(row: Row) -> list[str]:
    """A row as cells for people."""
    values = [f"{entry['after']:.2f}" for entry in row["perplexity"]]
    shares = [f"{row['ratio']:.0%}", f"{row['removed']:.1%}"]
    form = form_word(stock=row["stock"])
    return [row["method"], row["repair"], *shares, form, *values, f"{row['seconds']:.1f}"]


def write_comparison(folder: Path, model: str, rows: Sequence[Row]) -> None:
    """Write comparison.json, comparison.csv and, if there is a perplexity, comparison.html."""
    versions = {name: version(name) for name in _VERSIONS}
    record = {"model": model, "versions": versions, "rows": list(rows)}
    text = json.dumps(record, indent=1) + "\n"
    (folder / "comparison.json").write_text(text, encoding="utf-8")
    (folder / "comparison.csv").write_text(_csv(rows), encoding="utf-8")
    if rows[0]["perplexity"]:
        name = one_line(Path(model).name)
        html = page(
            f"{name} pruned",
            f"{name} pruned by each method at the same ratios. {_made_with(rows[0])}",
            "Lower perplexity is better; look at what was really removed, too: units are whole. "
            "Marked is the lowest one of the rows that removed within half a point of the most. "
            "Weights are counted, not written. The time of a row leaves out what all share.",
            _dense(rows[0]),
            [_trial(row) for row in rows],
            blends_of(rows),
        )
        (folder / "comparison.html").write_text(html, encoding="utf-8")


def _made_with(row: Row) -> str:
    """The texts and versions that all rows have in common, in two sentences."""
    text = row["calibration"]
    tokens = max(entry["tokens"] for entry in row["perplexity"])
    versions = ", ".join(f"{name} {version(name)}" for name in _VERSIONS)
    seen = (
        ""
        if text is None
        else (
            f"All saw the same {text['windows']} calibration windows of {text['length']} tokens of"
            f" {text['text']} (seed {row['seed']}, SHA-256 {text['tokens_sha256'][:16]}). "
        )
    )
    return (
        f"{seen}Perplexity is per token, on {row['evaluation']['text']} ({tokens:,} predicted"
        f" tokens). {versions}."
    )


def _csv(rows: Sequence[Row]) -> str:
    windows = [entry["window"] for entry in rows[0]["perplexity"]]
    names = ["method", "ratio", "repair", "removed", "parameters", "seconds"]
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow([*names, *(f"perplexity_{window}" for window in windows), "form"])
    for row in rows:
        values = [entry["after"] for entry in row["perplexity"]]
        form = form_word(stock=row["stock"])
        writer.writerow([*(_cell(row[name]) for name in names), *values, form])
    return out.getvalue()


def _cell(value: Any) -> Any:
    """A text that a spreadsheet would take for a formula gets an apostrophe in front."""
    formula = isinstance(value, str) and value.startswith(("=", "+", "-", "@", "\t", "\r"))
    return f"'{value}" if formula else value


def _trial(row: Row) -> Trial:
    return Trial(
        method=row["method"],
        repair=row["repair"],
        ratio=row["ratio"],
        removed=row["removed"],
        perplexity={entry["window"]: entry["after"] for entry in row["perplexity"]},
        size=row["parameters"] * row["bytes_each"] / 1e6,
        seconds=row["seconds"],
        form=form_word(stock=row["stock"]),
    )


def _dense(row: Row) -> Trial:
    return Trial(
        method="dense",
        ratio=0.0,
        removed=0.0,
        perplexity={entry["window"]: entry["before"] for entry in row["perplexity"]},
        size=row["dense_parameters"] * row["bytes_each"] / 1e6,
        seconds=0.0,
    )
