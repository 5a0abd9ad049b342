"""Many methods on one model: the same calibration tokens, the same ratios, shared statistics."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Unpack

from torch import nn

from ..arguments import (
    a_flag,
    a_function,
    a_model,
    a_number,
    a_progress,
    a_tokenizer,
    a_word,
    an_output,
    optional,
    public,
    some,
)
from ..budgets import BUDGETS
from ..config import PruneSettings, make_config
from ..errors import SecateurError
from ..progress import Progress, draw, note, telling
from .checks import path_of
from .contest import ways_of
from .keeping import Stored, keeping
from .result import Result
from .subject import name_of, open_subject
from .texts import named
from .together import about, read_together, runs_of
from .tracking import Track, curves, track_of


@public(
    model=a_model,
    methods=some(a_word),
    ratios=some(a_number),
    repairs=some(a_word),
    tokenizer=a_tokenizer,
    fresh=a_flag,
    progress=a_progress,
    each=optional(a_function),
    track=optional(a_word),
    logs=optional(an_output),
)
def compare(
    model: str | Path | nn.Module,
    *,
    methods: str | Sequence[str],
    ratios: float | Sequence[float],
    repairs: str | Sequence[str] = (),
    tokenizer: Any = None,
    store: Stored = None,
    fresh: bool = False,
    progress: Progress | None = None,
    each: Callable[[Result], None] | None = None,
    track: str | None = None,
    logs: str | Path | None = None,
    **settings: Unpack[PruneSettings],
) -> list[dict[str, Any]]:
    """One row for each method, ratio and repair (none given: the method's own).

    A row has `method`, `ratio`, `repair`, `removed` (the share of decoder linears that went),
    `seconds` and `perplexity`, a list by window; `blend` is that of a fusion. `each` is called with
    every result, for what rows do not say. `track` ("tensorboard", "mlflow" or "wandb") gets a run
    for each row, with its logs in the folder `logs`. `settings`, `store` and `fresh` are
    those of `prune`.

    Raises:
        SecateurError: bad input, or a ratio that a method cannot meet.
    """
    if not methods or not ratios:
        raise SecateurError(
            "Nothing to compare.\nType: secateur compare MODEL --methods flap,magnitude"
            " --ratios 0.2,0.5 --out DIR"
        )
    _refuse_lists(settings)
    drawn = track_of(track, path_of(logs))
    shares = [ratios] if isinstance(ratios, int | float) else ratios
    names, given = named(settings)
    configs = [
        make_config(**names, model=name_of(model), method=method, ratio=ratio, repair=repair)
        for method in methods
        for ratio in shares
        for repair in (repairs or (None,))
    ]
    rows: list[dict[str, Any]] = []
    with keeping(store, None, None, fresh=fresh) as kept:
        with telling(progress):
            opened = open_subject(model, configs[0], tokenizer)
            shared = read_together([ways_of(opened, config) for config in configs], kept, given)
        for run in runs_of(shared, progress):
            with telling(progress, about(run.result.config)):
                _draw(drawn, run.row)
            if each is not None:
                each(run.result)
            rows.append(run.row)
    return rows


def _refuse_lists(settings: Mapping[str, Any]) -> None:
    """One method, ratio or repair is one of a list here.

    Raises:
        SecateurError: it was given by the name that `prune` has for it.
    """
    for name in (*BUDGETS, "at_context", "at_batch"):
        if name != "ratio" and name in settings:
            raise SecateurError(
                f"--{name.replace('_', '-')} is for prune: comparing takes --ratios, the same"
                " shares for every method.\nType --ratios 0.2,0.5."
            )
    for one, many in (("method", "methods"), ("ratio", "ratios"), ("repair", "repairs")):
        if one in settings:
            raise SecateurError(f"Comparing takes {many}, not {one}.")


def _draw(track: Track | None, row: Mapping[str, Any]) -> None:
    """A run of the tracker with the numbers of a row; it is worth no error at this point."""
    names = ("method", "ratio", "repair", "search", "seed")
    settings = {name: row[name] for name in names}
    values = {name: row[name] for name in ("removed", "parameters", "seconds")}
    for one in row["perplexity"]:
        values[f"perplexity/{one['window']}"] = one["after"]
        values[f"perplexity before/{one['window']}"] = one["before"]
    try:
        with curves(track, f"{row['method']}-{row['ratio']:g}-{row['repair']}", settings):
            draw(0, **values)
    except SecateurError as error:
        note(str(error))
