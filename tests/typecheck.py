"""The run-time checker of the tests: an int is a float, as PEP 484 has it."""

import inspect
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from beartype import BeartypeConf, beartype

_check = beartype(conf=BeartypeConf(is_pep484_tower=True))
_of_locals: dict[tuple[str, str], Any] = {}


def checked(function: Any) -> Any:
    """The function with its signature checked.

    What jaxtyping hands over has a signature and no body: that of a local function is the same
    however often it is defined, and is made once.
    """
    name = getattr(function, "__qualname__", "")
    if "<locals>" not in name:
        return _check(function)
    key = (f"{function.__module__}.{name}", str(inspect.signature(function)))
    if key not in _of_locals:
        _of_locals[key] = _check(function)
    return _of_locals[key]


def shaped_modules() -> list[str]:
    """The modules whose signatures state shapes; types alone are mypy's, and cost no test time."""
    spec = find_spec("secateur")
    assert spec is not None
    assert spec.origin is not None
    package = Path(spec.origin).parent
    return [
        ".".join(("secateur", *file.relative_to(package).with_suffix("").parts))
        for file in sorted(package.rglob("*.py"))
        if "from jaxtyping import" in file.read_text(encoding="utf-8")
    ]
