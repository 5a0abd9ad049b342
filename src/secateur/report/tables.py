"""The table that comparing methods makes: rows for people, JSON and CSV."""

import csv
import io
import json
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

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
    """Write comparison.json and comparison.csv."""
    versions = {name: version(name) for name in _VERSIONS}
    record = {"model": model, "versions": versions, "rows": list(rows)}
    text = json.dumps(record, indent=1) + "\n"
    (folder / "comparison.json").write_text(text, encoding="utf-8")
    (folder / "comparison.csv").write_text(_csv(rows), encoding="utf-8")


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
