"""Many runs: models, methods, ratios, repairs and seeds, in processes beside one another."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

from ..arguments import (
    a_count,
    a_flag,
    a_place,
    a_progress,
    a_word,
    an_output,
    of_kind,
    optional,
    others_go_on,
    public,
)
from ..config import SweepConfig, make_sweep, read_sweep
from ..errors import ArgumentError, SecateurError
from ..models import open_config
from ..paths import expanded
from ..progress import Progress, note, telling, track
from ..report import write_comparison
from .carriers import carrier_of, check_carrier
from .cells import Cell, cells_of
from .checks import path_of
from .compared import Comparison
from .keeping import keeping
from .sweep_folder import Outcome, SweepFolder, look_into, sweep_folder
from .sweep_schedule import Asking, Schedule, Work, divided
from .texts import named

RETRIES = 2


@dataclass(frozen=True)
class Sweep:
    """What became of the cells of a sweep, in their order, and the folder with the report."""

    cells: tuple[Cell, ...]
    outcomes: Mapping[str, Outcome]
    out: Path | None = None

    @property
    def rows(self) -> list[dict[str, Any]]:
        """A row for each cell that made one."""
        return [
            {**outcome.row, "model": cell.model}
            for cell, outcome in self._known()
            if outcome.row is not None
        ]

    @property
    def left_out(self) -> list[dict[str, Any]]:
        """The cells that were refused, or whose process died, and why."""
        return [
            {**cell.to_json(), "why": outcome.refused or outcome.died, "died": bool(outcome.died)}
            for cell, outcome in self._known()
            if outcome.row is None
        ]

    @property
    def states(self) -> list[tuple[Cell, str]]:
        """Every cell, and whether it is `done`, `refused`, `died` or `to be made`."""
        return [(cell, _state(self.outcomes.get(cell.key))) for cell in self.cells]

    def to_json(self) -> dict[str, Any]:
        """Everything, for `--json`."""
        return {
            "out": str(self.out) if self.out else None,
            "cells": [{**cell.to_json(), "state": state} for cell, state in self.states],
            "rows": self.rows,
            "left_out": self.left_out,
        }

    def comparison(self) -> Comparison:
        """What the rows do not say."""
        made = [outcome for _, outcome in self._known() if outcome.row is not None]
        parts = [dict(outcome.part) for outcome in made]
        return Comparison(parts, dict(made[0].settings), list(self.left_out))

    def _known(self) -> Iterator[tuple[Cell, Outcome]]:
        for cell in self.cells:
            if cell.key in self.outcomes:
                yield cell, self.outcomes[cell.key]


def _a_sweep(name: str, value: Any) -> SweepConfig:
    """A sweep.toml, or what one says."""
    if isinstance(value, Mapping):
        return make_sweep(value)
    if not isinstance(value, str | PathLike):
        raise ArgumentError(
            f"{name} must be a sweep.toml or what one says, a dict, not {of_kind(value)}."
        )
    return read_sweep(expanded(value))


@public(
    settings=_a_sweep,
    out=optional(an_output),
    workers=optional(a_count(1)),
    on=a_word,
    retries=a_count(0),
    store=optional(a_place),
    fresh=a_flag,
    again=a_flag,
    dry_run=a_flag,
    progress=a_progress,
)
def sweep(
    settings: str | Path | Mapping[str, Any],
    *,
    out: str | Path | None = None,
    workers: int | None = None,
    on: str = "processes",
    retries: int = RETRIES,
    store: str | Path | None = None,
    fresh: bool = False,
    again: bool = False,
    dry_run: bool = False,
    progress: Progress | None = None,
) -> Sweep:
    """Prune every model by every method at every ratio with every seed, and measure.

    `settings` is a sweep.toml or what one says: the lists `models`, `methods`, `ratios`, `repairs`
    and `seeds`, and `settings` of all runs, which are those of `prune`. `out` gets a file for each
    cell as soon as it is done, and the report at the end; the same call goes on where it was
    stopped, and `fresh` makes all anew. `workers` processes make the cells, `on` this machine or
    "ray". A cell whose process dies is tried again `retries` times; one that is refused is done,
    unless `again`. Passes are kept in `store`, or in `out` till all is done.

    Raises:
        SecateurError: bad input, or no cell made a row.
    """
    assert isinstance(settings, SweepConfig), "its check makes one of all that it takes"
    check_carrier(on)
    place, cells = path_of(out), cells_of(settings)
    named(settings.settings)
    if on == "processes":
        _check_models(settings.models)
    with telling(progress):
        if dry_run:
            there = look_into(place)
            return Sweep(tuple(cells), {} if there is None else there.done(cells), place)
        if place is None:
            raise SecateurError("Where to? Give out, a folder that keeps every run of the sweep.")
        with keeping(store, None, place):
            pass  # what it lacks shows before anything is made
        with sweep_folder(place) as folder:
            folder.asked(settings)
            earlier = _earlier(folder, cells, fresh=fresh, again=again)
            carrier = carrier_of(on, workers, gpu=_on_gpu(settings))
            works = divided(cells, earlier, carrier.workers)
            asking = _asking(folder, store, fresh=fresh)
            made = _made(folder, Schedule(works, carrier, asking, retries=retries), works)
            done = Sweep(tuple(cells), {**earlier, **made}, folder.path)
            _publish(folder, done)
            return done


def _earlier(
    folder: SweepFolder, cells: Sequence[Cell], *, fresh: bool, again: bool
) -> dict[str, Outcome]:
    """What became of cells in sweeps before this one, as far as it counts."""
    if fresh:
        folder.forget(cells)
        folder.end()
    outcomes = folder.done(cells)
    if again:
        refused = [cell for cell in cells if outcomes.get(cell.key, Outcome()).refused]
        folder.forget(refused)
        outcomes = folder.done(cells)
    if outcomes:
        note(f"{len(outcomes)} of {len(cells)} runs are done already (--fresh makes them anew)")
    if others := folder.others(cells):
        note(
            f"{others} finished runs in {folder.runs.name}/ are of other settings, and in no report"
        )
    return outcomes


def _asking(folder: SweepFolder, store: str | Path | None, *, fresh: bool) -> Asking:
    """Passes are kept in the folder, from which old ones are gone by now, or where it was said."""
    if store is None:
        return Asking(folder.passes)
    return Asking(Path(store).expanduser(), fresh)


def _made(folder: SweepFolder, schedule: Schedule, works: Sequence[Work]) -> dict[str, Outcome]:
    """Make what is left, and keep each as soon as it is done."""
    found: dict[str, Outcome] = {}
    total = sum(len(work.make) for work in works)
    with others_go_on(), closing(schedule.outcomes()) as outcomes:
        try:
            for cell, outcome in track(outcomes, "sweep", total, "run"):
                folder.keep(cell, outcome)
                found[cell.key] = outcome
        except KeyboardInterrupt as error:
            kept = f"every finished run is in {folder.path}: type the same command to go on"
            raise KeyboardInterrupt(kept) from error
    return found


def _publish(folder: SweepFolder, done: Sweep) -> None:
    """Write the tables and the report of all cells.

    Raises:
        SecateurError: there is no row.
    """
    rows, left_out = done.rows, done.left_out
    if not rows:
        raise SecateurError(
            f"No run of the sweep made a row. The first, {done.cells[0].about}:"
            f" {left_out[0]['why']}"
        )
    with folder.results() as place:
        write_comparison(place, rows, left_out)
        done.comparison().write_report(place, rows)
    if not any(outcome.died for outcome in done.outcomes.values()):
        folder.end()


def _check_models(models: Sequence[str]) -> None:
    """What is no model is said before anything is made.

    Raises:
        SecateurError: as `open_config`.
    """
    for model in models:
        if not model:
            raise SecateurError("models names a model without a name.\nGive a folder or a name.")
        open_config(model)


def _on_gpu(settings: SweepConfig) -> bool:
    return str(settings.settings.get("device", "auto")) != "cpu"


def _state(outcome: Outcome | None) -> str:
    if outcome is None:
        return "to be made"
    if outcome.row is not None:
        return "done"
    return "refused" if outcome.refused else "died"
