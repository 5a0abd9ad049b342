"""Options that several commands have, and what they all do first."""

from pathlib import Path

import click

OUT = click.option(
    "--out", type=click.Path(path_type=Path), default=None, metavar="DIR", help="Folder to write"
)
FORCE = click.option("--force", is_flag=True, help="Replace the folder --out if it exists")
JSON = click.option("--json", "as_json", is_flag=True, help="One JSON object on standard output")


def quiet_transformers() -> None:
    """Its own bars and notices would run through ours."""
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
