"""The command that makes many runs: models, methods, ratios, repairs and seeds."""

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import click

from ..config import read_sweep
from ..errors import SecateurError
from ..shown import one_line
from .command import Command
from .options import JSON, OUT, quiet_transformers
from .screen import Screen, print_json, say, table
from .settings import refuse_code


@click.command(
    "sweep",
    cls=Command,
    help="""Prune every model in FILE by every method at every ratio with every seed, and measure.

\b
Example:
  secateur sweep sweep.toml --out swept/
  secateur sweep sweep.toml --dry-run

\b
What sweep.toml says:
  models = ["path/to/model", "other/model"]
  methods = ["flap", "magnitude"]
  ratios = [0.2, 0.5]
  repairs = ["none", "refit"]     # without it: each method's own
  seeds = [0, 1, 2]               # without it: 0
  [settings]                      # of every run, as prune has them
  calibration = "text.txt"
  samples = 64

No pruned model is written: --out gets report.html, report.json, comparison.csv and .json, with the
mean and the standard deviation over seeds. Each run is one cell, and kept in DIR/runs as soon as
it is done. Typed again, the same command goes on where it was stopped, or killed, and makes what
is new in sweep.toml; finished cells of other settings are left aside.

A cell that is refused (a ratio that a method cannot meet) is recorded with the reason. One whose
process dies is tried again; if it dies each time, the report says so and the next sweep tries it.
""",
)
@click.argument("file", metavar="FILE", type=click.Path(path_type=Path))
@OUT
@click.option(
    "--workers", type=int, metavar="N", help="Workers: processes at once  [1; ray: all it has]"
)
@click.option("--on", default="processes", metavar="NAME", help="Where workers are: processes, ray")
@click.option(
    "--retries", type=int, default=2, metavar="N", help="How often a cell that died is retried  [2]"
)
@click.option(
    "--store", default=None, envvar="SECATEUR_STORE", metavar="DIR",
    help="Store of passes; default: in --out till all is done",
)  # fmt: skip
@click.option("--use", default=None, metavar="NAME", help="Python file with a score of your own")
@click.option("--again", is_flag=True, help="Try cells again that were refused")
@click.option("--fresh", is_flag=True, help="Make every cell and every pass anew")
@click.option("--dry-run", is_flag=True, help="List the cells alone")
@JSON
def sweep_command(
    file: Path,
    out: Path | None,
    use: str | None,
    dry_run: bool,
    as_json: bool,
    **how: Any,
) -> None:
    """Sweep over models, methods, ratios and seeds."""
    asked = read_sweep(file)
    refuse_code(file, asked.settings, use)
    if use is not None:
        asked = asked.model_copy(update={"settings": {**asked.settings, "use": use}})
    if out is None and not dry_run:
        raise SecateurError("Where to? Add --out DIR (or --dry-run for the list of cells alone).")
    screen = Screen(reading=False)
    from ..pipeline import sweep

    quiet_transformers()
    done = sweep(
        asked.model_dump(exclude_unset=True), out=out, dry_run=dry_run, progress=screen, **how
    )
    if as_json:
        print_json(done.to_json())
    elif dry_run:
        _list(done)
    else:
        _show(done)
    died = [one for one in done.left_out if one["died"]]
    if died:
        raise SecateurError(
            f"{len(died)} of {len(done.cells)} runs died; the report has the others.\n"
            "Type the same command to try them again."
        )


def _list(done: Any) -> None:
    """Every cell, in order."""
    rows = [
        (cell.model, cell.config.method, cell.config.repair_name, f"{cell.config.ratio:.0%}",
         cell.config.seed, state)
        for cell, state in done.states
    ]  # fmt: skip
    table(
        "Cells", ("model", "method", "repair", "ratio", "seed", "state"), rows, texts=(0, 1, 2, 5)
    )
    left = sum(state in ("to be made", "died") for _, state in done.states)
    say(f"{len(rows)} cells, {left} to be made")


def _show(done: Any) -> None:
    from ..report import comparison_tables

    for title, columns, cells in comparison_tables(done.rows):
        table(title, columns, cells)
    for line in _left_out(done.left_out):
        say(line)
    say(f"{done.out}")


def _left_out(left_out: Iterable[Mapping[str, Any]]) -> Iterator[str]:
    """A line for each model, method and ratio that made no row, with its seeds."""
    seeds: dict[tuple[str, ...], list[str]] = {}
    for one in left_out:
        what = "died" if one["died"] else "refused"
        repair = "" if one["repair"] == "none" else f" + {one['repair']}"
        cell = f"{one['model']}, {one['method']}{repair} at {one['ratio']:g}"
        why = one_line(one["why"].splitlines()[0])
        seeds.setdefault((what, cell, why), []).append(str(one["seed"]))
    for (what, cell, why), own in seeds.items():
        yield f"{what}: {cell}, seed {', '.join(own)}: {why}"
