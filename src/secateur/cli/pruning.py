"""The commands that cut: prune, apply, and compare, which cuts and measures."""

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import click

from ..config import (
    NOT_COMPARED,
    OWN,
    PRUNE_GROUPS,
    READING,
    RECIPES,
    PruneConfig,
    displaced,
    read_toml,
    recipes_of,
)
from ..errors import SecateurError
from ..fusion import FUSIONS
from ..importance import IMPORTANCE, REDUCTIONS
from ..methods import EFFORTS, METHODS
from ..paths import expanded
from ..profiles import PROFILES
from ..search import SCALES, SEARCHES
from ..structure import GRANULARITIES
from ..surgery import REPAIRS, TARGETS
from .command import Command
from .options import FORCE, JSON, OUT, TRACK, keeping, quiet_transformers, uploading
from .recover import say_numbers, show_recovery
from .screen import Screen, elapsed, print_json, say, table
from .settings import TEXTS, given_settings, refuse_code, settings_options, texts_of_file
from .sharing import check_shared

_RECOVERIES = {**RECIPES, OWN: "The one that the method's paper ends with."}
_METHODS = "Methods (--method)"
_OF_PLANS = ("repair", "calibration", "field", "samples", "length", "bos", "seed")
_OF_RUNS = (
    "evaluate",
    "evaluate_tokens",
    "prompts",
    "batch",
    "device",
    "dtype",
    "hidden_gib",
    "device_gib",
    "resident",
    "format",
    *READING,
)


