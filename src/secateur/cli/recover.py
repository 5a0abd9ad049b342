"""The command that trains a pruned folder a little."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from ..config import HOW_LONG, LOSSES, RECIPES, RECOVER_GROUPS, TRAINED, RecoverConfig, read_toml
from ..errors import SecateurError
from ..recovery import GRIDS
from .command import Command
from .options import FORCE, JSON, OUT, TRACK, keeping, quiet_transformers, uploading
from .screen import Screen, elapsed, print_json, say, table
from .settings import TEXTS, given_settings, settings_options, texts_of_file

_KL, _NEXT = LOSSES["kl"], LOSSES["next-token"]


@click.command(
    "recover",
    cls=Command,
    groups=RECOVER_GROUPS,
    lists={
        "Recipes (--recipe)": RECIPES,
        "What distil trains (--train)": TRAINED,
        "Losses (--loss)": LOSSES,
        "Grids of groupwise (--grid)": GRIDS,
        "Texts (--data, --evaluate)": TEXTS,
    },
    first=("Recipes (--recipe)",),
    renamed={"--with": "--recipe"},
    help=f"""Train DIR, a pruned folder, and write the better model to --out.

\b
Example:
  secateur recover small/ --data text.txt --out better/
  secateur recover small/ --recipe lora --data alpaca-cleaned --out better/
  secateur recover small/ --recipe groupwise --data text.txt --out tiny/
  secateur recover small/ --train all --data text.txt --out big/

Data is a file of instructions (Alpaca's fields, or prompt and completion), alpaca-cleaned, or a
text. A run that was cut short goes on where it was: type the same command again.

distil learns by the loss kl ({_KL.steps} steps of {_KL.batch}), lora by next-token ({_NEXT.epochs}
epochs in steps of {_NEXT.batch}), groupwise by kl where a dense model is named.
""",
)
@click.argument("model", required=False, metavar="DIR")
@OUT
@click.option(
    "--config", type=click.Path(path_type=Path), metavar="FILE", help="Settings: recovery.toml"
)
@settings_options(RecoverConfig)
@click.option("--keep-adapter", is_flag=True, help="Write LoRA's adapter too, as DIR/adapter")
@keeping
@uploading
@TRACK
@FORCE
@JSON
def recover_command(
    model: str | None,
    out: Path | None,
    config: Path | None,
    keep_adapter: bool,
    store: str | None,
    fresh: bool,
    push_to_hub: str | None,
    private: bool,
    track: str | None,
    force: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Recover a pruned folder."""
    recorded = read_toml(config) if config else {}
    # these belong to the recipe recorded
    if options["recipe"] not in (None, recorded.get("recipe")):
        recorded = {key: value for key, value in recorded.items() if key not in ("loss", "train")}
    if any(options[name] is not None for name in HOW_LONG):
        recorded = {key: value for key, value in recorded.items() if key not in HOW_LONG}
    settings = given_settings(
        RecoverConfig,
        options,
        model,
        recorded,
        "secateur recover DIR --recipe distil --data text.txt --out better/",
    )
    if out is None:
        raise SecateurError("Where to? Add --out DIR.")
    screen = Screen()
    from ..pipeline import recover

    for message in texts_of_file(config, recorded, options):
        screen.note(message)
    quiet_transformers()
    done = recover(
        settings.pop("model"),
        out=out,
        force=force,
        keep_adapter=keep_adapter,
        store=store,
        fresh=fresh,
        push_to_hub=push_to_hub,
        private=private,
        track=track,
        progress=screen,
        **settings,
    )
    show_recovery(done, as_json)


def show_recovery(done: Any, as_json: bool) -> None:
    """The result as JSON or tables."""
    from ..report import number_rows

    if as_json:
        print_json(done.to_json())
        return
    checks = [
        (c["step"], f"{c['trained']:.3f}" if "trained" in c else "", f"{c['held_out']:.3f}")
        for c in done.numbers["checks"]
    ]
    table("Training", ("step", "loss per token", "on held-out examples"), checks)
    rows = number_rows({key: done.numbers[key] for key in ("bytes", "perplexity")})
    table("Numbers", ("", "before", "after"), rows)
    say_numbers(done.numbers)
    say(f"{done.out}  ({elapsed():.1f} s, {done.tokens_per_second:,.0f} tokens/s in training)")


def say_numbers(numbers: Mapping[str, Any]) -> None:
    """What the numbers of a run are on, and what loads its result."""
    from ..report import bos_line, evaluation_line, form_line

    for line in filter(None, (evaluation_line(numbers), bos_line(numbers))):
        say(line)
    say(form_line(numbers["form"]))
