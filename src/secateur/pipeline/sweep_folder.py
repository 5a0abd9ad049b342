"""The folder of a sweep: what it asked for, a file for each cell that is done, the report.

    DIR/runs/NAME-KEY.json   the row of a cell and its part of the report, or why it was refused
    DIR/runs/sweep.toml      what was asked for last
    DIR/passes/              the store of passes, until every cell is done
    DIR/report.html ...      the report of all

Every file is written under another name and renamed, so that it is whole or not there: a sweep that
was killed goes on. A file whose key is no cell's is of other settings, and in no report.
"""

import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import tomli_w
from pydantic import ValidationError

from ..checkpoint import Store, locked, real_path, token
from ..config import SweepConfig
from ..errors import SecateurError
from ..parsing import parse_json, read_text
from ..report import row_of
from .cells import Cell

RESULTS = ("report.json", "report.html", "comparison.csv", "comparison.json")
_RUNS, _PASSES, _ASKED, _LOCK, _PARTIAL = "runs", "passes", "sweep.toml", ".lock", ".partial-"


@dataclass(frozen=True)
class Outcome:
    """What became of a cell: a row with its part of the report and notes, or why there is none.

    One that was `refused` is done; one whose process `died` is made again by the next sweep.
    """

    row: Mapping[str, Any] | None = None
    part: Mapping[str, Any] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    notes: Sequence[str] = ()
    refused: str = ""
    died: str = ""


class SweepFolder:
    """The folder `path`, held by this process."""

    def __init__(self, path: Path) -> None:
        self.path, self.runs = path, path / _RUNS

    @property
    def passes(self) -> Path:
        """Where passes are kept till the sweep is done."""
        return self.path / _PASSES

    def done(self, cells: Sequence[Cell]) -> dict[str, Outcome]:
        """By key, what became of the cells that are done."""
        found = {cell.key: _read(self.runs / cell.file, cell) for cell in cells}
        return {key: outcome for key, outcome in found.items() if outcome is not None}

    def others(self, cells: Sequence[Cell]) -> int:
        """How many files are of other settings."""
        known = {cell.file for cell in cells}
        return sum(file.name not in known for file in self.runs.glob("*.json"))

    def keep(self, cell: Cell, outcome: Outcome) -> None:
        """Write what became of a cell, if it is done."""
        if outcome.died:
            return
        record = {"key": cell.key, "cell": cell.to_json(), **asdict(outcome)}
        _write(self.runs / cell.file, json.dumps(record, indent=1) + "\n")

    def forget(self, cells: Sequence[Cell]) -> None:
        """Remove what became of cells: they are made anew."""
        for cell in cells:
            (self.runs / cell.file).unlink(missing_ok=True)

    def asked(self, sweep: SweepConfig) -> None:
        """Write what is asked for."""
        given = {name: value for name, value in sweep.model_dump().items() if value}
        text = tomli_w.dumps(given).encode("utf-8", "replace").decode()
        _write(self.runs / _ASKED, text)

    @contextmanager
    def results(self) -> Iterator[Path]:
        """A folder to write the report into; its files take the place of those of before."""
        partial = self.path / f"{_PARTIAL}{token()}"
        partial.mkdir()
        try:
            yield partial
            for name in RESULTS:
                if (partial / name).exists():
                    (partial / name).replace(self.path / name)
        finally:
            shutil.rmtree(partial, ignore_errors=True)

    def end(self) -> None:
        """Nothing is left to do: the passes go."""
        Store(self.passes).clean()
        with suppress(OSError):  # not there, or not empty
            self.passes.rmdir()


@contextmanager
def sweep_folder(out: Path) -> Iterator[SweepFolder]:
    """The folder of a sweep, made if it is not there; what a killed one was writing goes.

    Raises:
        SecateurError: another run writes it, it holds results that are no sweep's, or cannot be
            written.
    """
    path = real_path(out)
    try:
        path.mkdir(parents=True, exist_ok=True)
        with locked(path / _LOCK, path):
            _refuse_others(path)
            (path / _RUNS).mkdir(exist_ok=True)
            for rest in (*path.glob(f"{_PARTIAL}*"), *(path / _RUNS).glob(f"{_PARTIAL}*")):
                shutil.rmtree(rest) if rest.is_dir() else rest.unlink()
            yield SweepFolder(path)
    except OSError as error:
        if str(error.filename or "").startswith(str(path)):
            raise SecateurError(
                f"Cannot write to {error.filename}: {error.strerror}. Choose another --out."
            ) from error
        raise


def look_into(out: Path | None) -> SweepFolder | None:
    """The folder of a sweep to read in, if there is one; nobody holds it."""
    path = None if out is None else real_path(out)
    return SweepFolder(path) if path is not None and (path / _RUNS / _ASKED).is_file() else None


def _refuse_others(path: Path) -> None:
    """What somebody else wrote there is not replaced, nor mixed with ours."""
    if (path / _RUNS / _ASKED).is_file():
        return
    for name in (_RUNS, _PASSES, *RESULTS):
        place = path / name
        if place.is_dir() and not place.is_symlink() and not any(map(_whole, place.iterdir())):
            continue  # of a sweep that was killed right here
        if os.path.lexists(place):
            raise SecateurError(
                f"{path} holds {name!r}, and is no folder of a sweep. Choose another --out."
            )


def _whole(entry: Path) -> bool:
    return not entry.name.startswith(_PARTIAL)


def _read(file: Path, cell: Cell) -> Outcome | None:
    """What became of a cell; None if that is not known, or what stands there is damaged."""
    if not file.is_file():
        return None
    with suppress(SecateurError, KeyError, TypeError, ValidationError, AttributeError):
        raw = parse_json(read_text(file), lambda why: SecateurError(why))
        if raw["key"] != cell.key:
            return None
        names = ("row", "part", "settings", "notes", "refused")
        outcome = Outcome(**{name: raw[name] for name in names})
        if outcome.row is None:
            return outcome if outcome.refused else None
        row_of(outcome.row, **outcome.part)
        return outcome
    return None


def _write(file: Path, text: str) -> None:
    """Write a file that is whole or not there, whenever this process or the machine stops."""
    partial = file.with_name(f"{_PARTIAL}{token()}")
    try:
        with partial.open("w", encoding="utf-8") as handle:
            handle.write(text)
            handle.flush()
            os.fsync(handle.fileno())
        partial.replace(file)
    finally:
        partial.unlink(missing_ok=True)
