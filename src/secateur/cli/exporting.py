"""The command that writes a model for an engine."""

from pathlib import Path
from typing import Any

import click

from ..errors import SecateurError
from .command import Command
from .options import FORCE, JSON, OUT, quiet_transformers, reading
from .screen import Screen, print_json, say, table


class _Export(Command):
    """Lists the destinations, which take a second to import, when they are asked for."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        from ..deployment import DESTINATIONS

        self._lists = {"Destinations (--to)": DESTINATIONS}
        super().format_options(ctx, formatter)


@click.command(
    "export",
    cls=_Export,
    help="""Write MODEL, pruned or not, for the engine that is to run it.

\b
Example:
  secateur export small/ --to gguf --out gguf/
  secateur export small/ --to gguf --type q8_0 --out gguf/

What an engine cannot hold is refused, with the layers that stand in the way and the option of prune
that would have avoided it. MODEL is a folder or a name on the hub.
""",
)
@click.argument("model")
@click.option("--to", required=True, metavar="NAME", help="Destination: one of those below")
@OUT
@click.option("--type", default=None, metavar="NAME", help="Number format of the weights")
@click.option(
    "--head-type", default=None, metavar="NAME", help="Number format of embedding and head alone"
)
@click.option("--no-tokenizer", is_flag=True, help="Leave the tokenizer out")
@reading
@FORCE
@JSON
def export_command(model: str, out: Path | None, as_json: bool, **how: Any) -> None:
    """Export a model."""
    if out is None:
        raise SecateurError("Where to? Add --out DIR.")
    screen = Screen()
    from ..pipeline import export_model
    from ..units import size_text

    quiet_transformers()
    done = export_model(model, out=out, progress=screen, **how)
    if as_json:
        print_json(done.to_json())
        return
    facts = {**done.facts, "bytes": size_text(int(done.facts["bytes"]))}
    table(str(done.out), ("", "value"), facts.items(), texts=(0, 1))
    say(str(done.out / done.file) + (f"   run it: {done.command}" if done.command else ""))
