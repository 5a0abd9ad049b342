"""Entry point: commands, and errors as one or two lines with exit code 2."""

import errno
import os
import signal
import sys
import warnings
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import click

from ..errors import SecateurError
from .looking import convert_command, discover_command, evaluate_command, inspect_command
from .pruning import apply_command, compare_command, prune_command
from .recover import recover_command

# A full disk behind a redirection, a reader that went away, a terminal that was closed.
_UNHEARD = (errno.EPIPE, errno.ENOSPC, errno.EIO)

HELP = """Prune whole attention heads and MLP channels out of a decoder LLM.

The result is a Hugging Face checkpoint folder with fewer parameters that loads.

\b
Prune a fifth of the decoder's linears away, with your own text for calibration:
  secateur prune path/to/model --method flap --ratio 0.2 --calibration text.txt --out small/

\b
Look before you cut, edit the plan, apply it:
  secateur prune path/to/model --ratio 0.2 --dry-run --out plan/
  secateur apply plan/plan.json path/to/model --out small/

\b
Bring most of the quality back by a short training:
  secateur recover small/ --with distil --data text.txt --out better/

\b
Measure and look:
  secateur evaluate small/ --text heldout.txt
  secateur inspect small/
  secateur discover path/to/model

\b
Compare methods, your own among them:
  secateur compare path/to/model --methods flap,hywia --ratios 0.2,0.5 --out compared/
  secateur prune path/to/model --use my_score.py --method my-score --out small/

\b
Write Baichuan-7B as the llama that it is:
  secateur convert path/to/baichuan --out llama/

\b
In Python:
  import secateur
  model = secateur.load("small/")
"""


@click.group(help=HELP, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="secateur")
def cli() -> None:
    """Hold the commands."""


for _command in (
    prune_command,
    apply_command,
    recover_command,
    compare_command,
    evaluate_command,
    inspect_command,
    convert_command,
    discover_command,
):
    cli.add_command(_command)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit: 0 done, 2 bad input, 130 interrupted."""
    for one in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(one) is signal.SIG_DFL:  # nohup ignores a closed terminal
            signal.signal(one, _terminate)
    warnings.simplefilter("ignore")
    code = run(arguments)
    try:
        sys.stdout.flush()
    except OSError as error:
        code = _unheard(error.strerror)
    sys.exit(code)


def run(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    try:
        cli.main(args=arguments, prog_name="secateur", standalone_mode=False)
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message())
        return 0
    except click.UsageError as error:
        where = error.ctx.command_path if error.ctx else "secateur"
        click.echo(f"Error: {error.format_message()}\nType: {where} --help", err=True)
        return 2
    except SecateurError as error:
        click.echo(f"Error: {error}", err=True)
        return 2
    except (click.Abort, KeyboardInterrupt) as interruption:
        kept = str(interruption.__cause__ or "")  # what a command has to say of it
        with suppress(OSError):  # a closed terminal
            click.echo(f"Interrupted; {kept or 'nothing was left behind'}.", err=True)
        return 130
    except SystemExit:  # how rich ends where nobody reads on
        return _unheard(os.strerror(errno.EPIPE))
    except OSError as error:
        if error.filename is not None or error.errno not in _UNHEARD:
            raise
        return _unheard(error.strerror)
    return 0


def _unheard(reason: str | None) -> int:
    """Standard output takes nothing: say so in one line, and keep Python from trying again."""
    with suppress(OSError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    with suppress(OSError):
        click.echo(f"Error: Cannot write to standard output: {reason}.", err=True)
    return 2


def _terminate(signum: int, frame: Any) -> None:
    raise KeyboardInterrupt
