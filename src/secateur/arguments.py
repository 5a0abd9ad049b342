"""What every public function does first and last: its arguments checked, its errors in our words.

    @public(model=a_model, out=a_place, force=a_flag)
    def prune(model, *, out=None, force=False, **settings): ...

Settings are not listed: pydantic checks those.
"""

import difflib
import errno
import functools
import inspect
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from os import PathLike
from typing import Any, ParamSpec, TypeVar

from .errors import ArgumentError, SecateurError
from .paths import expanded, resolved, typed_path
from .progress import Logged, Progress

P = ParamSpec("P")
R = TypeVar("R")

# Held by the thread whose call of a public function is running; such calls may be nested.
_RUNNING = threading.RLock()

# Takes the name of an argument and its value; gives the value to pass on.
Check = Callable[[str, Any], Any]


def public(**checks: Check) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Check the arguments named; say what the system refuses as a `SecateurError`.

    Calls from several threads of a process take turns.
    """

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        signature = inspect.signature(function)

        @functools.wraps(function)
        def checked(*args: P.args, **kwargs: P.kwargs) -> R:
            bound = _bound(function.__name__, signature, args, kwargs)
            for name, check in checks.items():
                bound.arguments[name] = check(name, bound.arguments[name])
            own = bound.arguments.get("progress")
            try:
                with _one_at_a_time(own), _arithmetic_of_ours():
                    return function(*bound.args, **bound.kwargs)
            except BaseException as error:  # a panic in Rust is no Exception
                said = refusal(error)
                if said is None:
                    raise
                raise said from error
            finally:
                if isinstance(own, Logged):
                    own.close()

        return checked

    return decorate


@contextmanager
def _one_at_a_time(told: Any) -> Iterator[None]:
    """Wait for a call that another thread of this process has made.

    While transformers builds a model, the model's dtype is torch's default for all threads. Several
    ranks do not wait: they meet in the midst of their calls.
    """
    from .ranks import this  # brings torch

    if this().several:
        yield
        return
    if not _RUNNING.acquire(blocking=False):
        if isinstance(told, Progress):
            told.note("waiting: another thread of this process is at it, and calls take turns")
        _RUNNING.acquire()
    try:
        yield
    finally:
        _RUNNING.release()


@contextmanager
def others_go_on() -> Iterator[None]:
    """While entered, calls from other threads are let in: those that this one waits for."""
    try:
        _RUNNING.release()
    except RuntimeError:  # this thread has not taken its turn
        yield
        return
    try:
        yield
    finally:
        _RUNNING.acquire()


@contextmanager
def _arithmetic_of_ours() -> Iterator[None]:
    """Leave a caller's inference mode and autocast for a while: gradients are taken, in `dtype`."""
    torch: Any = sys.modules.get("torch")
    if torch is None:  # then nobody has entered either
        yield
        return
    with ExitStack() as left:
        if torch.is_inference_mode_enabled():
            left.enter_context(torch.inference_mode(False))
        for kind in ("cpu", "cuda"):
            if torch.is_autocast_enabled(kind):
                left.enter_context(torch.autocast(kind, enabled=False))
        yield


def renamed(**names: str) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """For one version, take arguments by the names that they had (`old="new"`), with a note."""

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        @functools.wraps(function)
        def taken(*args: P.args, **kwargs: P.kwargs) -> R:
            for old in names.keys() & kwargs:
                kwargs["progress"] = own = a_progress("progress", kwargs.get("progress"))
                own.note(f"{old} is now {names[old]}")
                kwargs[names[old]] = kwargs.pop(old)
            return function(*args, **kwargs)

        return taken

    return decorate


def _bound(
    name: str, signature: inspect.Signature, args: Sequence[Any], kwargs: dict[str, Any]
) -> inspect.BoundArguments:
    try:
        bound = signature.bind(*args, **kwargs)
    except TypeError as error:
        unknown = [key for key in kwargs if key not in signature.parameters]
        near = difflib.get_close_matches(unknown[0], signature.parameters) if unknown else []
        meant = f" Did you mean {near[0]!r}?" if near else ""
        raise ArgumentError(f"{name}{_listed(signature)}: {error}.{meant}") from error
    bound.apply_defaults()
    return bound


def _listed(signature: inspect.Signature) -> str:
    names = [
        f"**{name}" if parameter.kind is parameter.VAR_KEYWORD else name
        for name, parameter in signature.parameters.items()
    ]
    return f"({', '.join(names)})"


def refusal(error: BaseException) -> SecateurError | None:
    """What the system refused, as an error for users; None for errors of another kind."""
    if isinstance(error, OSError) and error.errno is not None:
        if error.errno == errno.ENOSPC:
            return SecateurError(f"No space left{_where(error)}. Free some and try again.")
        return SecateurError(f"The system refuses: {error.strerror}{_where(error)}.")
    if is_panic(error):
        return SecateurError(
            f"A library broke off ({shortened(str(error))}): a file of the model or of its"
            " tokenizer is damaged.\nDownload or export the model again."
        )
    if isinstance(error, MemoryError) or _out_of_memory(error):
        return SecateurError(
            "There is not enough memory for this.\nTry a smaller --batch, --length or --samples, or"
            " a machine with more."
        )
    return None


