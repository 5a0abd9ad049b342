"""Methods by name: a score, a search and a repair that belong together.

A score, fusion or search of one's own needs no change here: `use("my_score.py")` runs a file with
decorated functions, and each score in it becomes a method of its own name.
"""

import importlib.util
import itertools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .errors import SecateurError
from .fusion import FUSIONS
from .importance import IMPORTANCE
from .paths import typed_path
from .registry import OWN
from .search import SEARCHES


@dataclass(frozen=True, slots=True)
class Method:
    """A named recipe; each part can be overridden by name.

    A recipe has a score (`importance`) or a `fusion` of two. `untouched` are the shares of layers
    at the start and at the end that lose nothing unless --layers says otherwise. `recovery` is the
    training that the paper ends with.
    """

    name: str
    summary: str
    importance: str | None
    search: str
    repair: str
    paper: str
    fusion: str | None = None
    untouched: tuple[float, float] = (0.0, 0.0)
    recovery: str | None = None


@dataclass(frozen=True, slots=True)
class Parts:
    """A score, a search and a repair: what the method `best` chooses between."""

    importance: str
    search: str
    repair: str = "refit"


@dataclass(frozen=True, slots=True)
class Effort:
    """What the method `best` tries; with one set of parts there is nothing to choose."""

    summary: str
    tried: tuple[Parts, ...]


_GOOD = (
    Parts("obs-loss", "tempered"),
    Parts("obs-loss", "global"),
    Parts("obs-loss", "uniform"),
    Parts("wifv", "AL-AM"),
    Parts("magnitude-l2", "uniform"),
)

# What `best` falls back on where none of what it tries goes with the units that may go.
FALLBACKS = (
    Parts("obs-loss", "uniform", "refit"),
    Parts("obs-loss", "uniform", "refit-no-bias"),
    Parts("magnitude-l2", "uniform", "refit-no-bias"),
    Parts("obs-loss", "global", "none"),
    Parts("obs-loss", "uniform", "none"),
    Parts("magnitude-l2", "AL-AM", "none"),
)
BEST = "best"
EFFORTS = {
    "fast": Effort("One score, search and repair: what wins most often.", _GOOD[:1]),
    "good": Effort("Several scores and searches, judged by KL to the dense model.", _GOOD),
    "max": Effort(
        "The same, and searches by that KL.",
        (*_GOOD, Parts("obs-loss", "gates"), Parts("obs-loss", "kl")),
    ),
}

# LLM-Pruner's layers 4 to 29 of 32.
_MIDDLE = (4 / 32, 2 / 32)


METHODS = {
    method.name: method
    for method in (
        Method(
            BEST,
            "What is nearest to the dense model on calibration text, of what --effort tries.",
            "obs-loss",
            "tempered",
            "refit",
            "https://arxiv.org/abs/2312.17244",
        ),
        Method(
            "obs-loss",
            "What a unit costs in loss once the rest is fitted; dearer where much has gone; refit.",
            "obs-loss",
            "tempered",
            "refit",
            "https://arxiv.org/abs/2312.17244",
        ),
        Method(
            "flap",
            "Fluctuation of inputs, one global ranking, lost means kept as a bias.",
            "wifv",
            "AL-AM",
            "bias",
            "https://arxiv.org/abs/2312.11983",
        ),
        Method(
            "wanda-sp",
            "Weight magnitude times input norm, the same share of each layer.",
            "wanda-sp",
            "uniform",
            "none",
            "https://arxiv.org/abs/2306.11695",
        ),
        Method(
            "magnitude",
            "Squared weights (L2), the same share of each layer; no data.",
            "magnitude-l2",
            "uniform",
            "none",
            "https://arxiv.org/abs/2305.11627",
        ),
        Method(
            "magnitude-l1",
            "Weight magnitude (L1), the same share of each layer; no data.",
            "magnitude-l1",
            "uniform",
            "none",
            "https://arxiv.org/abs/2305.11627",
        ),
        Method(
            "llm-pruner",
            "Weight times gradient, element by element; the same share of the middle layers.",
            "taylor-first",
            "uniform",
            "none",
            "https://arxiv.org/abs/2305.11627",
            untouched=_MIDDLE,
            recovery="lora",
        ),
        Method(
            "hywia",
            "Coarse and fine gradient scores, blended by layer; middle layers; least squares.",
            None,
            "uniform",
            "refit",
            "https://arxiv.org/abs/2403.10799",
            fusion="evidence",
            untouched=_MIDDLE,
            recovery="lora",
        ),
        Method(
            "saap",
            "Coarse and fine gradient scores by their noise; unstable middle layers lose most.",
            None,
            "two_stage",
            "none",
            "https://arxiv.org/abs/2412.15127",
            fusion="homoscedastic",
            untouched=_MIDDLE,
            recovery="groupwise",
        ),
        Method(
            "random",
            "A seeded draw, the same share of each layer: what others must beat.",
            "random",
            "uniform",
            "none",
            "https://arxiv.org/abs/2305.11627",
        ),
    )
}


# What a file of one's own may add to.
_REGISTRIES: tuple[dict[str, Any], ...] = (IMPORTANCE, FUSIONS, SEARCHES, METHODS)


def use(path: str | Path) -> tuple[str, ...]:
    """Run a file of one's own that registers scores, fusions, searches. Gives their names.

    The scores become methods. Their search is `uniform`, which compares no layer with another,
    their repair `none`; both can be overridden.

    Raises:
        SecateurError: no such file, it fails, or it registers nothing; nothing is registered then.
    """
    path = typed_path(path, "--use")
    before = [dict(known) for known in _REGISTRIES]
    spec = importlib.util.spec_from_file_location(f"{OWN}{path.stem}", path)
    if not path.is_file() or spec is None or spec.loader is None:
        raise SecateurError(f"--use {path}: expected a Python file with a decorated score.")
    try:
        spec.loader.exec_module(importlib.util.module_from_spec(spec))
    except (Exception, SystemExit) as error:  # whatever the file does
        for known, was in zip(_REGISTRIES, before, strict=True):
            known.clear()
            known.update(was)
        raise SecateurError(f"--use {path} fails: {type(error).__name__}: {error}") from error
    scores, *others = (
        [name for name, one in known.items() if was.get(name) is not one]
        for known, was in zip(_REGISTRIES, before, strict=True)
    )
    found = tuple(dict.fromkeys((*scores, *itertools.chain(*others))))
    if not found:
        raise SecateurError(
            f"--use {path} registers no score, fusion or search.\nDecorate a function with"
            ' @importance("my-score", paper="...") of secateur.importance.'
        )
    for name in scores:
        one = IMPORTANCE[name]
        METHODS[name] = Method(name, one.summary, name, "uniform", "none", one.paper)
    return found
