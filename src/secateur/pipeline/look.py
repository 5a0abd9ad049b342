"""Looking without cutting: perplexity of a model, plans, what a folder holds."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..arguments import (
    a_count,
    a_device,
    a_dtype,
    a_model,
    a_place,
    a_progress,
    a_text,
    a_tokenizer,
    a_whole,
    optional,
    public,
    some,
)
from ..config import read_record
from ..errors import SecateurError
from ..evaluation import Perplexity, window_lengths
from ..models import OpenModel, open_model
from ..parsing import read_text
from ..paths import typed_path
from ..progress import Progress, Quiet
from ..report import checked_blend, layer_numbers, layer_rows, plan_difference
from ..structure import Plan, Structure
from .stages import evaluation_text, perplexities


@public(
    model=a_model,
    text=a_text,
    tokenizer=a_tokenizer,
    tokens=optional(a_count(2)),
    batch=a_count(1),
    device=a_device,
    dtype=a_dtype,
    windows=optional(some(a_whole)),
    progress=a_progress,
)
def evaluate(
    model: str | Path | nn.Module,
    text: str,
    *,
    tokenizer: Any = None,
    tokens: int | None = None,
    batch: int = 8,
    device: str | torch.device = "auto",
    dtype: str | torch.dtype = "auto",
    windows: int | Sequence[int] | None = None,
    progress: Progress | None = None,
) -> list[Perplexity]:
    """Perplexity of any supported model, pruned or not, on `text`, one layer in memory at a time.

    Raises:
        SecateurError: bad input.
    """
    opened = open_model(model)
    source = opened.streamed(device=str(device), dtype=str(dtype))
    stream = evaluation_text(opened, text, tokenizer=tokenizer, tokens=tokens)
    asked = [windows] if isinstance(windows, int) else windows
    lengths = _fitting(asked or window_lengths(opened.context), opened.context, len(stream), text)
    return perplexities(source, stream, lengths, batch, progress or Quiet(), "perplexity")


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

    `layers` has numbers; `rows` says the same to people, with headings as keys.
    """

    facts: dict[str, Any]
    layers: list[dict[str, Any]]
    rows: list[dict[str, Any]]
    blend: dict[str, dict[str, float]] | None

    def to_json(self) -> dict[str, Any]:
        """All but the rows for people."""
        return {"facts": self.facts, "layers": self.layers, "blend": self.blend}


@public(folder=a_place, against=optional(a_place))
def inspect(folder: str | Path, against: str | Path | None = None) -> dict[str, Any]:
    """What a folder holds: facts, one row an axis, and the blend if two scores were fused.

    `against` compares the plans of two.

    Raises:
        SecateurError: neither a supported model nor a plan.
    """
    return look_at(folder, against).to_json()


@public(folder=a_place, against=optional(a_place))
def look_at(folder: str | Path, against: str | Path | None = None) -> Look:
    """The same as `inspect` gives, and rows for people.

    Raises:
        SecateurError: as `inspect`.
    """
    folder = typed_path(folder)
    plan = read_plan(folder) if (folder / "plan.json").is_file() or folder.is_file() else None
    facts: dict[str, Any] = {}
    layers: list[dict[str, Any]] = []
    rows: list[dict[str, Any]] = []
    if (folder / "config.json").is_file() or plan is None:
        opened = open_model(folder)
        structure = opened.structure
        facts = {
            "class": (opened.raw_config.get("architectures") or ["?"])[0],
            "family": structure.family,
            "parameters": structure.parameters,
            "decoder linears, parameters": structure.prunable,
            "weights on disk, MB": bytes_before(opened) / 1e6,
            "context, tokens": opened.context,
        }
        if plan is None or against is None:
            before = _before(structure, plan)
            layers = layer_numbers(*before)
            rows = [
                {"layer": layer, "attention heads (KV)": heads, "MLP width": width}
                for layer, heads, width in layer_rows(*before)
            ]
    if plan is not None:
        facts |= {key: value for key, value in plan.settings.items() if value is not None}
        facts["repair"] = plan.repair
    if against is not None:
        if plan is None:
            raise SecateurError(f"{folder} has no plan.json to compare.")
        layers = plan_difference(plan, read_plan(against))
    elif not layers and plan is not None:
        layers = [
            {"axis": name, "kept": len(units), "of": plan.units[name]}
            for name, units in plan.keep.items()
        ]
    return Look(facts, layers, rows or layers, _blend(folder))


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
    """Size of the model's weight files; of its tensors, for a live module."""
    if opened.folder is not None:
        # no hidden files: the state of a training may lie there
        return sum(file.stat().st_size for file in opened.folder.glob("[!.]*.safetensors"))
    return sum(spec.bytes for spec in opened.weights.specs.values())


def _fitting(lengths: Sequence[int], context: int, tokens: int, text: str) -> list[int]:
    """The window lengths that the model and the text allow; an error if there is none."""
    if min(lengths) < 2 or max(lengths) > context:
        raise SecateurError(
            f"--windows must lie between 2 and the context of the model, {context} tokens."
        )
    fitting = [length for length in lengths if length <= tokens]
    if not fitting:
        raise SecateurError(
            f"The text of {text} has {tokens} tokens, fewer than one window of {min(lengths)}.\n"
            "Give more text, or smaller --windows."
        )
    return fitting
