"""A share of a sweep: cells of one model and seed, made in one process one after the other.

What a cell gives does not depend on which others are left to make: the passes are those that all
cells of the model and seed ask for together, in every process. One that is refused spoils no other.
"""

import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Any, TypeVar

from ..config import PruneConfig, make_config
from ..errors import SecateurError
from ..progress import telling
from .compared import part_of
from .contest import ways_of
from .keeping import keeping
from .subject import Subject, open_subject
from .together import Run, Together, Ways, read_together, run_of

T = TypeVar("T")

# One thing that happened, fit for JSON; `Share.told` has the kinds.
Event = dict[str, Any]
Tell = Callable[[Event], None]
# Seconds between two words on how far a stage is.
_OFTEN = 1.0


@dataclass(frozen=True)
class Share:
    """The settings of all cells of a model and seed, the numbers of those to `make`, the store.

    What happens is told as events: `begun`, `made` or `refused` with the number of a cell, `note`,
    `stage`, and at the very end `ended`.
    """

    cells: tuple[Mapping[str, Any], ...]
    make: tuple[int, ...]
    store: str
    fresh: bool
    folder: str

    def to_json(self) -> dict[str, Any]:
        """For another process."""
        return asdict(self)

    @classmethod
    def of(cls, raw: Mapping[str, Any]) -> "Share":
        """The share that `to_json` gave."""
        return cls(**{**raw, "cells": tuple(raw["cells"]), "make": tuple(raw["make"])})


def make_share(share: Share, tell: Tell) -> None:
    """Make the cells of a share; `tell` gets each as soon as it is made."""
    with suppress(OSError):  # on another machine it may not be there
        os.chdir(share.folder)
    configs = [make_config(**cell) for cell in share.cells]
    with keeping(share.store, None, None, fresh=share.fresh) as kept, telling(_Course(tell)):
        runs = _opened(configs, share.make, tell)
        for number, ways, shared in _shared(runs, share.make, kept, tell):
            tell({"begun": number})
            try:
                run = run_of(ways, shared, _Course(tell, notes=False))
            except SecateurError as error:
                tell({"refused": number, "why": str(error)})
            else:
                tell({"made": number, **_record(run)})
    tell({"ended": True})


def _opened(configs: Iterable[PruneConfig], make: Iterable[int], tell: Tell) -> dict[int, Ways]:
    """By number, the ways of all cells that are not refused by what their model is."""
    runs: dict[int, Ways] = {}
    opened: Subject | None = None
    for number, config in enumerate(configs):
        try:
            opened = opened or open_subject(config.model, config)
            runs[number] = ways_of(opened, config)
        except SecateurError as error:
            if number in make:
                tell({"refused": number, "why": str(error)})
    return runs


def _shared(
    runs: Mapping[int, Ways], make: Iterable[int], store: Any, tell: Tell
) -> Iterator[tuple[int, Ways, Together]]:
    """The cells to make, with what they share; where that is refused, each by itself."""
    wanted = [number for number in make if number in runs]
    if not wanted:
        return
    try:
        shared = read_together(list(runs.values()), store, {})
    except SecateurError as error:
        if len(runs) == 1:
            tell({"refused": wanted[0], "why": str(error)})
            return
        for number in wanted:
            yield from _shared({number: runs[number]}, [number], store, tell)
    else:
        read = dict(zip(runs, shared.runs, strict=True))
        for number in wanted:
            yield number, read[number], shared


def _record(run: Run) -> dict[str, Any]:
    """What is kept of a run, for JSON."""
    return {
        "row": run.row,
        "part": part_of(run.result),
        "settings": run.result.config.model_dump(),
        "notes": list(run.result.notes),
    }


class _Course:
    """Progress that is told to the process which asked; `notes` of runs stand in their files."""

    def __init__(self, tell: Tell, *, notes: bool = True) -> None:
        self._tell, self._last, self._notes = tell, 0.0, notes

    def track(self, items: Iterable[T], stage: str, total: int, unit: str) -> Iterator[T]:
        """Yield `items`, and tell now and then how many are done."""
        for done, item in enumerate(items):
            if time.monotonic() - self._last >= _OFTEN:
                self._last = time.monotonic()
                of = f" of {total}" if total else ""
                self._tell({"stage": f"{stage}, {unit} {done}{of}"})
            yield item

    def status(self, message: str) -> None:
        """Drop the message."""

    def note(self, message: str) -> None:
        """Tell it, where it is of all runs of the share."""
        if self._notes:
            self._tell({"note": message})
