"""The commands that look and do not cut: evaluate, inspect, discover; and convert."""

import re
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import click

from ..errors import SecateurError
from ..extras import require
from ..paths import typed_path
from .options import FORCE, JSON, OUT, TEXT_ONLY, keeping, quiet_transformers, reading
from .screen import Screen, print_json, say, table


@click.command(
    "evaluate",
    short_help="Perplexity of a model on a text.",
    help="""Perplexity of MODEL, pruned or not, on --text; one layer in memory at a time.

\b
Example:
  secateur evaluate small/ --text heldout.txt
  secateur evaluate path/to/model --text wikitext2 --windows 128,2048
""",
)
@click.argument("model")
@click.option("--text", required=True, metavar="NAME", help="File, folder, wikitext2, c4, ptb...")
@click.option("--field", default=None, metavar="NAME", help="Column or key with the text")
@click.option(
    "--bos",
    default="auto",
    metavar="NAME",
    help="Which windows begin with BOS: each, document, never; auto: each, where the tokenizer adds"
    " it  [auto]",
)
@click.option("--windows", default=None, metavar="N,N", help="Window lengths  [128,2048]")
@click.option(
    "--tokens", type=click.IntRange(min=2), default=None, metavar="N", help="At most so many tokens"
)
@click.option("--batch", type=click.IntRange(min=1), default=8, metavar="N", help="Windows at once")
@click.option("--device", default="auto", metavar="NAME", help="auto, cpu, cuda")
@click.option("--dtype", default="auto", metavar="NAME", help="Arithmetic: auto, float32...")
@click.option(
    "--hidden-gib",
    type=click.FloatRange(min=0),
    default=4.0,
    metavar="X",
    help="GiB of hidden states in memory, then on disk",
)
@reading
@keeping
@JSON
def evaluate_command(model: str, text: str, windows: str | None, as_json: bool, **how: Any) -> None:
    """Evaluate a model."""
    lengths = _lengths(windows)
    screen = Screen()
    from ..data import evaluated_part
    from ..pipeline.look import evaluated
    from ..report import bos_line, form_line

    quiet_transformers()
    found, begin, form = evaluated(model, text, windows=lengths, progress=screen, **how)
    if as_json:
        values = [{"window": p.window, "perplexity": p.value, "tokens": p.tokens} for p in found]
        said = {"model": model, "text": text, "form": form, "bos": begin.to_json()}
        print_json({**said, "perplexity": values})
        return
    rows = [(p.window, f"{p.value:.3f}", f"{p.tokens:,}") for p in found]
    part = evaluated_part(text)
    title = f"{model} on {text}, {part}" if part else f"{model} on {text}"
    table(title, ("window, tokens", "perplexity per token", "predicted tokens"), rows)
    say(bos_line({"bos": begin.to_json()}))
    say(form_line(form))


@click.command(
    "inspect",
    short_help="Show what a folder or plan holds.",
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
    if picture is not None:
        _refuse_picture(picture)
        require("report", "--picture")
    from ..checkpoint import new_file
    from ..pipeline import look_at
    from ..report import BLEND_COLUMNS, blend_chart, blend_rows

    quiet_transformers()
    with new_file(picture, force=force) if picture else nullcontext() as file:
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
    short_help="Write a model in floating point, in the layout of its stock class.",
    help="""Write MODEL as a model that computes the same and that other engines read.

\b
Example:
  secateur convert path/to/baichuan --out llama/
  secateur convert tiny/ --out plain/

\b
Models: Baichuan-7B, Baichuan2-7B (to llama); folders with weights in few bits, which
        recover --with groupwise writes (to floating point); GGUF files; quantised models with
        --dequantise; an adapter and its base with --merge-adapter; the text decoder of a
        multimodal model with --text-only

The other commands take these models as they are; what prune writes is in the stock layout too.
""",
)
@click.argument("model")
@OUT
@reading
@TEXT_ONLY
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
    short_help="Show what in a model is coupled.",
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
    if picture is not None:
        _refuse_picture(picture)
    from ..checkpoint import new_file
    from ..pipeline import discover
    from ..report import STRUCTURE_COLUMNS, form_line, structure_cells
    from ..structure import format_ranges

    quiet_transformers()
    with new_file(picture, force=force) if picture else nullcontext() as file:
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


def _refuse_picture(picture: Path) -> None:
    typed_path(picture, "--picture")
    if picture.suffix != ".svg":
        raise SecateurError(f"--picture {picture} is not a name that ends in .svg.")


def _lengths(text: str | None) -> list[int] | None:
    if text is None:
        return None
    try:
        return [int(part) for part in text.split(",")]
    except ValueError as error:
        raise SecateurError(
            f"--windows {text!r} is not a list of lengths like 128,2048."
        ) from error
