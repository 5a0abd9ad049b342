"""Texts of a run: named, or handed over by Python code; read as windows and as held-out text."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jaxtyping import Int64
from torch import Tensor

from ..data import GIVEN, Beginning, Text, Windows, beginning, check_source, is_given
from ..errors import SecateurError
from ..evaluation import window_lengths
from ..progress import note
from .calibration import calibration_windows
from .checks import known_ids
from .held_out import SPARE_TOKENS, HeldOut, evaluation_text
from .subject import Subject

_SETTINGS = ("calibration", "evaluate", "data")
# Settings that name what was read.
READ = ("calibration", "length", "bos")


def named(settings: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The settings with a name for every text, and the texts that have none.

    Raises:
        SecateurError: a text is of a kind that cannot be read, or what reads it is not installed.
    """
    names, texts = dict(settings), {}
    for name in _SETTINGS:
        value = names.get(name)
        if is_given(value):
            names[name], texts[name] = GIVEN, value
        elif isinstance(value, Path):
            names[name] = str(value)
        check_source(names.get(name))
    return names, texts


@dataclass(frozen=True)
class Texts:
    """The texts of a run as tokens; None where nothing asks for one.

    `begin` is what windows begin with, where any were made.
    """

    windows: Windows | None = None
    held_out: HeldOut | None = None
    begin: Beginning | None = None

    @property
    def tokens(self) -> Int64[Tensor, "window token"] | None:
        """The calibration windows as token ids."""
        return None if self.windows is None else self.windows.ids

    def to_json(self) -> dict[str, Any] | None:
        """Which calibration windows were read, if any were."""
        if self.windows is None:
            return None
        count, length = self.windows.ids.shape
        return {
            "text": self.windows.source,
            "windows": count,
            "length": length,
            "tokens_sha256": self.windows.sha256,
            "bos": self.windows.begin.to_json(),
        }


def read_texts(
    subject: Subject, given: Mapping[str, Any], *, calibrate: bool, measure: bool = True
) -> tuple[Subject, Texts]:
    """Read what is calibrated and measured on, before the long work: a slip should not cost it.

    The settings then name what was read.

    Raises:
        SecateurError: no such text, too little of it, or the tokenizer is another model's.
    """
    config, opened, tokenizer = subject.config, subject.opened, subject.tokenizer
    spare = measure and config.evaluate == "spare"
    text = windows = None
    if measure and config.evaluate not in ("spare", "none"):
        text = evaluation_text(
            opened,
            config.evaluate,
            tokenizer=tokenizer,
            tokens=config.evaluate_tokens,
            window=min(window_lengths(opened.context)),
            field=config.field,
            bos=config.bos,
            given=given.get("evaluate"),
        )
    begin = None if text is None else text.begin
    name = source = config.evaluate
    if calibrate or spare:
        windows = calibration_windows(
            opened, config, tokenizer=tokenizer, given=given.get("calibration")
        )
        read = {"calibration": windows.source, "length": windows.ids.shape[1]}
        if windows.begin.mode != "given":
            read["bos"], begin = windows.begin.mode, windows.begin
        subject = subject.under(**read)
    elif (known := _beginning(subject)) is not None:
        subject = subject.under(bos=known)
    if spare and windows is not None:
        tokens = windows.spare[: config.evaluate_tokens or SPARE_TOKENS]
        text = Text(known_ids(tokens, opened), windows.begin)
        source = windows.source
        name = f"a part of {source} that calibration did not use"
    held_out = None if text is None else HeldOut(text, name, source, opened.context)
    if held_out is not None and not held_out.lengths:
        note("too little text to take perplexity on; name one: --evaluate FILE.txt")
    return subject, Texts(windows, held_out, begin)


def _beginning(subject: Subject) -> str | None:
    """What `auto` comes to where no tokens are read; None without a tokenizer."""
    try:
        return beginning(subject.tokenizer or subject.opened.tokenizer, subject.config.bos).mode
    except SecateurError:
        return None


def texts_of(subject: Subject) -> tuple[str | None, str]:
    """The texts that a run reads, as they were named."""
    return subject.config.calibration, subject.config.evaluate