@click.command(
    "prune",
    cls=Command,
    groups=PRUNE_GROUPS,
    lists={
        _METHODS: METHODS,
        "Efforts of the method best (--effort)": EFFORTS,
        "Scores (--importance)": IMPORTANCE,
        "Fusions (--fusion)": FUSIONS,
        "Members of a unit make one gradient score by (--members)": REDUCTIONS,
        "Searches (--search)": SEARCHES,
        "Scales (--scale)": SCALES,
        "Repairs (--repair)": REPAIRS,
        "Profiles (--profile)": PROFILES,
        "Targets of refit and mask-tuning (--target)": TARGETS,
        "Units (--granularity)": GRANULARITIES,
        "Recoveries (--recover)": _RECOVERIES,
        "Texts (--calibration, --evaluate)": TEXTS,
    },
    first=(_METHODS,),
    help="""Prune MODEL (a folder or a name on the hub) and write the result to --out.
The calibration text is c4 or what you name, perplexity taken on the rest.

\b
Example:
  secateur prune path/to/model --ratio 0.2 --calibration text.txt --out small/
  secateur prune path/to/model --ratio 0.3 --recover distil --out small/
""",
)
@click.argument("model", required=False)
@OUT
@click.option(
    "--config", type=click.Path(path_type=Path), metavar="FILE", help="Settings: run.toml"
)
@settings_options(PruneConfig)
@click.option("--recover", metavar="NAME", help="Then recoveries: own, distil, distil,groupwise")
@click.option("--minutes", type=float, metavar="X", help="Minutes that --recover may train")
@click.option("--dry-run", is_flag=True, help="The plan alone: --out gets plan.json")
@keeping
@uploading
@TRACK
@FORCE
@JSON
def prune_command(
    model: str | None,
    out: Path | None,
    config: Path | None,
    recover: str | None,
    minutes: float | None,
    dry_run: bool,
    store: str | None,
    fresh: bool,
    push_to_hub: str | None,
    private: bool,
    track: str | None,
    force: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Prune a model."""
    recorded = displaced(read_toml(config), options) if config else {}
    refuse_code(config, recorded, options["use"])
    settings = given_settings(
        PruneConfig,
        options,
        model,
        recorded,
        "secateur prune MODEL --ratio 0.2 --out small/",
    )
    if out is None and not dry_run:
        raise SecateurError("Where to? Add --out DIR (or --dry-run for the plan alone).")
    if minutes is not None and recover is None:
        raise SecateurError("--minutes are those of a recovery.\nAdd --recover distil")
    if track is not None and recover is None:
        raise SecateurError("--track draws the losses of a recovery.\nAdd --recover distil")
    if recover is not None:
        check_shared("prune --recover", False)
        recipes_of(recover)
        if dry_run:
            raise SecateurError("A plan alone is not trained: --dry-run and --recover exclude.")
    screen = Screen()  # before imports of some seconds
    from ..pipeline import prune, prune_and_recover

    for message in texts_of_file(config, recorded, options):
        screen.note(message)
    quiet_transformers()
    how: dict[str, Any] = {
        "store": store,
        "fresh": fresh,
        "push_to_hub": push_to_hub,
        "private": private,
        "force": force,
        "progress": screen,
    }
    if recover is not None:
        assert out is not None, "a run that is not dry has a folder"
        pruned, done = prune_and_recover(
            settings.pop("model"),
            out=out,
            recipe=recover,
            minutes=minutes,
            track=track,
            **how,
            **settings,
        )
        if as_json:
            print_json({**pruned.to_json(), "recovery": done.to_json()})
            return
        _show(pruned, as_json=False, dry_run=False)
        show_recovery(done, as_json=False)
        return
    result = prune(settings.pop("model"), out=out, dry_run=dry_run, **how, **settings)
    _show(result, as_json, dry_run)


@click.command(
    "apply",
    cls=Command,
    groups=PRUNE_GROUPS,
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
@OUT
@settings_options(PruneConfig, only=_OF_PLANS, default="the plan's")
@settings_options(PruneConfig, only=_OF_RUNS)
@keeping
@uploading
@FORCE
@JSON
def apply_command(
    plan: Path, model: str, out: Path | None, force: bool, as_json: bool, **options: Any
) -> None:
    """Apply a plan."""
    if out is None:
        raise SecateurError("Where to? Add --out DIR.")
    screen = Screen()
    from ..pipeline import apply, read_plan

    given = {name: value for name, value in options.items() if value is not None}
    read = read_plan(plan)
    quiet_transformers()
    result = apply(read, model, out=out, force=force, progress=screen, **given)
    _show(result, as_json, dry_run=False)


@click.command(
    "compare",
    cls=Command,
    groups=PRUNE_GROUPS,
    lists={_METHODS: METHODS, "Repairs (--repairs)": REPAIRS},
    first=(_METHODS,),
    help="""Prune MODEL by each method at each ratio, on the same calibration tokens, and measure.

\b
Example:
  secateur compare path/to/model --methods flap,hywia --ratios 0.2,0.5 --out cmp/

No pruned model is written: --out gets the table as comparison.json and .csv, and report.html.
What other names stand for is in the lists of: secateur prune --help-all
""",
)
@click.argument("model")
@click.option("--methods", required=True, metavar="A,B", help="Methods")
@click.option("--ratios", default="0.2,0.5", metavar="X,Y", help="Ratios to remove  [0.2,0.5]")
@click.option("--repairs", default="", metavar="A,B", help="Repairs; default: each method's own")
@OUT
@settings_options(
    PruneConfig,
    without=("method", "ratio", "repair", *NOT_COMPARED),
)
@keeping
@TRACK
@FORCE
@JSON
def compare_command(
    model: str,
    methods: str,
    ratios: str,
    repairs: str,
    out: Path | None,
    store: str | None,
    fresh: bool,
    track: str | None,
    force: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Compare methods."""
    given = {name: value for name, value in options.items() if value is not None}
    shares = _ratios(ratios)
    screen = Screen()
    from ..checkpoint import new_folder
    from ..pipeline import Comparison, compare, keeping_passes
    from ..pipeline.tracking import logs_beside, track_of
    from ..report import comparison_tables, write_comparison

    quiet_transformers()
    logs = logs_beside(None if out is None else expanded(out, "--out"))
    track_of(track, logs)  # what it lacks shows before anything is made
    found = Comparison()
    with (
        new_folder(out, force=force) if out else nullcontext() as folder,
        keeping_passes(store, folder, out, fresh=fresh) as kept,
    ):
        rows = compare(
            model,
            methods=_names(methods),
            ratios=shares,
            repairs=_names(repairs),
            store=kept,
            progress=screen,
            each=found.add,
            track=track,
            logs=logs,
            **given,
        )
        if as_json:
            print_json({"model": model, "rows": rows})
        else:  # whatever becomes of the files
            for title, columns, cells in comparison_tables(rows):
                table(title, columns, cells)
        if folder is not None:
            write_comparison(folder, rows)
            found.write_report(folder, rows)
    if out and not as_json:
        say(f"{out}")


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


def _ratios(text: str) -> list[float]:
    try:
        return [float(part) for part in text.split(",")]
    except ValueError as error:
        raise SecateurError(f"--ratios {text!r} is not a list of shares like 0.2,0.5.") from error


def _show(result: Any, as_json: bool, dry_run: bool) -> None:
    from ..report import CONTEST_COLUMNS, contest_rows, layer_rows, number_rows

    if as_json:
        print_json(result.to_json())
        return
    columns = ("layer", "attention heads (KV)", "MLP width")
    table("What stays", columns, layer_rows(result.structure, result.plan))
    if tried := contest_rows(result.numbers):
        table("What was tried, by how far it is from the dense model", CONTEST_COLUMNS, tried)
    table("Numbers", ("", "before", "after"), number_rows(result.numbers))
    say_numbers(result.numbers)
    where = result.out if result.out else "nothing written"
    if dry_run and result.out:
        where = result.out / "plan.json"
    say(f"{where}  ({elapsed():.1f} s)")
