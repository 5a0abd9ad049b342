"""The command that shows and cleans a store of passes."""

import time
from typing import Any

import click

from ..errors import SecateurError
from ..paths import typed_path
from ..units import size_text
from .options import JSON
from .screen import print_json, say, table


@click.command(
    "store",
    short_help="List or clean the passes that --store keeps.",
    help="""List what the store DIR holds (by default $SECATEUR_STORE): one line a pass, the latest
used first.

\b
Example:
  secateur store passes/
  secateur store passes/ --clean

Commands that walk the layers keep what they find in --store DIR. Every pass is a folder of
safetensors files, named by a hash of all that it depends on: weights, tokens, settings, arithmetic,
code. A store holds 20 GiB; the passes that were used longest ago go.
""",
)
@click.argument("folder", metavar="DIR", envvar="SECATEUR_STORE")
@click.option("--clean", is_flag=True, help="Remove every pass that no run holds")
@JSON
def store_command(folder: str, clean: bool, as_json: bool) -> None:
    """Show or clean a store."""
    from ..checkpoint import Store

    place = typed_path(folder)
    if not place.is_dir():
        raise SecateurError(f"No such store: {folder}.\nOne is made by: secateur prune --store DIR")
    store = Store(place)
    passes = store.passes()
    if clean:
        freed = store.clean()
        left = len(store.passes()) if place.is_dir() else 0
        if as_json:
            print_json({"store": folder, "freed": freed, "left": left})
            return
        held = f"; {left} are held by a run" if left else ""
        say(f"{size_text(freed)} freed{held}")
        return
    if as_json:
        rows = [{**one.about, "whole": one.whole, "bytes": one.bytes} for one in passes]
        print_json({"store": folder, "passes": rows, "bytes": sum(one.bytes for one in passes)})
        return
    columns = ("pass", "of", "windows", "asked", "used", "size")
    table(f"{folder}", columns, map(_row, passes))
    say(f"{len(passes)} passes, {size_text(sum(one.bytes for one in passes))}")


def _row(one: Any) -> tuple[str, ...]:
    walk, asked = (one.about.get(name) or {} for name in ("walk", "asked"))
    try:
        shape = " x ".join(str(size) for size in walk.get("shape", ()))
        needs = ", ".join(map(str, asked.get("needs", ()))) or str(asked.get("repair", ""))
    except (AttributeError, TypeError):  # anybody may have edited it
        shape = needs = "?"
    used = time.strftime("%Y-%m-%d %H:%M", time.localtime(one.used))
    kind = one.kind if one.whole else f"{one.kind} (unfinished)"
    return kind, str(one.about.get("of", "")), shape, needs, used, size_text(one.bytes)
