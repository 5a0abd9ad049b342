"""Rows for the summary table of the terminal and of the model card."""

import re
from collections.abc import Mapping
from typing import Any

from ..structure import Axis, Plan, Structure
from ..units import size_text
from .kinds import KINDS


def number_rows(numbers: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """(what, before, after) for people; `numbers` are a run's results."""
    rows = []
    for key, what in (
        ("parameters", "parameters"),
        ("prunable_parameters", "decoder linears, parameters"),
    ):
        if key in numbers:
            before, after = numbers[key]["before"], numbers[key]["after"]
            rows.append((what, f"{before:,}", f"{after:,} ({after / max(before, 1) - 1:+.1%})"))
    if "bytes" in numbers:
        before, after = (numbers["bytes"][when] / 1e6 for when in ("before", "after"))
        rows.append(("weights on disk, MB", f"{before:,.1f}", f"{after:,.1f}"))
    rows += _budget_rows(numbers.get("budget", {}))
    for entry in numbers.get("perplexity", ()):
        what = f"perplexity per token, windows of {entry['window']}"
        rows.append((what, f"{entry['before']:.2f}", f"{entry['after']:.2f}"))
    return rows


CONTEST_COLUMNS = ("score", "search", "repair", "windows", "KL to dense")


def contest_rows(numbers: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """What the method best tried, in the order in which it did; none where nothing was chosen."""
    return [
        (
            str(row["importance"]),
            str(row["search"]),
            str(row["repair"]),
            f"{row['windows']:,}",
            f"{row['divergence']:.4f}",
        )
        for row in numbers.get("contest", ())
    ]


def _budget_rows(budget: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """What was asked for and what became of it, predicted and measured."""
    if not budget or budget["unit"] == "parameters":
        return []
    beside = f"{budget['asked']}, context {budget['context']:,}, batch {budget['batch']}"
    if budget["unit"] == "bytes":
        before, after = size_text(budget["before"]), size_text(budget["after"])
        return [(f"weights and KV cache ({beside})", before, after)]
    rows = [(f"a token, predicted ({beside})", budget)]
    if "measured" in budget:
        rows.append(("a token, measured", budget["measured"]))
    return [
        (
            what,
            f"{times['before']:.3g} ms",
            f"{times['after']:.3g} ms ({times['before'] / max(times['after'], 1e-9):.2f} times as"
            " fast)",
        )
        for what, times in rows
    ]


def evaluation_line(numbers: Mapping[str, Any]) -> str:
    """Which text the perplexity is on, in one sentence (empty if there is none)."""
    if not numbers.get("perplexity"):
        return ""
    tokens = max(entry["tokens"] for entry in numbers["perplexity"])
    return f"Perplexity on {numbers['evaluation']['text']} ({tokens:,} predicted tokens)."


def bos_line(numbers: Mapping[str, Any]) -> str:
    """What windows of tokens began with, in one sentence (empty if none was read)."""
    bos = numbers.get("bos")
    if not bos:
        return ""
    begins = {
        "each": f"Every window of tokens begins with {bos['token']}",
        "given": "The windows of tokens are as they were given",
        "document": f"Every text begins with {bos['token']}, and a window only where one does",
    }
    said = begins.get(bos["mode"], "")
    if bos["mode"] == "given":
        return f"{said}."
    nothing = "No beginning-of-text token is put in"
    return f"{said if bos['token'] else nothing} (--bos {bos['mode']})."


def form_word(*, stock: bool) -> str:
    """Whether a class of transformers loads a folder, or one that it brings along."""
    return "stock" if stock else "custom"


def form_line(form: Mapping[str, Any]) -> str:
    """Which class loads a folder, why not the family's own, and how it is loaded."""
    if form["stock"]:
        return f"A stock checkpoint: {form['class']}."
    return (
        f"A custom checkpoint, {form['class']}: {form['why_not_stock']}.\n"
        "It loads with trust_remote_code=True, or after `import secateur`."
    )


def cut_words(structure: Structure, plan: Plan) -> str:
    """What `plan` removes: `Whole attention heads and MLP channels`, or `No units`."""
    gone = {KINDS[axis.granularity] for axis in structure.axes if plan.removed(axis)}
    named = [what for what in dict.fromkeys(KINDS.values()) if what in gone]
    if not named:
        return "No units"
    *others, last = named
    return f"Whole {', '.join(others)} and {last}" if others else f"Whole {last}"


def layer_rows(structure: Structure, plan: Plan) -> list[tuple[int | str, str, str]]:
    """(layer, heads kept of all with KV heads, MLP width kept of all).

    What no axis speaks of stays: `all`. Whole blocks and layers are `kept` or `gone`.
    """
    cells: dict[int, dict[str, str]] = {
        layer: {"attention": "all", "mlp": "all"} for layer in range(structure.layers)
    }
    hidden: list[tuple[int | str, str, str]] = []
    for axis in structure.axes:
        text = _kept(axis, plan)
        if axis.kind == "hidden":
            hidden.append(("hidden width", text, text))
        elif axis.kind == "layer":
            cells[axis.layer] = {"attention": text, "mlp": text}
        else:
            own = cells[axis.layer]
            own[axis.kind] = text if own[axis.kind] == "all" else f"{own[axis.kind]}, {text}"
    rows: list[tuple[int | str, str, str]] = [
        (layer, kinds["attention"], kinds["mlp"]) for layer, kinds in sorted(cells.items())
    ]
    return rows + hidden


def layer_numbers(structure: Structure, plan: Plan) -> list[dict[str, Any]]:
    """What stays of each axis, in numbers: heads or channels `kept` of how many.

    `units` are what a plan counts: KV heads with their query heads, channels, experts.
    """
    return [
        {
            "layer": axis.layer if axis.layer >= 0 else None,
            "kind": axis.kind,
            "granularity": axis.granularity,
            "kept": len(plan.kept(axis)) * axis.per_unit,
            "of": axis.units * axis.per_unit,
            "units_kept": len(plan.kept(axis)),
            "units": axis.units,
        }
        for axis in structure.axes
    ]


def _kept(axis: Axis, plan: Plan) -> str:
    """How many units of `axis` stay, in words for a table."""
    kept, units = len(plan.kept(axis)), axis.units
    if axis.granularity in ("layer", "attention_block", "mlp_block"):
        return "kept" if kept else "gone"
    if axis.granularity == "expert":
        return f"{kept} of {units} experts"
    if axis.granularity == "expert_channel":
        return f"{kept // axis.groups} of {units // axis.groups} ({axis.groups} experts)"
    text = f"{kept * axis.per_unit} of {units * axis.per_unit}"
    if axis.granularity == "kv_group":
        return f"{text} ({kept} of {units})"
    if axis.granularity == "query_head":
        return f"{text} ({axis.groups} of {axis.groups})"
    return text


def plan_difference(one: Plan, other: Plan) -> list[dict[str, Any]]:
    """For each axis, how many units both keep, and how many only one of the two."""
    rows = []
    for name in sorted({*one.keep, *other.keep}, key=_by_layer):
        ours, theirs = set(one.keep.get(name, ())), set(other.keep.get(name, ()))
        rows.append(
            {
                "axis": name,
                "kept by both": len(ours & theirs),
                "only this one": len(ours - theirs),
                "only the other": len(theirs - ours),
            }
        )
    return rows


def _by_layer(name: str) -> tuple[int, str]:
    """`layers.10.mlp` after `layers.9.mlp`; what names no layer comes first."""
    layer = re.match(r"layers\.(\d{1,9})\.", name)
    return int(layer[1]) if layer else -1, name
