"""Secateur prunes whole attention heads and MLP channels out of decoder LLMs.

    import secateur
    result = secateur.prune("path/to/model", ratio=0.2, out="small/")
    model = secateur.load("small/")

After `import secateur`, `AutoModelForCausalLM.from_pretrained("small/")` loads pruned folders too.
"""

import sys
from typing import TYPE_CHECKING, Any

from .errors import SecateurError, SecateurWarning

if TYPE_CHECKING:
    from .models import load, open_model
    from .pipeline import (
        Result,
        apply,
        bench,
        compare,
        evaluate,
        export_model,
        inspect,
        prune,
        prune_and_recover,
        read_plan,
        recover,
        sweep,
    )
    from .pipeline.convert import convert
    from .pipeline.discover import discover
    from .structure import Plan, Structure

    __version__: str

__all__ = [
    "Plan",
    "Result",
    "SecateurError",
    "SecateurWarning",
    "Structure",
    "__version__",
    "apply",
    "bench",
    "compare",
    "convert",
    "discover",
    "evaluate",
    "export_model",
    "inspect",
    "load",
    "open_model",
    "prune",
    "prune_and_recover",
    "read_plan",
    "recover",
    "sweep",
]

# Where names are that are not in `pipeline`.
_HOME = {"Plan": "structure", "Structure": "structure", "load": "models", "open_model": "models"}


def __getattr__(name: str) -> Any:
    """Import the public names when they are used."""
    from importlib import import_module, metadata

    if name == "__version__":
        return metadata.version("secateur")
    if name == "pipeline":
        return import_module(".pipeline", __name__)
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_HOME.get(name, 'pipeline')}", __name__), name)


def __dir__() -> list[str]:
    """The public names, whether they have been imported or not."""
    return sorted({*__all__, "pipeline", *(name for name in globals() if name.startswith("__"))})


def _is_program() -> bool:
    """Whether this process is the command line: the program `secateur`, or `python -m secateur`.

    While `-m` looks for its module, sys.argv begins with "-m", and the name of the module stands
    before the rest of it in what Python was called with.
    """
    if "secateur_command" in sys.modules:
        return True
    return sys.argv[:1] == ["-m"] and sys.orig_argv[-len(sys.argv)].removeprefix("-m") in (
        "secateur",
        "secateur.__main__",
    )


# Registering imports torch and transformers, four seconds that `secateur --help` need not take:
# the command line registers when it opens a model.
if not _is_program():
    from .models import register

    register()
