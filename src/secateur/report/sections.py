"""All sections of a report, in order; and how it was made."""

from collections.abc import Callable, Iterable
from typing import Any

from .averages import averages, several_seeds
from .compared import blends_of_all, cuts_of_all, left_out, quality_of_all, windows_of_all
from .inside import blend, importance, recovery, repair, stability
from .outcome import contest, cut, quality, samples
from .parts import Section, Table, cell
from .value import Report


def sections(report: Report, *, static: bool = False) -> list[Section]:
    """All of them in order; with `static`, plots have pictures that need no library."""
    makers: tuple[Callable[[Report], Section], ...]
    if report.kind == "compare":
        makers = (lambda r: quality_of_all(r, static=static), cuts_of_all, blends_of_all)
    else:
        makers = (
            *(samples, cut, contest, quality, importance, blend, stability, repair),
            recovery,
        )
    return [*(make(report) for make in makers), *left_out(report), _made(report)]


def _made(report: Report) -> Section:
    facts: list[tuple[str, Any]] = [("seed", report.seed)] if report.seed is not None else []
    if (text_ := report.calibration) is not None:
        facts += [
            ("calibration text", text_.text),
            ("calibration windows", f"{text_.windows:,} of {text_.length:,} tokens"),
            ("SHA-256 of the calibration tokens", text_.sha256),
        ]
    if report.class_name:
        why = f": {report.why_not_stock}" if report.why_not_stock else ""
        facts.append(("class that loads it", f"{report.class_name}{why}"))
    tables = [
        _pairs("What it was made of", facts),
        *windows_of_all(report),
        _pairs("Settings in force", report.settings.items()),
        *(
            [_pairs("Settings of the recovery", report.recovery.settings.items())]
            if report.recovery
            else []
        ),
        _pairs("Versions", report.versions.items()),
    ]
    lead = "The same settings, seed and text give the same folder, to the byte."
    if report.kind == "compare":
        lead = "All methods saw the same calibration windows."
        if several_seeds(averages(report.rows)):
            lead = "All methods saw the same calibration windows: those of the seed."
    return Section("made", "How it was made", lead, [], [table for table in tables if table.rows])


def _pairs(caption: str, pairs: Iterable[tuple[str, Any]]) -> Table:
    return Table(caption, ("what", "value"), [[cell(k), cell(v)] for k, v in pairs])
