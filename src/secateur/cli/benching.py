"""The command that says what a model costs to run."""

from typing import Any

import click

from ..config import BenchConfig
from .command import Command
from .options import JSON, quiet_transformers
from .screen import Screen, print_json, say, table
from .settings import settings_options


@click.command(
    "bench",
    cls=Command,
    help="""What MODEL costs to run: parameters, multiply-accumulates, memory, time, widths.

\b
Example:
  secateur bench small/ --against path/to/model
  secateur bench small/ --against path/to/model --batch-sizes 1,8 --contexts 128,2048
  secateur bench small/ --seconds 0

With --against the two models are timed in turns, so that the ratio of their times holds though
the machine does other work. Sizes of GGUF files are estimates from the shapes of the weights, with
what they would be if MLP widths had another --align.
""",
)
@click.argument("model")
@click.option("--against", default=None, metavar="DENSE", help="Model to compare with")
@settings_options(BenchConfig, without=("text_only",))
@JSON
def bench_command(model: str, against: str | None, as_json: bool, **options: Any) -> None:
    """Benchmark a model."""
    screen = Screen()
    from ..pipeline import bench

    quiet_transformers()
    given = {name: value for name, value in options.items() if value is not None}
    found = bench(model, against=against, progress=screen, **given)
    if as_json:
        print_json(found.to_json())
        return
    show(found.numbers)


def show(numbers: dict[str, Any]) -> None:
    """The numbers as tables, and what follows from them."""
    from .. import report

    names = report.names_of(numbers)
    share = ["share"] if len(names) > 1 else []
    table("Size", ("", *names, *share), report.size_rows(numbers))
    if numbers["timed"]:
        table("Time", report.time_columns(numbers), report.time_rows(numbers))
        say(report.machine_line(numbers))
    table(f"Widths of {names[0]}", report.width_columns(numbers), report.width_rows(numbers))
    table("Quantised files", report.gguf_columns(numbers), report.gguf_rows(numbers))
    for sentence in report.findings(numbers):
        say(f"* {sentence}")
