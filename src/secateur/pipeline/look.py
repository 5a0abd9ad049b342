"""Looking without cutting: plans, what a folder holds."""

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..arguments import (
    a_flag,
    a_place,
    optional,
    public,
)
from ..checkpoint import weight_files
from ..config import read_record
from ..errors import SecateurError
from ..models import OpenModel, open_model
from ..parsing import read_text
from ..paths import typed_path
from ..report import (
    checked_blend,
    form_word,
    layer_numbers,
    layer_rows,
    parallel_sizes,
    plan_difference,
)
from ..structure import Plan, Structure
from .idle import seen_settings, unread_settings
from .stock import standing


@public(path=a_place)
def read_plan(path: str | Path) -> Plan:
    """Read a plan.json, or the one in a folder.

    Raises:
        SecateurError: no such file, or not a plan.
    """
    path = typed_path(path)
    file = path / "plan.json" if path.is_dir() else path
    try:
        text = read_text(file, "the plan ")
    except SecateurError as error:
        raise SecateurError(
            f"{error}\nMake one: secateur prune MODEL --ratio 0.2 --dry-run --out DIR"
        ) from error
    try:
        return Plan.from_json(text)
    except SecateurError as error:
        raise SecateurError(f"{file}: {error}") from error


@dataclass(frozen=True)
class Look:
    """What a folder holds: facts, numbers of its layers, and the blend if two scores were fused.

    `layers` has numbers; `rows` says the same to people, with headings as keys. `notes` are what
    to know of how it was read.
    """

    facts: dict[str, Any]
    layers: list[dict[str, Any]]
    rows: list[dict[str, Any]]
    blend: dict[str, dict[str, float]] | None
    notes: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """All but the rows for people."""
        return {
            "facts": self.facts,
            "layers": self.layers,
            "blend": self.blend,
            "notes": list(self.notes),
        }


@public(
    folder=a_place,
    against=optional(a_place),
    merge_adapter=optional(a_flag),
    dequantise=a_flag,
)
def inspect(
    folder: str | Path,
    against: str | Path | None = None,
    *,
    merge_adapter: bool | None = None,
    dequantise: bool = False,
) -> dict[str, Any]:
    """What a folder holds: facts, one row an axis, and the blend if two scores were fused.

    `against` compares the plans of two; `merge_adapter` and `dequantise` are those of `open_model`.

    Raises:
        SecateurError: neither a supported model nor a plan.
    """
    found = look_at(folder, against, merge_adapter=merge_adapter, dequantise=dequantise)
    return found.to_json()


@public(
    folder=a_place,
    against=optional(a_place),
    merge_adapter=optional(a_flag),
    dequantise=a_flag,
)
def look_at(
    folder: str | Path,
    against: str | Path | None = None,
    *,
    merge_adapter: bool | None = None,
    dequantise: bool = False,
) -> Look:
    """The same as `inspect` gives, and rows for people.

    Raises:
        SecateurError: as `inspect`.
    """
    model, folder = folder, typed_path(folder)
    gguf = folder.suffix.lower() == ".gguf"
    has_plan = (folder / "plan.json").is_file() or (folder.is_file() and not gguf)
    plan = read_plan(folder) if has_plan else None
    facts: dict[str, Any] = {}
    notes: tuple[str, ...] = ()
    layers: list[dict[str, Any]] = []
    rows: list[dict[str, Any]] = []
    if (folder / "config.json").is_file() or plan is None:
        opened = open_model(model, merge_adapter=merge_adapter, dequantise=dequantise)
        structure, notes = opened.structure, opened.notes
        facts = {
            "class": (opened.raw_config.get("architectures") or ["?"])[0],
            **_reading_facts(opened),
            "family": structure.family,
            "parameters": structure.parameters,
            "decoder linears, parameters": structure.prunable,
            "weights on disk, MB": bytes_before(opened) / 1e6,
            "context, tokens": opened.context,
            **_for_engines(opened),
        }
        if plan is None or against is None:
            before = _before(structure, plan)
            layers = layer_numbers(*before)
            rows = [
                {"layer": layer, "attention heads (KV)": heads, "MLP width": width}
                for layer, heads, width in layer_rows(*before)
            ]
    if plan is not None:
        facts |= _settings_of(plan)
    if against is not None:
        if plan is None:
            raise SecateurError(f"{folder} has no plan.json to compare.")
        layers = plan_difference(plan, read_plan(against))
    elif not layers and plan is not None:
        layers = [
            {"axis": name, "kept": len(units), "of": plan.units[name]}
            for name, units in plan.keep.items()
        ]
    return Look(facts, layers, rows or layers, _blend(folder), notes)


