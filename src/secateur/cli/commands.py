"""The commands. Each turns its flags into one call and its result into a table or JSON."""

import json
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import click

from ..errors import SecateurError
from ..fusion import FUSIONS
from ..importance import IMPORTANCE
from ..methods import METHODS
from ..search import SEARCHES
from ..structure import GRANULARITIES
from ..surgery import REPAIRS
from .screen import Screen, table
from .settings import given_settings, listed, settings_options

_OUT = click.option(
    "--out", type=click.Path(path_type=Path), default=None, metavar="DIR", help="Folder to write"
)
_FORCE = click.option("--force", is_flag=True, help="Replace the folder --out if it exists")
_JSON = click.option("--json", "as_json", is_flag=True, help="One JSON object on standard output")


@click.command(
    "prune",
    short_help="Prune a model into a smaller folder.",
    help=f"""Prune MODEL (a folder, or a name on the hub) and write the smaller model to --out.

\b
Example:
  secateur prune path/to/model --method flap --ratio 0.2 --calibration text.txt --out small/
  secateur prune path/to/model --method wanda-sp --ratio 0.3 --layers 4-29 --out small/
  secateur prune --config small/run.toml --out again/

\b
Methods:     {listed(METHODS)}
Scores:      {listed(IMPORTANCE)}
Fusions:     {listed(FUSIONS)}
Searches:    {listed(SEARCHES)}
Repairs:     {listed(REPAIRS)}
Units:       {listed(GRANULARITIES)}
Calibration: a .txt or .jsonl file, a folder of them, wikitext2, c4, ptb, bookcorpus,
             owner/name on the hub, self (the model's own samples), embedded

The calibration text is c4 unless you name one. Perplexity is taken on a part of it that was not
used, unless --evaluate names a text (or none).
""",
)
@click.argument("model", required=False)
@_OUT
@click.option(
    "--config", type=click.Path(path_type=Path), metavar="FILE", help="Settings: run.toml"
)
@settings_options()
@click.option("--dry-run", is_flag=True, help="Make the plan alone; --out gets plan.json")
@_FORCE
@_JSON
def prune_command(
    model: str | None,
    out: Path | None,
    config: Path | None,
    dry_run: bool,
    force: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Prune a model."""
    settings = given_settings(options, model, config)
    if out is None and not dry_run:
        raise SecateurError("Where to? Add --out DIR (or --dry-run for the plan alone).")
    from ..pipeline import prune

    screen = Screen()
    _quiet_transformers()
    result = prune(
        settings.pop("model"), out=out, force=force, dry_run=dry_run, progress=screen, **settings
    )
    _show(result, as_json, dry_run)


@click.command(
    "apply",
    short_help="Cut a model by a plan.json.",
    help="""Cut MODEL by PLAN (a plan.json, or a folder that has one), repair it, write --out.

\b
Example:
  secateur apply plan/plan.json path/to/model --out small/

The plan may have been edited: "keep" lists the units that stay. Its repair is done anew, on the
calibration text that the plan names or --calibration.
""",
)
@click.argument("plan", type=click.Path(path_type=Path))
@click.argument("model")
@_OUT
@click.option("--repair", default=None, metavar="NAME", help="none or bias; default: the plan's")
@click.option("--calibration", default=None, metavar="NAME", help="Text; default: the plan's")
@click.option("--samples", type=int, default=None, metavar="N", help="Calibration windows")
@click.option("--length", type=int, default=None, metavar="N", help="Tokens in a window")
@click.option("--evaluate", default=None, metavar="NAME", help="Text for perplexity  [spare]")
@click.option("--batch", type=int, default=None, metavar="N", help="Windows at once  [8]")
@click.option("--seed", type=int, default=None, metavar="N", help="Seed; default: the plan's")
@click.option("--device", default=None, metavar="NAME", help="auto, cpu, cuda  [auto]")
@click.option("--dtype", default=None, metavar="NAME", help="Arithmetic of the passes  [auto]")
@_FORCE
@_JSON
def apply_command(
    plan: Path, model: str, out: Path | None, force: bool, as_json: bool, **options: Any
) -> None:
    """Apply a plan."""
    if out is None:
        raise SecateurError("Where to? Add --out DIR.")
    from ..pipeline import apply, read_plan

    given = {name: value for name, value in options.items() if value is not None}
    read = read_plan(plan)
    _quiet_transformers()
    result = apply(read, model, out=out, force=force, progress=Screen(), **given)
    _show(result, as_json, dry_run=False)


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
@click.option("--windows", default=None, metavar="N,N", help="Window lengths  [128,2048]")
@click.option(
    "--tokens", type=click.IntRange(min=2), default=None, metavar="N", help="At most so many tokens"
)
@click.option("--batch", type=click.IntRange(min=1), default=8, metavar="N", help="Windows at once")
@click.option("--device", default="auto", metavar="NAME", help="auto, cpu, cuda")
@click.option("--dtype", default="auto", metavar="NAME", help="Arithmetic: auto, float32...")
@_JSON
def evaluate_command(
    model: str,
    text: str,
    windows: str | None,
    tokens: int | None,
    batch: int,
    device: str,
    dtype: str,
    as_json: bool,
) -> None:
    """Evaluate a model."""
    lengths = _lengths(windows)
    from ..pipeline import evaluate

    _quiet_transformers()
    found = evaluate(
        model,
        text,
        tokens=tokens,
        batch=batch,
        device=device,
        dtype=dtype,
        windows=lengths,
        progress=Screen(),
    )
    if as_json:
        values = [{"window": p.window, "perplexity": p.value, "tokens": p.tokens} for p in found]
        click.echo(json.dumps({"model": model, "text": text, "perplexity": values}))
        return
    rows = [(p.window, f"{p.value:.3f}", f"{p.tokens:,}") for p in found]
    table(
        f"{model} on {text}", ("window, tokens", "perplexity per token", "predicted tokens"), rows
    )


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
@click.argument("folder", type=click.Path(path_type=Path), metavar="DIR")
@click.option(
    "--against", type=click.Path(path_type=Path), metavar="DIR", help="Compare with this one's plan"
)
@click.option(
    "--picture", type=click.Path(path_type=Path), metavar="FILE.svg", help="Draw the blend by layer"
)
@click.option("--force", is_flag=True, help="Replace FILE.svg if it exists")
@_JSON
def inspect_command(
    folder: Path, against: Path | None, picture: Path | None, force: bool, as_json: bool
) -> None:
    """Inspect a folder."""
    if picture is not None:
        _refuse_picture(picture, force)
    from ..checkpoint import write_text
    from ..pipeline import inspect
    from ..report import BLEND_COLUMNS, blend_chart, blend_rows

    found = inspect(folder, against)
    if picture is not None:
        if not found["blend"]:
            raise SecateurError(
                f"{folder} has no blend to draw: its method fuses no two scores.\n"
                "Type: secateur prune MODEL --method hywia --out DIR"
            )
        method = str(found["facts"].get("method", folder))
        write_text(picture, blend_chart({method: found["blend"]}))
    if as_json:
        click.echo(json.dumps(found))
        return
    table(str(folder), ("", "value"), found["facts"].items())
    if found["layers"]:
        table("Layers", tuple(found["layers"][0]), (row.values() for row in found["layers"]))
    if found["blend"]:
        table("Blend of coarse and fine scores", BLEND_COLUMNS, blend_rows(found["blend"]))
    if picture is not None:
        click.echo(str(picture))


@click.command(
    "compare",
    short_help="Compare methods on one model.",
    help=f"""Prune MODEL by each method at each ratio, on the same calibration tokens, and measure.

\b
Example:
  secateur compare path/to/model --methods flap,wanda-sp,hywia --ratios 0.2,0.5 --out compared/

\b
Methods: {listed(METHODS, 9)}
Repairs: {listed(REPAIRS, 9)}

No pruned model is written: --out gets the table as comparison.json, .csv and .html.
""",
)
@click.argument("model")
@click.option("--methods", required=True, metavar="A,B", help="Methods")
@click.option("--ratios", default="0.2,0.5", metavar="X,Y", help="Shares to remove  [0.2,0.5]")
@click.option("--repairs", default="", metavar="A,B", help="Repairs; default: each method's own")
@_OUT
@settings_options("method", "ratio", "repair", "importance", "fusion")
@_FORCE
@_JSON
def compare_command(
    model: str,
    methods: str,
    ratios: str,
    repairs: str,
    out: Path | None,
    force: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Compare methods."""
    given = {name: value for name, value in options.items() if value is not None}
    shares = _ratios(ratios)
    from ..checkpoint import new_folder
    from ..pipeline import compare
    from ..report import comparison_columns, comparison_row, write_comparison

    _quiet_transformers()
    with new_folder(out, force=force) if out else nullcontext() as folder:
        rows = compare(
            model,
            methods=_names(methods),
            ratios=shares,
            repairs=_names(repairs),
            progress=Screen(),
            **given,
        )
        if folder is not None:
            write_comparison(folder, model, rows)
    if as_json:
        click.echo(json.dumps({"model": model, "rows": rows}))
        return
    table(f"{model} pruned", comparison_columns(rows), map(comparison_row, rows))
    if out:
        click.echo(f"{out}")


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


def _ratios(text: str) -> list[float]:
    try:
        return [float(part) for part in text.split(",")]
    except ValueError as error:
        raise SecateurError(f"--ratios {text!r} is not a list of shares like 0.2,0.5.") from error


@click.command(
    "convert",
    short_help="Write a model in the layout of its stock class.",
    help="""Write MODEL as the stock model that computes the same, which needs no code of its own.

\b
Example:
  secateur convert path/to/baichuan --out llama/

\b
Models: Baichuan-7B, Baichuan2-7B (to llama)

The other commands take these models as they are; what prune writes is in the stock layout too.
""",
)
@click.argument("model")
@_OUT
@_FORCE
@_JSON
def convert_command(model: str, out: Path | None, force: bool, as_json: bool) -> None:
    """Convert a model."""
    if out is None:
        raise SecateurError("Where to? Add --out DIR.")
    from ..pipeline import convert

    _quiet_transformers()
    done = convert(model, out=out, force=force, progress=Screen())
    if as_json:
        click.echo(json.dumps(done.to_json()))
        return
    click.echo(f"{done.out}  ({done.architecture}, {done.bytes / 1e6:,.1f} MB of weights)")


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
@_JSON
def discover_command(
    model: str, picture: Path | None, layer: int | None, force: bool, as_json: bool
) -> None:
    """Discover coupled structures."""
    if picture is not None:
        _refuse_picture(picture, force)
    from ..checkpoint import write_text
    from ..pipeline import discover
    from ..report import STRUCTURE_COLUMNS, structure_cells

    _quiet_transformers()
    found = discover(model)
    if picture is not None:
        write_text(picture, found.picture(layer))
    if as_json:
        click.echo(json.dumps(found.to_json()))
        return
    layout = "its layout is declared" if found.opened.declared else "its layout was traced"
    click.echo(
        f"Family {found.structure.family}: {layout}, and on a small model slicing equals masking"
        f" (difference {found.difference:.0e})."
    )
    cells = [structure_cells(row) for row in found.rows]
    table(model, STRUCTURE_COLUMNS, cells, texts=(0, len(STRUCTURE_COLUMNS) - 1), lines=True)
    click.echo("* what prune takes unless --granularity names others; u is a unit's number")
    if picture is not None:
        click.echo(str(picture))


def _refuse_picture(picture: Path, force: bool) -> None:
    if picture.suffix != ".svg":
        raise SecateurError(f"--picture {picture} is not a name that ends in .svg.")
    if picture.is_dir() or not picture.parent.is_dir():
        raise SecateurError(f"--picture {picture} is no place for a file. Choose another name.")
    if picture.exists() and not force:
        raise SecateurError(f"{picture} exists. Choose another name, or add --force to replace it.")


def _lengths(text: str | None) -> list[int] | None:
    if text is None:
        return None
    try:
        return [int(part) for part in text.split(",")]
    except ValueError as error:
        raise SecateurError(
            f"--windows {text!r} is not a list of lengths like 128,2048."
        ) from error


def _show(result: Any, as_json: bool, dry_run: bool) -> None:
    from ..report import evaluation_line, layer_rows, number_rows

    if as_json:
        click.echo(json.dumps(result.to_json()))
        return
    columns = ("layer", "attention heads (KV)", "MLP width")
    table("What stays", columns, layer_rows(result.structure, result.plan))
    table("Numbers", ("", "before", "after"), number_rows(result.numbers))
    if line := evaluation_line(result.numbers):
        click.echo(line)
    where = result.out if result.out else "nothing written"
    if dry_run and result.out:
        where = result.out / "plan.json"
    click.echo(f"{where}  ({result.seconds['total']:.1f} s)")


def _quiet_transformers() -> None:
    """Its own bars and notices would run through ours."""
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
