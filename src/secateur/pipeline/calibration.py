"""The calibration stage: windows of tokens that scores and repairs look at."""

from collections.abc import Iterable
from typing import Any

from torch import Tensor

from .. import data
from ..config import PruneConfig
from ..errors import SecateurError
from ..models import OpenModel, computing_dtype, loaded, resolve_device
from ..progress import note
from .checks import known_ids

# Windows shorter than this say little about attention; longer ones cost more than they add.
DEFAULT_LENGTH = 256
DEFAULT_CALIBRATION = "c4"


def window_length(length: int | None, opened: OpenModel) -> int:
    """Tokens of a window (or of an example at most): `length`, or what suits the model.

    Raises:
        SecateurError: it is longer than the context.
    """
    length = length or min(DEFAULT_LENGTH, opened.context)
    if length > opened.context:
        raise SecateurError(
            f"--length {length} is longer than the context of the model, {opened.context} tokens."
            f"\nType --length {opened.context} or less."
        )
    return length


def calibration_windows(
    opened: OpenModel, config: PruneConfig, *, tokenizer: Any = None, given: Any = None
) -> data.Windows:
    """Windows of tokens, as the settings say.

    `given` is text in the place of the one that the settings name; tokens [window, token] are the
    windows as they are.

    Raises:
        SecateurError: no such text, too little of it, or windows longer than the context.
    """
    if (ready := data.given_windows(given)) is not None:
        return _ready(ready, opened, config)
    length = window_length(config.length, opened)
    tokenizer = tokenizer or opened.tokenizer
    source = config.calibration or DEFAULT_CALIBRATION
    choice = data.CHOICE
    if config.calibration == "self":
        note("the model writes its own calibration text; for that alone it is loaded whole")
        documents: Iterable[Any] = _own_text(opened, config, length)
        choice = 1
    else:
        documents = data.documents(
            source if given is None else given,
            use="calibration",
            seed=config.seed,
            field=config.field,
            tokenizer=tokenizer,
        )
    make: dict[str, Any] = {
        "samples": config.samples,
        "length": length,
        "seed": config.seed,
        "bos": config.bos,
        "spare": True,  # whatever is evaluated on: the same seed means the same windows
    }
    try:
        windows = data.sample_windows(documents, tokenizer, source=source, choice=choice, **make)
    except SecateurError as error:
        if config.calibration is not None:
            raise
        note(
            f"{str(error).splitlines()[0]}\nCalibrating on the English text in this package"
            " instead; a text like what the model will read is better: --calibration FILE.txt"
        )
        documents = data.documents(data.EMBEDDED, use="calibration", seed=config.seed)
        windows = data.sample_windows(documents, tokenizer, source=data.EMBEDDED, **make)
    known_ids(windows.ids, opened)
    count, length = windows.ids.shape
    if count < config.samples:
        note(
            f"{windows.source} gives {count} calibration windows of {length} tokens, not the"
            f" {config.samples} asked for"
        )
    return windows


def _ready(windows: Tensor, opened: OpenModel, config: PruneConfig) -> data.Windows:
    """Windows of tokens that were given, as calibration reads them; there is no text to spare."""
    if "samples" in config.model_fields_set:
        windows = windows[: config.samples]
    window_length(windows.shape[1], opened)
    known_ids(windows, opened)
    return data.Windows(windows, windows.new_empty(0), data.GIVEN, data.Beginning("given"))


def _own_text(opened: OpenModel, config: PruneConfig, length: int) -> Iterable[Tensor]:
    """The model's own samples; it is loaded whole for that, as nothing else is."""
    if opened.folder is None:
        raise SecateurError("A live model is not sampled from; give calibration a text.")
    device = resolve_device(config.device)
    model = loaded(opened, dtype=computing_dtype(config.dtype, opened.dtype, device)).to(device)
    return data.generated_documents(model, length=length, batch=config.batch, seed=config.seed)
