"""The command that measures: perplexity of a model on a text."""

from typing import Any

import click

from ..config import PRUNE_GROUPS, PruneConfig, make_config
from ..errors import SecateurError
from .command import Command
from .options import JSON, keeping, quiet_transformers
from .screen import Screen, print_json, say, table
from .settings import TEXTS, settings_options

_SETTINGS = (
    *("field", "bos", "evaluate_tokens", "batch", "device", "dtype", "hidden_gib"),
    *("device_gib", "resident", "merge_adapter", "dequantise"),
)


@click.command(
    "evaluate",
    cls=Command,
    groups=PRUNE_GROUPS,
    lists={"Texts (--evaluate)": TEXTS},
    renamed={
        "--text": "--evaluate",
        "--tokens": "--evaluate-tokens",
        "--windows": "--evaluate-lengths",
    },
    help="""Perplexity of MODEL, pruned or not, on a text; one layer in memory at a time.

\b
Example:
  secateur evaluate small/ --evaluate heldout.txt
  secateur evaluate small/ --evaluate wikitext2 --evaluate-lengths 128,2048
""",
)
@click.argument("model")
@click.option("--evaluate", required=True, metavar="NAME", help="Held-out text for perplexity")
@click.option("--evaluate-lengths", metavar="N,N", help="Tokens in a window  [128,2048]")
@settings_options(PruneConfig, only=_SETTINGS)
@keeping
@JSON
def evaluate_command(
    model: str,
    evaluate: str,
    evaluate_lengths: str | None,
    store: str | None,
    fresh: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Evaluate a model."""
    lengths = _lengths(evaluate_lengths)
    given = {name: value for name, value in options.items() if value is not None}
    config = make_config(model=model, **given)
    screen = Screen()
    from ..data import evaluated_part
    from ..pipeline.look import evaluated
    from ..report import bos_line, form_line

    quiet_transformers()
    found, begin, form = evaluated(
        model,
        evaluate,
        evaluate_lengths=lengths,
        store=store,
        fresh=fresh,
        progress=screen,
        **config.model_dump(include=set(_SETTINGS)),
    )
    if as_json:
        values = [{"window": p.window, "perplexity": p.value, "tokens": p.tokens} for p in found]
        said = {"model": model, "text": evaluate, "form": form, "bos": begin.to_json()}
        print_json({**said, "perplexity": values})
        return
    rows = [(p.window, f"{p.value:.3f}", f"{p.tokens:,}") for p in found]
    part = evaluated_part(evaluate)
    title = f"{model} on {evaluate}, {part}" if part else f"{model} on {evaluate}"
    table(title, ("window, tokens", "perplexity per token", "predicted tokens"), rows)
    say(bos_line({"bos": begin.to_json()}))
    say(form_line(form))


def _lengths(text: str | None) -> list[int] | None:
    if text is None:
        return None
    try:
        return [int(part) for part in text.split(",")]
    except ValueError as error:
        raise SecateurError(
            f"--evaluate-lengths {text!r} is not a list of lengths like 128,2048."
        ) from error
