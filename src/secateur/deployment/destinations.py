"""The registry of destinations: by the name of an engine's format, what writes a model in it.

    @destination("gguf", engines="llama.cpp, Ollama, LM Studio", needs=("gguf",))
    def gguf(folder, asked): ...

It gets a temporary folder, which appears whole or not at all, and says what it wrote.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ..errors import SecateurError
from ..export import Form
from ..models import OpenModel
from ..registry import Function, entered

# The characters of a model's name that a file's name takes over.
_PLAIN = frozenset("-_.")
_LONGEST = 100


@dataclass(frozen=True)
class Asked:
    """What is to be written: the model, its tokenizer (None: without), the number format.

    `kind` is one of the destination's own, in small letters, and so is that of embedding and
    `head`, where it is asked for by itself.
    """

    opened: OpenModel
    tokenizer: Any
    kind: str
    head: str | None = None

    @property
    def stem(self) -> str:
        """What files are named by."""
        name = self.opened.name.rpartition("/")[2]
        safe = "".join(c if c.isascii() and (c.isalnum() or c in _PLAIN) else "-" for c in name)
        head = "" if self.head in (None, self.kind) else f"-head-{self.head}"
        return f"{safe.strip('-.')[:_LONGEST] or 'model'}-{self.kind}{head}"


@dataclass(frozen=True)
class Written:
    """The file to hand to the engine, what runs it, and what is worth knowing of it.

    In `run` stands {path} for the file, where it will be. A checkpoint has its `form`; `bare` says
    that the file has all that the engine reads, and no tokenizer is wanted beside it.
    """

    file: str
    run: str
    facts: Mapping[str, Any] = field(default_factory=dict)
    form: Form | None = None
    bare: bool = False


@dataclass(frozen=True)
class Destination:
    """A function that writes; `kinds` are the number formats it takes, `extra` what installs them.

    `heads` are those that embedding and head can have where the rest has another.
    `default` is the format of a model for which none was asked: the first, unless it says
    otherwise. `words` says that the tokenizer goes into the file.
    """

    name: str
    write: Callable[[Path, Asked], Written]
    engines: str
    kinds: tuple[str, ...]
    needs: tuple[str, ...]
    extra: str
    default: Callable[[OpenModel], str]
    words: bool = False
    heads: tuple[str, ...] = ()

    @property
    def summary(self) -> str:
        """The engines, and the number formats."""
        kinds = f"; --type {', '.join(self.kinds)}" if len(self.kinds) > 1 else ""
        return f"{self.engines}{kinds}"

    def check(self) -> None:
        """Make sure that the packages are there.

        Raises:
            SecateurError: one is not.
        """
        missing = [name for name in self.needs if find_spec(name) is None]
        if missing:
            raise SecateurError(
                f"--to {self.name} needs the package {missing[0]}, which is not installed.\n"
                f'Type: pip install "secateur[{self.extra}]"'
            )


DESTINATIONS: dict[str, Destination] = {}


def destination(
    name: str,
    *,
    engines: str,
    kinds: tuple[str, ...] = ("auto",),
    needs: tuple[str, ...] = (),
    extra: str = "deploy",
    default: Callable[[OpenModel], str] | None = None,
    words: bool = False,
    heads: tuple[str, ...] = (),
) -> Callable[[Function], Function]:
    """Register the decorated function as what writes for `engines`."""
    first = default or (lambda opened: kinds[0])

    def made(function: Callable[[Path, Asked], Written], _: tuple[str, ...]) -> Destination:
        return Destination(name, function, engines, kinds, needs, extra, first, words, heads)

    return entered("destination", name, DESTINATIONS, made)
