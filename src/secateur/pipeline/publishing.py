"""The stage that writes: weights, what belongs to the model, plan, settings and card."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..export import Form, copy_companions, write_model
from ..progress import timed
from ..structure import Plan
from .checks import check_space, tokenizer_class, tokenizer_to_write
from .look import bytes_before
from .record import write_record
from .subject import Subject
from .texts import Texts


def publish(
    folder: Path,
    subject: Subject,
    plan: Plan,
    form: Form,
    numbers: Mapping[str, Any],
    texts: Texts,
) -> dict[str, Any]:
    """Write the folder; give the numbers with the bytes of the weight files."""
    opened = subject.opened
    with timed("write"):
        check_space(folder, form)
        size = write_model(folder, form)
        copy_companions(
            folder,
            opened.companions,
            tokenizer=tokenizer_to_write(opened, subject.tokenizer),
            model=subject.given,
            adapted=opened.writes_tokenizer,
            read_as=tokenizer_class(opened, form),
        )
    numbers = {**numbers, "bytes": {"before": bytes_before(opened), "after": size}}
    write_record(
        folder, opened, subject.structure, subject.config, plan, numbers, texts.windows, form=form
    )
    return numbers
