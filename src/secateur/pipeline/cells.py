"""The cells of a sweep: one run each, known by all that its numbers depend on."""

import hashlib
import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..config import PruneConfig, SweepConfig, make_config
from ..export import without_place
from ..models import multiplies_bfloat16, resolve_device
from ..paths import typed_path
from .record import versions

# Settings that may name a file or a folder, which may change under its name.
_PLACES = ("model", "calibration", "evaluate", "use")
_LONGEST = 60


@dataclass(frozen=True)
class Cell:
    """A model, method, ratio, repair and seed, with the settings of all; `model` is its name.

    The `key` is a hash of the settings, of size and time of the files that they name, of the
    versions that compute, and of what decides the dtype: of other numbers it would be another.
    """

    model: str
    config: PruneConfig
    key: str

    @property
    def about(self) -> str:
        """The cell in a few words."""
        own = self.config
        repair = f" + {own.repair}" if own.repair else ""
        return f"{self.model}: {own.method}{repair} at {own.ratio:g}, seed {own.seed}"

    @property
    def file(self) -> str:
        """The name of the file that holds its row: for people, and the key for us."""
        own = self.config
        words = (self.model, own.method, f"{own.ratio:g}", own.repair_name, f"seed{own.seed}")
        readable = re.sub(r"[^\w.+-]", "_", "-".join(words))[:_LONGEST].lstrip(".")
        return f"{readable}-{self.key[:16]}.json"

    def to_json(self) -> dict[str, Any]:
        """What differs from cell to cell."""
        own = self.config
        return {
            "model": self.model,
            "method": own.method,
            "ratio": own.ratio,
            "repair": own.repair_name,
            "seed": own.seed,
        }


def cells_of(sweep: SweepConfig) -> list[Cell]:
    """All cells, models first, then methods, ratios, repairs and seeds, as they are listed.

    Raises:
        SecateurError: settings that no run takes.
    """
    configs = [
        make_config(
            **sweep.settings,
            model=model,
            method=method,
            ratio=ratio,
            repair=repair,
            seed=seed,
        )
        for model in sweep.models
        for method in sweep.methods
        for ratio in sweep.ratios
        for repair in (sweep.repairs or (None,))
        for seed in sweep.seeds
    ]
    names = dict(zip(sweep.models, names_of(sweep.models), strict=True))
    stamps: dict[str, Any] = {}
    for config in configs:
        for place in _PLACES:
            name = getattr(config, place)
            if name is not None and name not in stamps:
                stamps[name] = _stamp(name)
    return [Cell(names[one.model], one, _key(one, stamps)) for one in configs]


def names_of(models: Sequence[str]) -> list[str]:
    """What models are called on a page: without their places; equal names are numbered."""
    short = [str(without_place(model)) for model in models]
    return [
        name if short.count(name) == 1 else f"{name} ({short[: place + 1].count(name)})"
        for place, name in enumerate(short)
    ]


def together(cells: Iterable[Cell]) -> list[list[Cell]]:
    """The cells by model and seed: these read the same windows, and share the passes over them."""
    found: dict[tuple[str, int], list[Cell]] = {}
    for cell in cells:
        found.setdefault((cell.config.model, cell.config.seed), []).append(cell)
    return list(found.values())


def _key(config: PruneConfig, stamps: dict[str, Any]) -> str:
    named = {name: stamps[getattr(config, name)] for name in _PLACES if getattr(config, name)}
    about: dict[str, Any] = {
        "settings": config.model_dump(),
        "files": named,
        "versions": versions(),
    }
    if config.dtype == "auto" and config.device in ("auto", "cpu"):
        about["bf16"] = multiplies_bfloat16(resolve_device(config.device))
    return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()


def _stamp(name: str) -> list[Any]:
    """Names, sizes and times of the files at a place; nothing of what is no place here."""
    place = typed_path(name)
    if not place.exists():
        return []
    files: list[Path] = sorted(place.rglob("*")) if place.is_dir() else [place]
    return [
        [str(file.relative_to(place)), file.stat().st_size, file.stat().st_mtime_ns]
        for file in files
        if file.is_file() and not file.name.startswith(".")
    ]
