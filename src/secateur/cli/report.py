"""The command that draws a report again."""

from pathlib import Path

import click

from .command import Command
from .screen import Screen, say


@click.command(
    "report",
    cls=Command,
    help="""Draw DIR/report.html again from DIR/report.json, which every run writes.

\b
Example:
  pip install "secateur[report]"
  secateur report small/

Without that extra, the page has tables and no interactive plots.
""",
)
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
def report_command(folder: Path) -> None:
    """Draw a report."""
    screen = Screen(reading=False)
    from ..pipeline import redraw
    from ..report import plotting_library

    page = redraw(folder)
    if plotting_library() is None:
        screen.note('plots need the library for them; type: pip install "secateur[report]"')
    say(str(page))
