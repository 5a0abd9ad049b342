"""Losses and rates as curves where people look at them, through accelerate's trackers.

Off unless asked for. A tracker is started before the long work and fails there; what it has against
single numbers later is told once, and the work goes on.
"""

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ..errors import SecateurError
from ..export import without_place
from ..progress import drawing, note
from ..registry import choose
from ..shown import one_line


@dataclass(frozen=True, slots=True)
class Tracker:
    """A kind of tracker: the package that it needs, and one made for a run and a folder of logs."""

    summary: str
    package: str
    make: Callable[[str, Path], Any]


@dataclass(frozen=True, slots=True)
class Track:
    """Which tracker (a name in `TRACKERS`), and the folder of its logs."""

    kind: str
    logs: Path


def _tensorboard(run: str, logs: Path) -> Any:
    from accelerate.tracking import TensorBoardTracker

    return TensorBoardTracker(run, logs)


def _mlflow(run: str, logs: Path) -> Any:
    from accelerate.tracking import MLflowTracker

    if not os.environ.get("MLFLOW_TRACKING_URI"):
        import_module("mlflow").set_tracking_uri(f"sqlite:///{logs.as_posix()}/mlflow.db")
    return MLflowTracker(logs.name, logging_dir=logs.as_uri(), run_name=run)


def _wandb(run: str, logs: Path) -> Any:
    from accelerate.tracking import WandBTracker

    return WandBTracker("secateur", name=run, dir=str(logs))


TRACKERS = {
    "tensorboard": Tracker("Event files for TensorBoard", "tensorboard", _tensorboard),
    "mlflow": Tracker("MLflow, at $MLFLOW_TRACKING_URI if that is set", "mlflow", _mlflow),
    "wandb": Tracker("Weights & Biases (WANDB_MODE=offline: files alone)", "wandb", _wandb),
}


def track_of(kind: str | None, logs: Path | None) -> Track | None:
    """The tracker that is asked for, if one is.

    Raises:
        SecateurError: an unknown one, its package is not installed, or there is no place for logs.
    """
    if kind is None:
        return None
    tracker = choose("tracker", kind, TRACKERS)
    if find_spec(tracker.package) is None or _is_skinny(kind):
        raise SecateurError(
            f"--track {kind} needs the package {tracker.package}.\n"
            f"Type: pip install {tracker.package}"
        )
    if logs is None:
        raise SecateurError("--track keeps its logs beside --out.\nAdd --out DIR")
    return Track(kind, logs.absolute())


def _is_skinny(kind: str) -> bool:
    """Whether it is mlflow-skinny, which writes to a server alone, and none was named."""
    named = os.environ.get("MLFLOW_TRACKING_URI")
    return kind == "mlflow" and not named and find_spec("sqlalchemy") is None


def logs_beside(out: Path | None) -> Path | None:
    """The folder of the logs of what is written to `out`."""
    return None if out is None else out.absolute().with_name(f"{out.absolute().name}-logs")


@contextmanager
def curves(track: Track | None, run: str, settings: Mapping[str, Any]) -> Iterator[None]:
    """While it is entered, what is drawn goes to the tracker as the run `run`, if there is one.

    Of paths among `settings` the tracker gets the names alone.

    Raises:
        SecateurError: the tracker does not start.
    """
    if track is None:
        yield
        return
    log = _Log(track, run, settings)
    try:
        with drawing(log.draw):
            yield
    finally:
        log.finish()


class _Log:
    """A tracker that was started; the first number that it does not take is the last one."""

    def __init__(self, track: Track, run: str, settings: Mapping[str, Any]) -> None:
        from accelerate.state import PartialState

        PartialState()  # accelerate's own log asks for it
        self._kind, self._takes = track.kind, True
        known = {
            name: without_place(value)
            for name, value in settings.items()
            if isinstance(value, bool | int | float | str)
        }
        try:
            track.logs.mkdir(parents=True, exist_ok=True)
            self._tracker = TRACKERS[track.kind].make(run, track.logs)
            self._tracker.start()
            self._tracker.store_init_configuration(known)
        except Exception as error:  # each tracker has kinds of its own
            raise SecateurError(
                f"--track {track.kind} does not start: {_reason(error)}\nLeave it away, or type:"
                " --track tensorboard"
            ) from error
        note(f"{track.kind} has the curves of {run}, in {track.logs}")

    def draw(self, step: int, values: Mapping[str, float]) -> None:
        """Log the numbers of a step."""
        self._try(lambda: self._tracker.log(dict(values), step=step))

    def finish(self) -> None:
        """End the run."""
        self._try(self._tracker.finish)

    def _try(self, act: Callable[[], object]) -> None:
        if not self._takes:
            return
        try:
            act()
        except Exception as error:  # the training is worth more than its curve
            self._takes = False
            note(f"--track {self._kind} takes no more: {_reason(error)}")


def _reason(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return one_line(lines[0])[:200] if lines else type(error).__name__
