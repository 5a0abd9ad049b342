"""The table of `peers.py`, from its numbers."""

import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from peers_cases import CASES, PEERS, SIZES, Case

MARK = "<!-- the table of peers.py -->"


def gone(kept: list[list[list[int]]]) -> set[tuple[int, int, int]]:
    """Rows that went, as (layer, kind, row)."""
    widths = (SIZES["hidden_size"], SIZES["intermediate_size"])
    return {
        (layer, kind, row)
        for layer, rows in enumerate(kept)
        for kind, left in enumerate(rows)
        for row in set(range(widths[kind])) - set(left)
    }


def same_share(theirs: set[Any], ours: set[Any]) -> float:
    """The share of the larger set that is in both."""
    return len(theirs & ours) / max(len(theirs), len(ours), 1)


def pairs(numbers: dict[str, Any], case: Case, side: str) -> Iterator[tuple[Any, Any]]:
    """Runs of their side and of `side`, of the same turn."""
    turns: dict[int, dict[str, Any]] = {}
    for entry in numbers["runs"]:
        if entry["case"] == case.name:
            turns.setdefault(entry["turn"], {})[entry["side"]] = entry
    for sides in turns.values():
        if case.method in sides and side in sides:
            yield sides[case.method], sides[side]


def summary(numbers: dict[str, Any], case: Case) -> dict[str, Any]:
    """The row of a case; times are medians over the turns of the quotient within a turn."""
    both = list(pairs(numbers, case, "ours"))
    if not both:
        return {}
    faster = [theirs["seconds"] / ours["seconds"] for theirs, ours in both]
    spent = [theirs["processor"] / ours["processor"] for theirs, ours in both]
    apart = [(theirs["seconds"] - theirs["loading"]) / ours["seconds"] for theirs, ours in both]
    theirs, ours = (_medians([pair[place] for pair in both]) for place in (0, 1))
    ceiling = [
        (theirs["seconds"] - theirs["loading"]) / plain["seconds"]
        for theirs, plain in pairs(numbers, case, "plain")
    ]
    return {
        "theirs": theirs,
        "ours": ours,
        "faster": statistics.median(faster),
        "least": min(faster),
        "greatest": max(faster),
        "less processor time": statistics.median(spent),
        "faster than theirs without loading": statistics.median(apart),
        "less memory": theirs["peak"] / ours["peak"],
        "ceiling": statistics.median(ceiling) if ceiling else None,
        "same units": numbers.get("same units", {}).get(case.name),
    }


def _medians(runs: list[dict[str, Any]]) -> dict[str, float]:
    names = ("seconds", "whole", "processor", "peak", "imports")
    found = {name: statistics.median(run[name] for run in runs) for name in names}
    return found | {name: runs[0][name] for name in ("unused",) if name in runs[0]}


def table(numbers: dict[str, Any]) -> str:
    """The rows of all cases that ran, as Markdown."""
    heads = (
        "what",
        "theirs, s",
        "ours, s",
        "times faster (least - greatest)",
        "by processor time",
        "theirs without loading",
        "theirs / plain",
        "their peak, GB",
        "ours",
        "times less",
        "same units",
    )
    lines = [heads, ("---",) + ("---:",) * (len(heads) - 1)]
    lines += [row_of(case, row) for case in CASES if (row := summary(numbers, case))]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def row_of(case: Case, row: dict[str, Any]) -> tuple[str, ...]:
    """The cells of a case."""
    theirs, ours = row["theirs"], row["ours"]
    unused = theirs.get("unused")
    peak = f"{theirs['peak'] / 1e9:.2f}"
    return (
        case.name,
        f"{theirs['seconds']:.1f}",
        f"{ours['seconds']:.1f}",
        f"{row['faster']:.2f} ({row['least']:.2f} - {row['greatest']:.2f})",
        f"{row['less processor time']:.2f}",
        f"{row['faster than theirs without loading']:.2f}",
        "" if row["ceiling"] is None else f"{row['ceiling']:.2f}",
        peak if unused is None else f"{peak} ({(theirs['peak'] - unused) / 1e9:.2f})",
        f"{ours['peak'] / 1e9:.2f}",
        f"{row['less memory']:.2f}",
        "" if row["same units"] is None else f"{row['same units']:.1%}",
    )


def show(numbers: dict[str, Any]) -> bool:
    """Print the table and which goals are met; say whether all are."""
    print(table(numbers))
    met = True
    for case in CASES:
        if not (row := summary(numbers, case)):
            continue
        goal = PEERS[case.method].goal
        faster, less = row["faster"] >= goal, row["less memory"] > 1
        met = met and faster and less
        speed = "met" if faster else "NOT MET"
        print(f"{case.name}: {row['faster']:.2f} times faster, goal {goal:g}: {speed}", end="")
        print("" if less else "; NOT at less memory")
    return met


def keep_table(page: Path, numbers: dict[str, Any]) -> None:
    """Put the table into the page, between its two marks."""
    before, _, rest = page.read_text(encoding="utf-8").partition(MARK)
    _, found, after = rest.partition(MARK)
    if not found:
        raise SystemExit(f"{page} has no two lines {MARK}; the table has no place in it")
    page.write_text(f"{before}{MARK}\n\n{table(numbers)}\n{MARK}{after}", encoding="utf-8")
