"""What stands beside the weights of a pruned folder: the plan, the settings, the card."""

import importlib.metadata
import platform
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from ..checkpoint import View, companions_beside
from ..config import PruneConfig, to_toml
from ..data import Windows
from ..export import Form, licence_files, model_card, model_index
from ..report import bos_line, cut_words, evaluation_line, layer_rows, number_rows
from ..structure import Plan, Structure
from ..surgery import removed_parameters
from .idle import seen_settings, unread_here, unread_settings
from .subject import Subject

_VERSIONS = ("secateur", "torch", "transformers", "tokenizers", "safetensors")


def versions() -> dict[str, str]:
    """What made a folder, for records."""
    return {"python": platform.python_version(), **{name: _version(name) for name in _VERSIONS}}


@cache
def _version(package: str) -> str:
    return importlib.metadata.version(package)


def write_plan(folder: Path, weights: View, structure: Structure, plan: Plan) -> None:
    """Write plan.json."""
    removed = removed_parameters(weights, structure, plan)
    (folder / "plan.json").write_text(plan.to_json(structure, removed), encoding="utf-8")


def write_record(
    folder: Path,
    subject: Subject,
    plan: Plan,
    numbers: Mapping[str, Any],
    windows: Windows | None,
    *,
    form: Form,
) -> None:
    """Write plan.json, run.toml and README.md.

    Nothing that differs between two runs of the same settings goes in (no date, no time taken, no
    name of the folder): same seed, same bytes.
    """
    opened, structure = subject.opened, subject.structure
    write_plan(folder, opened.weights, structure, plan)
    record: dict[str, Any] = {"versions": versions(), "results": dict(numbers)}
    if windows is not None:
        record["calibration"] = {
            "windows": len(windows.ids),
            "tokens_sha256": windows.sha256,
            "bos": windows.begin.to_json(),
        }
    record["companions"] = companions_beside(folder)
    (folder / "run.toml").write_text(to_toml(subject.recorded, record), encoding="utf-8")
    settings = settings_in_force(subject.settled)
    card = model_card(
        opened,
        form,
        cut=cut_words(structure, plan),
        settings=settings,
        numbers=number_rows(numbers),
        layers=layer_rows(structure, plan),
        evaluated_on=" ".join(filter(None, (evaluation_line(numbers), bos_line(numbers)))),
        results=model_index(f"{opened.name}, pruned", numbers, settings),
        licences=licence_files(folder),
    )
    (folder / "README.md").write_text(card, encoding="utf-8")


def settings_in_force(config: PruneConfig) -> dict[str, Any]:
    """The settings that somebody looked at: what is off, or nothing asks for, is none."""
    score, fusion = config.importance_name, config.fusion_name
    search, repair = config.search_name, config.repair_name
    in_force = {"importance": score, "fusion": fusion, "search": search, "repair": repair}
    unread = (*unread_settings(score, fusion, search, repair), *unread_here(config))
    return seen_settings(config.model_dump() | in_force, unread)
