"""What stands beside recovered weights: the history of the folder, the settings, the card."""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..checkpoint import belongs, companions_beside
from ..config import TRAINED, RecoverConfig, to_toml
from ..export import Form, model_index, packed_form, recovery_card
from ..models import OpenModel, StreamedModel
from ..ranks import ALONE, joined_as
from ..report import evaluation_line, number_rows
from .idle import seen_settings, unread_recovery_settings
from .look import bytes_before
from .publishing import write_folder
from .record import versions
from .reporting import report_recovery
from .stock import form_facts
from .student import Student
from .training import Trained

_HISTORY = ("plan.json", "run.toml")


@joined_as(ALONE)
def publish_recovery(
    folder: Path | None,
    student: Student,
    trained: Trained,
    small: StreamedModel,
    numbers: dict[str, Any],
) -> dict[str, Any]:
    """Write the folder; give the numbers with the bytes of the weight files and their form.

    The rank that has the folder does, and what it looks at on the way it looks at alone.
    """
    assert folder is not None, "this is that rank"
    opened = student.opened
    form = trained.form if trained.packed is None else packed_form(trained.form, trained.packed)
    size = write_folder(folder, form, opened, format=student.config.format)
    sizes = {"before": bytes_before(opened), "after": size}
    numbers = {**numbers, "bytes": sizes, "form": form_facts(form)}
    copy_history(folder, opened)
    config = student.config.model_copy(update={"model": student.name})
    write_recovery(folder, opened, config, numbers, form)
    report_recovery(folder, student, small, config, numbers)
    return numbers


def copy_history(folder: Path, opened: OpenModel) -> None:
    """Bring along how the model was pruned."""
    for name in _HISTORY:
        if opened.folder is not None and belongs(opened.folder, name):
            shutil.copyfile(opened.folder / name, folder / name)


def write_recovery(
    folder: Path,
    opened: OpenModel,
    config: RecoverConfig,
    numbers: Mapping[str, Any],
    form: Form,
) -> None:
    """Write recovery.toml and README.md; nothing in them differs between two like runs."""
    record = {
        "versions": versions(),
        "results": numbers,
        "companions": companions_beside(folder),
    }
    (folder / "recovery.toml").write_text(to_toml(config, record), encoding="utf-8")
    settings = seen_settings(config.model_dump(), unread_recovery_settings(config))
    card = recovery_card(
        opened,
        form,
        data=numbers["data"],
        numbers=number_rows({key: numbers[key] for key in ("bytes", "perplexity")}),
        evaluated_on=evaluation_line(numbers),
        settings=settings,
        steps=(numbers["steps"], numbers["best_step"]),
        trained=(TRAINED[numbers["trained"]].summary, numbers["trained_parameters"]),
        results=model_index(opened.name, numbers, settings),
    )
    (folder / "README.md").write_text(card, encoding="utf-8")
