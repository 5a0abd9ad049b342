"""Looking without cutting: perplexity of a model, plans, what a folder holds."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_args

import torch
from torch import nn

from ..arguments import (
    a_count,
    a_device,
    a_dtype,
    a_flag,
    a_model,
    a_number,
    a_place,
    a_progress,
    a_text,
    a_tokenizer,
    a_whole,
    a_word,
    optional,
    public,
    renamed,
    some,
)
from ..checkpoint import weight_files
from ..config import read_record
from ..data import Beginning, Bos, Text, given_windows
from ..errors import SecateurError
from ..evaluation import Perplexity, window_lengths
from ..models import OpenModel, open_model
from ..parsing import read_text
from ..paths import typed_path
from ..progress import Progress, note, telling
from ..registry import choose
from ..report import (
    checked_blend,
    form_word,
    layer_numbers,
    layer_rows,
    parallel_sizes,
    plan_difference,
)
from ..structure import Plan, Structure
from .checks import seen_settings, unread_settings
from .held_out import evaluation_text, perplexities
from .keeping import Stored, keeping
from .passes import hidden_bytes
from .stock import standing
from .texts import named


@renamed(tokens="evaluate_tokens", windows="evaluate_lengths")
@public(
    model=a_model,
    text=a_text,
    tokenizer=a_tokenizer,
    evaluate_tokens=optional(a_count(2)),
    evaluate_lengths=optional(some(a_whole)),
    batch=a_count(1),
    device=a_device,
    dtype=a_dtype,
    hidden_gib=a_number,
    device_gib=optional(a_number),
    resident=a_word,
    fresh=a_flag,
    progress=a_progress,
)
def evaluate(
    model: str | Path | nn.Module,
    text: Any,
    *,
    field: str | None = None,
    bos: str = "auto",
    tokenizer: Any = None,
    evaluate_tokens: int | None = None,
    evaluate_lengths: int | Sequence[int] | None = None,
    batch: int = 8,
    device: str | torch.device = "auto",
    dtype: str | torch.dtype = "auto",
    merge_adapter: bool | None = None,
    dequantise: bool = False,
    hidden_gib: float = 4.0,
    device_gib: float | None = None,
    resident: str = "auto",
    store: Stored = None,
    fresh: bool = False,
    progress: Progress | None = None,
) -> list[Perplexity]:
    """Perplexity of any supported model, pruned or not, on `text`, one layer in memory at a time.

    `text` is a name (as for calibration), strings, rows with text in them, or tokens as a tensor
    [window, token], which come in windows of that length unless `evaluate_lengths` says otherwise.
    `bos` is `each`, `document`, `never` or `auto` (see `secateur.data.beginning`). `merge_adapter`
    and `dequantise` are those of `open_model`, `store` and `fresh` those of `prune`. Of hidden
    states, `hidden_gib` GiB stay in memory, beside `device_gib` on a GPU (None: what is free less a
    margin); with `resident` weights are read once.

    Raises:
        SecateurError: bad input.
    """
    return evaluated(**locals())[0]  # it takes the same arguments


def evaluated(
    model: str | Path | nn.Module,
    text: Any,
    *,
    field: str | None,
    bos: str,
    tokenizer: Any = None,
    evaluate_tokens: int | None,
    evaluate_lengths: int | Sequence[int] | None,
    batch: int,
    device: str | torch.device,
    dtype: str | torch.dtype,
    progress: Progress | None,
    merge_adapter: bool | None = None,
    dequantise: bool = False,
    hidden_gib: float = 4.0,
    device_gib: float | None = None,
    resident: str = "auto",
    store: Stored = None,
    fresh: bool = False,
) -> tuple[list[Perplexity], Beginning, dict[str, Any]]:
    """What `evaluate` gives, what the windows began with, and whether the model is stock."""
    choose("--bos", bos, dict.fromkeys(get_args(Bos)))
    names, given = named({"evaluate": text})
    with telling(progress), keeping(store, None, None, fresh=fresh) as kept:
        opened = open_model(model, merge_adapter=merge_adapter, dequantise=dequantise)
        for message in opened.notes:
            note(message)
        source = opened.streamed(
            device=str(device), dtype=str(dtype), resident=resident, device_gib=device_gib
        )
        stream = evaluation_text(
            opened,
            names["evaluate"],
            tokenizer=tokenizer,
            tokens=evaluate_tokens,
            field=field,
            bos=bos,
            given=given.get("evaluate"),
        )
        ready = given_windows(given.get("evaluate"))
        usual = window_lengths(opened.context) if ready is None else (ready.shape[1],)
        asked = [evaluate_lengths] if isinstance(evaluate_lengths, int) else evaluate_lengths
        lengths = _fitting(asked or usual, opened.context, stream, names["evaluate"])
        limit = hidden_bytes(hidden_gib)
        found = perplexities(source, stream, lengths, batch, "perplexity", limit=limit, store=kept)
        return found, stream.begin, standing(opened)


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


def _fitting(lengths: Sequence[int], context: int, stream: Text, text: str) -> list[int]:
    """The window lengths that the model and the text allow; an error if there is none."""
    if min(lengths) < 2 or max(lengths) > context:
        raise SecateurError(
            f"--evaluate-lengths must lie between 2 and the context of the model, {context} tokens."
        )
    fitting = [length for length in lengths if len(stream.windows(length))]
    if not fitting:
        raise SecateurError(
            f"The text of {text} has {len(stream.ids)} tokens, fewer than one window of"
            f" {min(lengths)}.\nGive more text, or smaller --evaluate-lengths."
        )
    return fitting
