"""Whether the disk has room for a result: asked before the passes, and again before writing it."""

import shutil
from pathlib import Path

from ..errors import SecateurError
from ..models import OpenModel
from ..progress import note
from ..ranks import this
from ..structure import Plan
from ..units import size_text
from .student import Student
from .subject import Subject

# From so many bytes on, what is going to be written is told.
_WORTH = 1e9
# Budgets by which it is known before the search how much goes.
_FORESEEN = ("ratio", "parameters", "memory")


def check_room(folder: Path | None, subject: Subject) -> None:
    """Make sure that what the budget leaves fits in `folder`, if the budget says how much that is.

    Of several ranks the first has the folder.

    Raises:
        SecateurError: it does not.
    """
    if subject.config.budget_name in _FORESEEN:
        budget = subject.budget
        each = _bytes(subject.opened) / _parameters(subject.opened)
        gone = budget.wanted * (each if budget.unit == "parameters" else 1)
        _foresee(folder, _bytes(subject.opened) - gone)


def check_room_of_plan(folder: Path | None, subject: Subject, plan: Plan) -> None:
    """The same of what a plan leaves.

    Raises:
        SecateurError: it does not fit.
    """
    each = _bytes(subject.opened) / _parameters(subject.opened)
    gone = plan.removed_cost(subject.structure) * each
    _foresee(folder, _bytes(subject.opened) - gone)


def check_room_of_training(folder: Path | None, student: Student) -> None:
    """The same of a trained model, which takes as much as before, unless it gets few bits.

    Raises:
        SecateurError: it does not fit.
    """
    if student.config.trained != "groupwise":
        _foresee(folder, _bytes(student.opened))


def check_space(folder: Path, needed: float) -> None:
    """Make sure that weights of so many bytes fit on the disk of `folder`.

    Raises:
        SecateurError: they do not.
    """
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise SecateurError(
            f"The weights take {size_text(int(needed))}, but {folder.parent} has"
            f" {size_text(free)} free.\nFree some, or choose another --out."
        )


def _foresee(folder: Path | None, needed: float) -> None:
    def look() -> None:
        if folder is None:
            return
        check_space(folder, needed)
        if needed >= _WORTH:
            free = size_text(shutil.disk_usage(folder).free)
            note(f"the result takes about {size_text(int(needed))} of {free} free on the disk")

    this().told("room", look)


def _bytes(opened: OpenModel) -> int:
    return sum(spec.bytes for spec in opened.weights.specs.values())


def _parameters(opened: OpenModel) -> int:
    return sum(spec.elements for spec in opened.weights.specs.values())
