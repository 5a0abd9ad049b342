"""Looking without cutting: perplexity of a model, plans, what a folder holds."""

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from ..config import read_record
from ..errors import SecateurError
from ..evaluation import Perplexity, window_lengths
from ..models import OpenModel, open_model
from ..progress import Progress, Quiet
from ..report import layer_rows, parallel_sizes, plan_difference
from ..structure import Plan, Structure
from .stages import evaluation_text, perplexities
from .stock import form_facts, form_of


def evaluate(
    model: str | Path | nn.Module,
    text: str,
    *,
    tokenizer: Any = None,
    tokens: int | None = None,
    batch: int = 8,
    device: str = "auto",
    dtype: str = "auto",
    windows: Sequence[int] | None = None,
    progress: Progress | None = None,
) -> list[Perplexity]:
    """Perplexity of any supported model, pruned or not, on `text`, one layer in memory at a time.

    Raises:
        SecateurError: bad input.
    """
    opened = open_model(model)
    source = opened.streamed(device=device, dtype=dtype)
    stream = evaluation_text(opened, text, tokenizer=tokenizer, tokens=tokens)
    lengths = _fitting(windows or window_lengths(opened.context), opened.context, len(stream), text)
    return perplexities(source, stream, lengths, batch, progress or Quiet(), "perplexity")


def read_plan(path: str | Path) -> Plan:
    """Read a plan.json, or the one in a folder.

    Raises:
        SecateurError: no such file, or not a plan.
    """
    path = Path(path).expanduser()
    file = path / "plan.json" if path.is_dir() else path
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise SecateurError(
            f"Cannot read the plan {file}: {getattr(error, 'strerror', None) or error}.\n"
            "Make one: secateur prune MODEL --ratio 0.2 --dry-run --out DIR"
        ) from error
    try:
        return Plan.from_json(text)
    except SecateurError as error:
        raise SecateurError(f"{file}: {error}") from error


def inspect(folder: str | Path, against: str | Path | None = None) -> dict[str, Any]:
    """What a folder holds: facts, one row a layer, and the blend if two scores were fused.

    `against` compares the plans of two.

    Raises:
        SecateurError: neither a supported model nor a plan.
    """
    folder = Path(folder).expanduser()
    plan = read_plan(folder) if (folder / "plan.json").is_file() or folder.is_file() else None
    facts: dict[str, Any] = {}
    layers: list[dict[str, Any]] = []
    if (folder / "config.json").is_file() or plan is None:
        opened = open_model(folder)
        structure = opened.structure
        facts = {
            "class": opened.raw_config.get("architectures", ["?"])[0],
            "family": structure.family,
            "parameters": f"{structure.parameters:,}",
            "decoder linears, parameters": f"{structure.prunable:,}",
            "weights on disk, MB": f"{bytes_before(opened) / 1e6:,.1f}",
            "context, tokens": opened.context,
            **_for_engines(opened),
        }
        if plan is None or against is None:
            layers = [
                {"layer": layer, "attention heads (KV)": heads, "MLP width": width}
                for layer, heads, width in layer_rows(*_before(structure, plan))
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
    return {"facts": facts, "layers": layers, "blend": _blend(folder)}


def _for_engines(opened: OpenModel) -> dict[str, Any]:
    """What decides which engines take the model, and how: its form, and what divides its widths."""
    structure = opened.structures
    form = form_of(opened, structure, Plan({}, structure.architecture, structure.weights))
    facts = form_facts(form)
    if opened.packed:
        facts |= {"stock": False, "why_not_stock": "its weights are in few bits"}
        facts["class"] = opened.raw_config["architectures"][0]
    groups = [axis.units for axis in structure.axes if axis.granularity == "kv_group"]
    widths = [a.units // a.groups for a in structure.axes if a.size == "I"]
    found: dict[str, Any] = {"form": "stock" if facts["stock"] else "custom"}
    if not facts["stock"]:
        found["why not stock"] = facts["why_not_stock"]
    if groups:
        sizes = parallel_sizes(groups)
        found["tensor-parallel sizes"] = ", ".join(map(str, sizes))
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
    blend = read_record(record).get("results", {}).get("blend")
    return blend if isinstance(blend, dict) else None


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