def _settings_of(plan: Plan) -> dict[str, Any]:
    """The settings that made the plan what it is; not those that are off, or that nothing read."""
    names = ("importance", "fusion", "search")
    score, fusion, search = (_word(plan.settings.get(name)) for name in names)
    unread = unread_settings(score, fusion, search or "", plan.repair)
    return {**seen_settings(plan.settings, unread), "repair": plan.repair}


def _word(value: Any) -> str | None:
    """A name in a plan that anybody may have edited."""
    return value if isinstance(value, str) else None


def _reading_facts(opened: OpenModel) -> dict[str, str]:
    """What is to be known of a model that was not read as it is stored."""
    facts = {"weights": opened.made} if opened.made else {}
    if opened.around is not None:
        facts["text decoder of"] = opened.around.architecture
    return facts


def _for_engines(opened: OpenModel) -> dict[str, Any]:
    """What decides which engines take the model, and how: its form, and what divides its widths."""
    structure = opened.structures
    facts = standing(opened)
    groups = [axis.units for axis in structure.axes if axis.granularity == "kv_group"]
    widths = [a.units // a.groups for a in structure.axes if a.size == "I"]
    found: dict[str, Any] = {"form": form_word(stock=facts["stock"])}
    if not facts["stock"]:
        found["why not stock"] = facts["why_not_stock"]
    if groups:
        found["tensor-parallel sizes"] = list(parallel_sizes(groups))
    if widths:
        found["MLP widths, multiples of"] = math.gcd(*widths)
    return found


def _before(structure: Structure, plan: Plan | None) -> tuple[Structure, Plan]:
    """A pruned model's axes as long as they were, and the plan that made them what they are.

    The structure alone, and nothing removed, if there is no plan or it is not of this model.
    """
    known = structure.by_name
    kept = {name: len(units) for name, units in plan.keep.items()} if plan is not None else {}
    fits = all(name in known and known[name].units == count for name, count in kept.items())
    if plan is None or not fits:
        return structure, Plan({}, structure.architecture, structure.weights)
    axes = (replace(axis, units=plan.units.get(axis.name, axis.units)) for axis in structure.axes)
    return replace(structure, axes=tuple(axes)), plan


def _blend(folder: Path) -> dict[str, dict[str, float]] | None:
    """The shares of coarse and fine scores that the record of a run holds."""
    record = folder / "run.toml"
    if not record.is_file():
        return None
    results = read_record(record).get("results")
    blend = results.get("blend") if isinstance(results, dict) else None
    return None if blend is None else checked_blend(blend, str(record))


def bytes_before(opened: OpenModel) -> int:
    """Size of the files that the weights are read from; of the tensors, for a live module."""
    if opened.folder is not None and opened.folder.is_file():
        return opened.folder.stat().st_size
    if opened.folder is not None:
        files = list(opened.folder.glob("[!.]*.gguf"))
        if not opened.made.startswith("dequantised from GGUF"):
            files = weight_files(opened.folder)[0]
        return sum(file.stat().st_size for file in files)
    return sum(spec.bytes for spec in opened.weights.specs.values())
