"""Secateur prunes whole attention heads and MLP channels out of decoder LLMs.

    import secateur
    result = secateur.prune("path/to/model", method="flap", ratio=0.2, out="small/")
    model = secateur.load("small/")

After `import secateur`, `AutoModelForCausalLM.from_pretrained("small/")` loads pruned folders too.
"""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import SecateurError, SecateurWarning

if TYPE_CHECKING:
    from .models import load, open_model
    from .pipeline import Result, apply, compare, evaluate, prune, recover
    from .structure import Plan, Structure

__all__ = [
    "Plan",
    "Result",
    "SecateurError",
    "SecateurWarning",
    "Structure",
    "apply",
    "compare",
    "evaluate",
    "load",
    "open_model",
    "prune",
    "recover",
]

_HOME = {
    "Plan": "structure",
    "Result": "pipeline",
    "Structure": "structure",
    "apply": "pipeline",
    "compare": "pipeline",
    "evaluate": "pipeline",
    "load": "models",
    "open_model": "models",
    "prune": "pipeline",
    "recover": "pipeline",
}


def __getattr__(name: str) -> Any:
    """Import the public names when they are used."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f".{_HOME[name]}", __name__), name)


# Registering imports torch and transformers, four seconds that `secateur --help` need not take:
# the command line registers when it opens a model.
if Path(sys.argv[0] if sys.argv else "").stem not in ("secateur", "-m"):
    from .models import register

    register()
