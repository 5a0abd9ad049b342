"""The stage that writes: weights, what belongs to the model, plan, settings, card, report."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..export import EXPORTERS, Form, copy_companions
from ..models import OpenModel
from ..progress import timed
from ..ranks import ALONE, joined_as
from ..structure import Plan
from .checks import tokenizer_class, tokenizer_to_write
from .contest import Chosen
from .cutting import Cut
from .held_out import streamed
from .look import bytes_before
from .record import write_record
from .reporting import report_run
from .room import check_space
from .subject import Subject
from .texts import Texts


@joined_as(ALONE)
def publish(
    folder: Path,
    subject: Subject,
    best: Chosen | None,
    plan: Plan,
    small: Cut,
    numbers: Mapping[str, Any],
    texts: Texts,
) -> dict[str, Any]:
    """Write the folder; give the numbers with the bytes of the weight files.

    One rank does, and what it looks at on the way it looks at alone.
    """
    opened, form = subject.opened, small.form
    with timed("write"):
        size = write_folder(
            folder,
            form,
            opened,
            format=subject.config.format,
            tokenizer=subject.tokenizer,
            model=subject.given,
        )
    numbers = {**numbers, "bytes": {"before": bytes_before(opened), "after": size}}
    write_record(folder, subject, plan, numbers, texts.windows, form=form)
    model = streamed(form, opened, subject.source, small.made_by)
    report_run(folder, subject, best, plan, model, numbers, texts)
    return numbers


def write_folder(
    folder: Path,
    form: Form,
    opened: OpenModel,
    *,
    format: str = "safetensors",
    tokenizer: Any = None,
    model: Any = None,
) -> int:
    """Write weights and config, and bring along what belongs to the model; bytes of the weights.

    `format` is the name of an exporter.
    `tokenizer` takes the place of the folder's; a live `model` writes its own generation settings.

    Raises:
        SecateurError: there is no space for the weights.
    """
    check_space(folder, sum(spec.bytes for spec in form.stored.specs.values()))
    size = EXPORTERS[format](folder, form)
    copy_companions(
        folder,
        opened.companions,
        tokenizer=tokenizer_to_write(opened, tokenizer),
        model=model,
        adapted=opened.writes_tokenizer,
        read_as=tokenizer_class(opened, form),
    )
    return size
