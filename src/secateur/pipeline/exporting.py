"""Writing a model for an engine: what `secateur export` does."""

import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import tomli_w

from ..arguments import (
    a_flag,
    a_folder_or_name,
    a_progress,
    a_tokenizer,
    a_word,
    an_output,
    optional,
    public,
)
from ..checkpoint import EXPORT
from ..config import Reading
from ..deployment import DESTINATIONS, Asked, Destination, Written
from ..errors import SecateurError
from ..export import copy_companions, licence_files
from ..models import OpenModel, open_model
from ..progress import Progress, note, telling
from ..registry import choose
from ..shown import one_line as shown
from .checks import output_folder, path_of, reading_notes, tokenizer_class, tokenizer_to_write


@dataclass(frozen=True)
class Exported:
    """What was written where; `file` is the one to hand to the engine, `command` runs it."""

    out: Path
    target: str
    type: str
    file: str
    command: str
    facts: Mapping[str, Any]
    notes: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """All of it, for `--json`."""
        return {**asdict(self), "out": str(self.out), "notes": list(self.notes)}


@public(
    model=a_folder_or_name,
    to=a_word,
    out=an_output,
    type=optional(a_word),
    head_type=optional(a_word),
    no_tokenizer=a_flag,
    force=a_flag,
    tokenizer=a_tokenizer,
    progress=a_progress,
)
def export_model(
    model: str | Path,
    *,
    to: str,
    out: str | Path,
    type: str | None = None,
    head_type: str | None = None,
    no_tokenizer: bool = False,
    force: bool = False,
    tokenizer: Any = None,
    merge_adapter: bool | None = None,
    dequantise: bool = False,
    progress: Progress | None = None,
) -> Exported:
    """Write `model` into the folder `out` for the engines of the destination `to`.

    `model` is a checkpoint folder, pruned or not, or a name on the hub; `to` a name of
    `secateur.deployment.DESTINATIONS`, `type` one of its number formats (default: the one that the
    weights are in, where it has that, or its first), `head_type` that of embedding and head alone.
    `tokenizer` replaces the model's own; with `no_tokenizer` none is written. Graphs are made of
    the whole model in fp32; all else reads and writes tensor by tensor.

    Raises:
        SecateurError: bad input, a package is missing, or the engine cannot hold the model; the
            message says what stands in the way. Nothing was written.
    """
    out = path_of(out)
    wanted = choose("destination", to, DESTINATIONS)
    if type is not None:
        choose("type", type, {name: name for name in wanted.kinds})
    _check_head(wanted, head_type)
    wanted.check()
    with telling(progress) as told:
        opened = open_model(model, merge_adapter=merge_adapter, dequantise=dequantise)
        reading = Reading(merge_adapter=merge_adapter, dequantise=dequantise)
        for message in (*opened.notes, *reading_notes(opened, reading)):
            note(message)
        words = None if no_tokenizer else _words(wanted, opened, tokenizer)
        kind = type or wanted.default(opened)
        asked = Asked(opened, words, kind, head_type)
        with output_folder(out, force, opened) as folder:
            assert folder is not None, "there is a path"
            written = wanted.write(folder, asked)
            _bring(folder, asked, written, no_tokenizer=no_tokenizer)
            write_export(folder, asked, wanted, written)
    run = written.run.format(path=shown(str(out / written.file)), folder=shown(str(out)))
    return Exported(out, to, kind, written.file, run, written.facts, tuple(told.notes))


def _check_head(wanted: Destination, head: str | None) -> None:
    if head is None:
        return
    if not wanted.heads:
        raise SecateurError(
            f"--to {wanted.name} writes embedding and head as it writes the rest.\n"
            "Leave --head-type out, or type --to gguf"
        )
    choose("head-type", head, {name: name for name in wanted.heads})


def _words(wanted: Destination, opened: OpenModel, given: Any) -> Any:
    """The tokenizer that goes into the file, or that was given; None: the folder's files do.

    Raises:
        SecateurError: the file wants one, and there is none.
    """
    if given is not None or not wanted.words:
        return given
    try:
        return opened.tokenizer
    except SecateurError as error:
        raise SecateurError(
            f"{opened.source} has no tokenizer that loads.\nAdd its files to the folder, or write"
            " the model without one: --no-tokenizer"
        ) from error


def _bring(folder: Path, asked: Asked, written: Written, *, no_tokenizer: bool) -> None:
    """What belongs to the model besides its weights: its licence and, if asked for, tokenizer."""
    opened, form = asked.opened, written.form
    if written.bare:
        if (origin := opened.companions) is not None:
            for name in licence_files(origin):
                shutil.copyfile(origin / name, folder / name)
        return
    copy_companions(
        folder,
        opened.companions,
        tokenizer=None if no_tokenizer else tokenizer_to_write(opened, asked.tokenizer),
        model=None,
        adapted=no_tokenizer or asked.tokenizer is not None or opened.writes_tokenizer,
        read_as=None if form is None or no_tokenizer else tokenizer_class(opened, form),
    )


def write_export(folder: Path, asked: Asked, wanted: Destination, written: Written) -> None:
    """Write export.toml, by which the folder is known as ours."""
    settings = {"model": asked.opened.name, "to": wanted.name, "type": asked.kind}
    if asked.head is not None:
        settings["head_type"] = asked.head
    record = {
        "settings": settings,
        "results": {"file": written.file, **written.facts},
        "companions": [one.name for one in sorted(folder.iterdir())],
        "versions": {name: version(name) for name in ("secateur", "torch", "transformers")},
    }
    (folder / EXPORT).write_text(tomli_w.dumps(record), encoding="utf-8")
