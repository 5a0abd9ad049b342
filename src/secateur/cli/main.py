"""Entry point: commands, and errors as one or two lines with exit code 2."""

import errno
import os
import signal
import sys
import traceback
import warnings
from collections.abc import Sequence
from contextlib import suppress
from importlib import import_module
from typing import Any

import click

from ..arguments import refusal
from ..errors import SecateurError
from ..launched import launched
from ..shown import one_line
from .large_pages import ask_for_large_pages
from .screen import close_screens, count_from, hush, say
from .sharing import ASKS_HELP, sharing
from .threads import let_threads_sleep_beside_others

# A full disk behind a redirection, a reader that went away, a terminal that was closed.
_UNHEARD = (errno.EPIPE, errno.ENOSPC, errno.EIO)

HELP = """Prune whole attention heads and MLP channels out of a decoder LLM.

The result is a Hugging Face checkpoint folder with fewer parameters that loads.

\b
Prune a fifth of the decoder's linears away, calibrated on your own text:
  secateur prune path/to/model --ratio 0.2 --calibration text.txt --out small/

\b
Look before you cut, edit the plan, apply it:
  secateur prune path/to/model --ratio 0.2 --dry-run --out plan/
  secateur apply plan/plan.json path/to/model --out small/

\b
Bring most of the quality back by a short training:
  secateur recover small/ --recipe distil --data text.txt --out better/

\b
Measure and look:
  secateur evaluate small/ --evaluate heldout.txt
  secateur bench small/ --against path/to/model
  secateur inspect small/
  secateur discover path/to/model

\b
Compare methods, your own among them:
  secateur compare path/to/model --methods flap,hywia --ratios 0.2,0.5 --out cmp/
  secateur prune path/to/model --use my_score.py --method my-score --out small/
  secateur sweep sweep.toml --out swept/

\b
Write Baichuan-7B as the llama that it is:
  secateur convert path/to/baichuan --out llama/

\b
Run it elsewhere:
  secateur export small/ --to gguf --out gguf/

\b
In Python:
  import secateur
  model = secateur.load("small/")

docs/glossary.md explains the words.
"""


_TRACEBACK = "--traceback"


# Where each command is, and what it is for. Those of prune take two seconds to import.
_COMMANDS = {
    "prune": ("pruning", "Prune a model into a smaller folder."),
    "recover": ("recover", "Train a pruned folder a little; most of the quality comes back."),
    "evaluate": ("evaluate", "How good a model is: perplexity, tasks, what it writes."),
    "compare": ("pruning", "Compare methods on one model."),
    "sweep": ("sweeping", "Compare methods, ratios and seeds on several models."),
    "bench": ("benching", "Time, memory and widths of a model, beside another one."),
    "apply": ("pruning", "Cut a model by a plan.json."),
    "inspect": ("looking", "Show what a folder or plan holds."),
    "discover": ("looking", "Show what in a model is coupled."),
    "store": ("storing", "List or clean the passes that --store keeps."),
    "report": ("report", "Draw the report of a folder again."),
    "export": ("exporting", "Write a model for the engine that is to run it: GGUF and others."),
    "convert": ("looking", "Write a model in floating point, in the layout of its stock class."),
}
# Those that read a model before anything can be counted.
_READING = ("prune", "recover", "evaluate", "compare", "bench", "apply", "convert", "export")


class _Commands(click.Group):
    """Commands that are imported when they are called."""

    def list_commands(self, ctx: click.Context | None) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context | None, cmd_name: str) -> click.Command | None:
        if cmd_name in _COMMANDS and cmd_name not in self.commands:
            module = import_module(f".{_COMMANDS[cmd_name][0]}", __package__)
            self.add_command(getattr(module, f"{cmd_name}_command"))
        return self.commands.get(cmd_name)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, about) for name, (_, about) in _COMMANDS.items()])


@click.group(cls=_Commands, help=HELP, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="secateur")
@click.option(
    _TRACEBACK, is_flag=True, expose_value=False, help="Show where in secateur a bug happened"
)
def cli() -> None:
    """Hold the commands."""


def main(arguments: Sequence[str] | None = None, *, started: float | None = None) -> None:
    """Run the command line and exit: 0 done, 2 bad input, 130 interrupted, 1 a bug of ours.

    `started` is when the process began, of time.monotonic.
    """
    for one in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(one) is signal.SIG_DFL:  # nohup ignores a closed terminal
            signal.signal(one, _terminate)
    warnings.simplefilter("ignore")
    if launched().index:  # the first of several processes speaks for all
        hush()
        sys.stdout = open(os.devnull, "w")  # noqa: PTH123, SIM115 - for as long as it runs
    if started is not None:
        words = sys.argv[1:] if arguments is None else arguments
        asks_help = any(word in ASKS_HELP for word in words)
        reads = not asks_help and next(iter(words), None) in _READING
        count_from(started, reads=reads)
        if reads:
            let_threads_sleep_beside_others()
            ask_for_large_pages()
    code = run(arguments)
    try:
        sys.stdout.flush()
    except OSError as error:
        code = _unheard(error.strerror)
    if launched().count > 1:
        # meshes of a divided model are cached by torch: threads of the group would be there while
        # the interpreter is taken down, which sometimes ends in an abort
        with suppress(OSError):
            sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


def run(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    own = [word for word in words if word != _TRACEBACK]  # wherever it stands
    try:
        with sharing(own):
            cli.main(args=own, prog_name="secateur", standalone_mode=False)
    except click.exceptions.NoArgsIsHelpError as error:
        say(error.format_message())
        return 0
    except click.UsageError as error:
        where = error.ctx.command_path if error.ctx else "secateur"
        say(f"Error: {error.format_message()}\nType: {where} --help", error=True)
        return 2
    except SecateurError as error:
        say(f"Error: {error}", error=True)
        return 2
    except (click.Abort, KeyboardInterrupt) as interruption:
        kept = str(interruption.__cause__ or "")  # what a command has to say of it
        with suppress(OSError):  # a closed terminal
            say(f"Interrupted; {kept or 'nothing was left behind'}.", error=True)
        return 130
    except SystemExit:  # how rich ends where nobody reads on
        return _unheard(os.strerror(errno.EPIPE))
    except Exception as error:
        if isinstance(error, OSError) and error.filename is None and error.errno in _UNHEARD:
            return _unheard(error.strerror)
        return _unexpected(error, wanted=_TRACEBACK in words)
    finally:
        close_screens()
    return 0


def _unexpected(error: Exception, *, wanted: bool) -> int:
    """What the system refused is said; all else is a bug, and how to report it."""
    said = refusal(error)
    if said is not None:
        say(f"Error: {said}", error=True)
        return 2
    if wanted:
        say("".join(traceback.format_exception(error)), error=True)
    say(
        f"This is a bug in secateur: {type(error).__name__}: {one_line(str(error))[:300]}\n"
        f"Please report it with what the same command says when {_TRACEBACK} is added.",
        error=True,
    )
    return 1


def _unheard(reason: str | None) -> int:
    """Standard output takes nothing: say so in one line, and keep Python from trying again."""
    with suppress(OSError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    with suppress(OSError):
        say(f"Error: Cannot write to standard output: {reason}.", error=True)
    return 2


def _terminate(signum: int, frame: Any) -> None:
    if launched().count > 1:  # it comes again while the first is obeyed
        signal.signal(signum, signal.SIG_IGN)
    raise KeyboardInterrupt