def is_panic(error: BaseException) -> bool:
    """Whether tokenizers or safetensors, which are written in Rust, gave up."""
    return type(error).__name__ == "PanicException"


def _where(error: OSError) -> str:
    return f" ({error.filename})" if error.filename is not None else ""


def _out_of_memory(error: BaseException) -> bool:
    """Torch raises a class of its own for a GPU, and a bare RuntimeError for a CPU."""
    return type(error).__name__ == "OutOfMemoryError" or "can't allocate memory" in str(error)


def of_kind(value: object) -> str:
    """What a value is, in a few words for an error."""
    if isinstance(value, type):
        return f"the class {value.__name__}"
    text = shortened(value)
    short = text if 0 < len(text) <= 60 and "\n" not in text else "one"
    return f"{short} ({type(value).__name__})"


def shortened(value: object) -> str:
    """What Python shows of a value, if that is not too long."""
    try:
        text = repr(value)
    except Exception:  # objects of others, and numbers of too many digits
        return f"one {type(value).__name__}"
    return text if len(text) <= 200 else f"{text[:150]}...{text[-20:]}"


def _a(what: str, fits: Callable[[Any], bool]) -> Check:
    """A value that `fits`; errors say that it must be `what`."""

    def check(name: str, value: Any) -> Any:
        if not fits(value):
            raise ArgumentError(f"{name} must be {what}, not {of_kind(value)}.")
        return value

    return check


def _is_path(value: object) -> bool:
    return isinstance(value, str | PathLike)


def _typed(what: str) -> Check:
    """A path of a file or folder, as it was typed: "./x" is no name on the hub."""
    path = _a(what, _is_path)

    def check(name: str, value: Any) -> Any:
        typed_path(path(name, value), name)
        return value

    return check


a_word = _a("a text", lambda value: isinstance(value, str))
a_flag = _a("True or False", lambda value: isinstance(value, bool))
a_function = _a("a function", callable)
a_whole = _a("a whole number", lambda one: isinstance(one, int) and not isinstance(one, bool))
a_number = _a("a number", lambda one: isinstance(one, int | float) and not isinstance(one, bool))
a_place = _typed("a path")
a_folder_or_name = _typed("a folder or a name on the hub")
_no_module = _typed("a folder, a name on the hub or a transformers model")


def an_output(name: str, value: Any) -> Any:
    """A path to write to, `~` expanded; whether it can be written shows when it is."""
    path = expanded(_a("a path", _is_path)(name, value), name)
    resolved(path)
    return path


def a_model(name: str, value: Any) -> Any:
    """A folder, a name on the hub, or a module (of which `open_model` says what it must be)."""
    from torch import nn

    return value if isinstance(value, nn.Module) else _no_module(name, value)


def a_text(name: str, value: Any) -> Any:
    """A text by its name or path, or a text itself; all are looked at where they are read.

    `None`, numbers and functions can be neither.
    """
    if value is None or isinstance(value, bool | int | float) or callable(value):
        raise ArgumentError(
            f"{name} must name a text (a file, a folder, wikitext2...) or be one (strings, rows,"
            f" tokens), not {of_kind(value)}."
        )
    if not isinstance(value, PathLike):
        return value
    typed_path(value, name)
    return str(value)


def a_tokenizer(name: str, value: Any) -> Any:
    """A tokenizer of transformers, or what can be called like one."""
    fits = callable(value) and hasattr(value, "eos_token_id") and not isinstance(value, type)
    if value is not None and not fits:
        raise ArgumentError(
            f"{name} must be a tokenizer, not {of_kind(value)}.\n"
            "Type: AutoTokenizer.from_pretrained(FOLDER)"
        )
    return value


def a_progress(name: str, value: Any) -> Progress:
    """What shows the course of long work; by default the logger `secateur` does."""
    if value is None:
        return Logged()
    if isinstance(value, type) or not isinstance(value, Progress):
        raise ArgumentError(
            f"{name} must have the methods of secateur.progress.Progress (track, status, note); it"
            f" is {of_kind(value)}."
        )
    return value


def a_dtype(name: str, value: Any) -> str:
    """The name of a dtype, or torch's own."""
    from torch import dtype

    if isinstance(value, dtype):
        return str(value).removeprefix("torch.")
    return a_word(name, value)


def a_device(name: str, value: Any) -> str:
    """The name of a device, or torch's own."""
    from torch import device

    return str(value) if isinstance(value, device) else a_word(name, value)


def a_count(least: int) -> Check:
    """A whole number that is not below `least`."""
    enough = _a(f"{least} or more", lambda value: value >= least)
    return lambda name, value: enough(name, a_whole(name, value))


def some(check: Check) -> Check:
    """One value, or a sequence of them."""

    def each(name: str, value: Any) -> Any:
        if isinstance(value, Sequence) and not isinstance(value, str | bytes):
            return [check(f"each of {name}", one) for one in value]
        return [check(name, value)]

    return each


def optional(check: Check) -> Check:
    """None, or what `check` takes."""
    return lambda name, value: None if value is None else check(name, value)
