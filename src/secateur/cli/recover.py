"""The command that trains a pruned folder a little."""

from pathlib import Path
from typing import Any

import click

from ..config import LOSSES, RECIPES, TRAINED, RecoverConfig, read_toml
from ..errors import SecateurError
from ..recovery import GRIDS
from .options import FORCE, JSON, OUT, keeping, quiet_transformers
from .screen import Screen, print_json, say, table
from .settings import given_settings, listed, settings_options, texts_of_file


@click.command(
    "recover",
    short_help="Train a pruned folder a little; most of the quality comes back.",
    help=f"""Train DIR, a pruned folder, and write the better model to --out.

\b
Example:
  secateur recover small/ --with distil --data text.txt --out better/
  secateur recover small/ --with lora --data alpaca-cleaned --evaluate wikitext2 --out better/
  secateur recover small/ --with groupwise --bits 4 --data text.txt --out tiny/
  secateur recover small/ --with distil --train all --data text.txt --out better/

\b
Recipes (--with): {listed(RECIPES, 19)}
  distil     {RECIPES["distil"].summary}
  lora       {RECIPES["lora"].summary}
  groupwise  {RECIPES["groupwise"].summary}
distil trains (--train): {listed(TRAINED, 26)}
Losses (--loss):
  kl          {LOSSES["kl"].summary};
              {LOSSES["kl"].steps} steps of {LOSSES["kl"].batch}.
              distil has no other; groupwise takes it where a dense model is named
  next-token  {LOSSES["next-token"].summary};
              {LOSSES["next-token"].epochs} epochs in steps of {LOSSES["next-token"].batch}.
              lora takes it, and groupwise where no dense model is named
Grids of groupwise: {listed(GRIDS, 21)}
Data: a file of instructions (Alpaca's fields, or prompt and completion), alpaca-cleaned, or text:
      a .txt, .jsonl, .json, .csv, .tsv or .parquet file (.gz or .zst too), a folder of them,
      wikitext2, c4, owner/name on the hub, self

A run that was cut short goes on where it was: type the same command again.
""",
)
@click.argument("model", required=False, metavar="DIR")
@OUT
@click.option("--with", "recipe", default=None, metavar="NAME", help="Recipe  [distil]")
@click.option(
    "--config", type=click.Path(path_type=Path), metavar="FILE", help="Settings: recovery.toml"
)
@settings_options(RecoverConfig, "recipe")
@click.option("--keep-adapter", is_flag=True, help="Write LoRA's adapter too, as DIR/adapter")
@keeping
@FORCE
@JSON
def recover_command(
    model: str | None,
    out: Path | None,
    recipe: str | None,
    config: Path | None,
    keep_adapter: bool,
    store: str | None,
    fresh: bool,
    force: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Recover a pruned folder."""
    recorded = read_toml(config) if config else {}
    if recipe not in (None, recorded.get("recipe")):  # these belong to the recipe recorded
        recorded = {key: value for key, value in recorded.items() if key not in ("loss", "train")}
    settings = given_settings(
        RecoverConfig,
        {**options, "recipe": recipe},
        model,
        recorded,
        "secateur recover DIR --with distil --data text.txt --out better/",
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
        progress=screen,
        **settings,
    )
    show_recovery(done, as_json)


def show_recovery(done: Any, as_json: bool) -> None:
    """The result as JSON or tables."""
    from ..report import bos_line, evaluation_line, form_line, number_rows

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
    for line in filter(None, (evaluation_line(done.numbers), bos_line(done.numbers))):
        say(line)
    say(form_line(done.numbers["form"]))
    say(f"{done.out}  ({done.seconds:.1f} s, {done.tokens_per_second:,.0f} tokens/s in training)")
