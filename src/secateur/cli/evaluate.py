"""The command that measures: perplexity, agreement with the dense model, tasks, what is written."""

from typing import Any

import click

from ..config import PRUNE_GROUPS, PruneConfig, make_config
from ..errors import SecateurError
from .command import Command
from .evaluation_tables import evaluation_tables
from .options import JSON, keeping, quiet_transformers
from .screen import Screen, print_json, say
from .settings import TEXTS, settings_options

_SETTINGS = (
    *("field", "bos", "evaluate_tokens", "batch", "device", "dtype", "hidden_gib"),
    *("device_gib", "resident", "merge_adapter", "dequantise"),
)
_GROUPS = {
    "What is measured": (
        "evaluate evaluate_lengths against tasks limit prompt continuations new_tokens",
        "",
    ),
    **PRUNE_GROUPS,
}
_TASKS = {
    "zero-shot": "boolq, piqa, hellaswag, winogrande, arc_easy, arc_challenge, openbookqa",
    "NAME": "Any task of lm-evaluation-harness; its data come from the hub",
    "FILE.jsonl": "Lines with query, choices and gold (or context_options, continuation, gold)",
    "FOLDER": "All such files in it",
}


@click.command(
    "evaluate",
    cls=Command,
    groups=_GROUPS,
    lists={"Texts (--evaluate)": TEXTS, "Tasks (--tasks)": _TASKS},
    renamed={
        "--text": "--evaluate",
        "--tokens": "--evaluate-tokens",
        "--windows": "--evaluate-lengths",
    },
    help="""How good MODEL is, pruned or not; one layer in memory at a time.

\b
Example:
  secateur evaluate small/ --evaluate heldout.txt --against path/to/model
  secateur evaluate small/ --tasks zero-shot --limit 200
  secateur evaluate small/ --tasks FOLDER/ --against path/to/model
  secateur evaluate small/ --evaluate heldout.txt --continuations 3
""",
)
@click.argument("model")
@click.option(
    "--evaluate",
    metavar="NAME",
    help="Held-out text for perplexity  [wikitext2; none with --tasks or --prompt]",
)
@click.option("--evaluate-lengths", metavar="N,N", help="Tokens in a window  [128,2048]")
@click.option("--against", metavar="DENSE", help="Dense model, and the agreement with it")
@click.option("--tasks", metavar="NAME,NAME", help="Tasks: zero-shot, names, files, folders")
@click.option("--limit", type=int, metavar="N", help="Items of a task at most")
@click.option("--prompt", multiple=True, metavar="TEXT", help="Prompt to continue greedily")
@click.option(
    "--continuations", type=int, default=0, metavar="N", help="Continuations of the text  [0]"
)
@click.option(
    "--new-tokens", type=int, default=48, metavar="N", help="Tokens of a continuation  [48]"
)
@settings_options(PruneConfig, only=_SETTINGS)
@keeping
@JSON
def evaluate_command(
    model: str,
    evaluate: str | None,
    evaluate_lengths: str | None,
    against: str | None,
    tasks: str | None,
    limit: int | None,
    prompt: tuple[str, ...],
    continuations: int,
    new_tokens: int,
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
    from ..pipeline import evaluate as evaluated
    from ..report import form_line

    quiet_transformers()
    found = evaluated(
        model,
        evaluate,
        evaluate_lengths=lengths,
        against=against,
        tasks=[] if tasks is None else [tasks],
        limit=limit,
        prompts=list(prompt),
        continuations=continuations,
        new_tokens=new_tokens,
        store=store,
        fresh=fresh,
        progress=screen,
        **config.model_dump(include=set(_SETTINGS)),
    )
    if as_json:
        said = {"model": model, "text": found.text, "against": against, "limit": limit}
        print_json({**{k: v for k, v in said.items() if v is not None}, **found.to_json()})
        return
    evaluation_tables(found, model, against)
    say(form_line(found.form))


def _lengths(text: str | None) -> list[int] | None:
    if text is None:
        return None
    try:
        return [int(part) for part in text.split(",")]
    except ValueError as error:
        raise SecateurError(
            f"--evaluate-lengths {text!r} is not a list of lengths like 128,2048."
        ) from error
