"""Options that several commands have, and what they all do first."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

OUT = click.option(
    "--out", type=click.Path(path_type=Path), default=None, metavar="DIR", help="Folder to write"
)
FORCE = click.option("--force", is_flag=True, help="Replace the folder --out if it exists")
JSON = click.option("--json", "as_json", is_flag=True, help="One JSON object on standard output")

_MERGE_ADAPTER = click.option(
    "--merge-adapter/--no-merge-adapter",
    default=None,
    help="Merge the adapter in the folder into its base",
)
_DEQUANTISE = click.option(
    "--dequantise", is_flag=True, help="Read quantised weights as floating point"
)
TEXT_ONLY = click.option(
    "--text-only", is_flag=True, help="Of a multimodal model, write the text decoder alone"
)


def reading(command: Callable[..., Any]) -> Callable[..., Any]:
    """How a model is read where that is not clear from its files."""
    return _MERGE_ADAPTER(_DEQUANTISE(command))


_STORE = click.option(
    "--store",
    default=None,
    envvar="SECATEUR_STORE",
    metavar="DIR",
    help="Store of passes; default: beside --out",
)
_FRESH = click.option("--fresh", is_flag=True, help="Make every pass anew")


def keeping(command: Callable[..., Any]) -> Callable[..., Any]:
    """Where the passes of a run are kept."""
    return _STORE(_FRESH(command))


_PUSH = click.option(
    "--push-to-hub",
    default=None,
    metavar="OWNER/NAME",
    help="Name on the hub to upload the folder to",
)
_PRIVATE = click.option(
    "--private", is_flag=True, help="Private, if the hub has none of that name yet"
)


def uploading(command: Callable[..., Any]) -> Callable[..., Any]:
    """Where on the hub the folder goes."""
    return _PUSH(_PRIVATE(command))


TRACK = click.option(
    "--track",
    default=None,
    metavar="NAME",
    help="Tracker that draws losses: tensorboard, mlflow, wandb",
)


def quiet_transformers() -> None:
    """Its own bars and notices would run through ours."""
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
