"""The commands that look at a model's make, and do not run it: inspect, discover; and convert."""

import re
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import click

from ..errors import SecateurError
from ..paths import typed_path
from .command import Command
from .options import FORCE, JSON, OUT, TEXT_ONLY, quiet_transformers, reading, uploading
from .screen import Screen, print_json, say, table


@click.command(
    "inspect",
    cls=Command,
    help="""Show the layers of DIR: a pruned folder, any supported model, or a folder with a plan.

\b
Example:
  secateur inspect small/
  secateur inspect small/ --against other/
  secateur inspect small/ --picture blend.svg

Of a method that fuses two scores (hywia, saap), it shows the blend of the two by layer as well;
--picture draws it.
""",
)
@click.argument("folder", metavar="DIR")
@click.option(
    "--against", type=click.Path(path_type=Path), metavar="DIR", help="Compare with this one's plan"
)
@click.option(
    "--picture", type=click.Path(path_type=Path), metavar="FILE.svg", help="Draw the blend by layer"
)
@click.option("--force", is_flag=True, help="Replace FILE.svg if it exists")
@reading
@JSON
def inspect_command(
    folder: str,
    against: Path | None,
    picture: Path | None,
    force: bool,
    merge_adapter: bool | None,
    dequantise: bool,
    as_json: bool,
) -> None:
    """Inspect a folder."""
    _check_picture(picture)
    from ..pipeline import look_at
    from ..report import BLEND_COLUMNS, blend_chart, blend_rows

    quiet_transformers()
    with _new_picture(picture, force) as file:
        found = look_at(folder, against, merge_adapter=merge_adapter, dequantise=dequantise)
        if file is not None:
            if not found.blend:
                raise SecateurError(
                    f"{folder} has no blend to draw: its method fuses no two scores.\n"
                    "Type: secateur prune MODEL --method hywia --out DIR"
                )
            method = str(found.facts.get("method", folder))
            file.write_text(blend_chart({method: found.blend}), encoding="utf-8")
    if as_json:
        print_json(found.to_json())
        return
    screen = Screen(reading=False)
    for note in found.notes:
        screen.note(note)
    facts = ((key, _fact(key, v)) for key, v in found.facts.items())
    table(str(folder), ("", "value"), facts, texts=(0, 1))
    if found.rows:
        table("Layers", tuple(found.rows[0]), (row.values() for row in found.rows))
    if found.blend:
        table("Blend of coarse and fine scores", BLEND_COLUMNS, blend_rows(found.blend))
    if picture is not None:
        say(str(picture))


@click.command(
    "convert",
    cls=Command,
    help="""Write MODEL as a model that computes the same and that other engines read.

\b
Example:
  secateur convert path/to/baichuan --out llama/
  secateur convert tiny/ --out plain/

MODEL may be Baichuan-7B or Baichuan2-7B (to llama), a folder with weights in few bits, as recover
--recipe groupwise writes them (to floating point), a GGUF file, a quantised model with
--dequantise, an adapter and its base with --merge-adapter, or the text decoder of a multimodal
model with --text-only.

The other commands take these models as they are; what prune writes is in the stock layout too.
""",
)
@click.argument("model")
@OUT
@reading
@TEXT_ONLY
@uploading
@FORCE
@JSON
def convert_command(model: str, out: Path | None, force: bool, as_json: bool, **how: Any) -> None:
    """Convert a model."""
    if out is None:
        raise SecateurError("Where to? Add --out DIR.")
    screen = Screen()
    from ..pipeline import convert
    from ..report import form_line

    quiet_transformers()
    done = convert(model, out=out, force=force, progress=screen, **how)
    if as_json:
        print_json(done.to_json())
        return
    say(form_line(done.form))
    say(f"{done.out}  ({done.architecture}, {done.bytes / 1e6:,.1f} MB of weights)")


@click.command(
    "discover",
    cls=Command,
    help="""Show which slices of which weights of MODEL go together: the units that prune removes.

\b
Example:
  secateur discover path/to/model
  secateur discover path/to/model --picture layer.svg

MODEL is a folder or a name on the hub; config.json is all that is read. A small random model of
the same make proves what is shown: cut and masked, it gives the same logits.
""",
)
@click.argument("model")
@click.option(
    "--picture", type=click.Path(path_type=Path), metavar="FILE.svg", help="Draw one layer"
)
@click.option(
    "--layer", type=click.IntRange(min=0), default=None, metavar="N", help="Which one to draw  [0]"
)
@click.option("--force", is_flag=True, help="Replace FILE.svg if it exists")
@JSON
def discover_command(
    model: str, picture: Path | None, layer: int | None, force: bool, as_json: bool
) -> None:
    """Discover coupled structures."""
    _check_picture(picture)
    from ..pipeline import discover
    from ..report import STRUCTURE_COLUMNS, form_line, structure_cells
    from ..structure import format_ranges

    quiet_transformers()
    with _new_picture(picture, force) as file:
        found = discover(model)
        if file is not None:
            file.write_text(found.picture(layer), encoding="utf-8")
    if as_json:
        print_json(found.to_json())
        return
    layout = "its layout is declared" if found.opened.declared else "its layout was traced"
    say(
        f"Family {found.structure.family}: {layout}, and on a small model slicing equals masking"
        f" (difference {found.difference:.0e})."
    )
    cells = [structure_cells(row) for row in found.rows]
    table(model, STRUCTURE_COLUMNS, cells, texts=(0, len(STRUCTURE_COLUMNS) - 1), lines=True)
    numbered = any(re.search(r"\b\d*u\b", text) for row in found.rows for text in row.members)
    unit = "; u is a unit's number" if numbered else ""
    say(f"* what prune takes unless --granularity names others{unit}")
    for left in found.left:
        say(f"Left whole: {left.module} in layers {format_ranges(left.layers)}; {left.reason}.")
    say(form_line(found.form))
    if picture is not None:
        say(str(picture))


def _fact(key: str, value: Any) -> Any:
    """A fact for people."""
    if key.endswith("parameters") and isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return f"{value:,.1f}" if key.endswith(", MB") else value


def _check_picture(picture: Path | None) -> None:
    if picture is not None and typed_path(picture, "--picture").suffix != ".svg":
        raise SecateurError(f"--picture {picture} is not a name that ends in .svg.")


def _new_picture(picture: Path | None, force: bool) -> AbstractContextManager[Path | None]:
    from ..checkpoint import new_file

    return new_file(picture, force=force) if picture else nullcontext()
