"""Looking without cutting: perplexity of a model, plans, what a folder holds."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

from torch import nn

from ..checkpoint import weight_files
from ..config import read_record
from ..data import Beginning, Bos, Text, given_windows
from ..errors import SecateurError
from ..evaluation import Perplexity, window_lengths
from ..models import OpenModel, open_model
from ..progress import Progress, Quiet
from ..registry import choose
from ..report import layer_rows, plan_difference
from ..structure import Plan, Structure
from .stages import evaluation_text, perplexities
from .texts import named


def evaluate(
    model: str | Path | nn.Module,
    text: Any,
    *,
    field: str | None = None,
    bos: str = "auto",
    tokenizer: Any = None,
    tokens: int | None = None,
    batch: int = 8,
    device: str = "auto",
    dtype: str = "auto",
    windows: Sequence[int] | None = None,
    merge_adapter: bool | None = None,
    dequantise: bool = False,
    progress: Progress | None = None,
) -> list[Perplexity]:
    """Perplexity of any supported model, pruned or not, on `text`, one layer in memory at a time.

    `text` is a name (as for calibration), strings, rows with text in them, or tokens as a tensor
    [window, token], which come in windows of that length unless `windows` says otherwise. `bos` is
    `each`, `document`, `never` or `auto` (see `secateur.data.beginning`). `merge_adapter` and
    `dequantise` are those of `open_model`.

    Raises:
        SecateurError: bad input.
    """
    return evaluated(
        model,
        text,
        field=field,
        bos=bos,
        tokenizer=tokenizer,
        tokens=tokens,
        batch=batch,
        device=device,
        dtype=dtype,
        windows=windows,
        progress=progress,
        merge_adapter=merge_adapter,
        dequantise=dequantise,
    )[0]


def evaluated(
    model: str | Path | nn.Module,
    text: Any,
    *,
    field: str | None,
    bos: str,
    tokenizer: Any = None,
    tokens: int | None,
    batch: int,
    device: str,
    dtype: str,
    windows: Sequence[int] | None,
    progress: Progress | None,
    merge_adapter: bool | None = None,
    dequantise: bool = False,
) -> tuple[list[Perplexity], Beginning]:
    """What `evaluate` gives, and what the windows began with."""
    choose("--bos", bos, dict.fromkeys(get_args(Bos)))
    names, given = named({"evaluate": text})
    opened = open_model(model, merge_adapter=merge_adapter, dequantise=dequantise)
    for message in opened.notes:
        (progress or Quiet()).note(message)
    source = opened.streamed(device=device, dtype=dtype)
    progress = progress or Quiet()
    stream = evaluation_text(
        opened,
        names["evaluate"],
        tokenizer=tokenizer,
        tokens=tokens,
        field=field,
        bos=bos,
        given=given.get("evaluate"),
        note=progress.note,
        progress=progress,
    )
    ready = given_windows(given.get("evaluate"))
    usual = window_lengths(opened.context) if ready is None else (ready.shape[1],)
    lengths = _fitting(windows or usual, opened.context, stream, names["evaluate"])
    found = perplexities(source, stream, lengths, batch, progress, "perplexity")
    return found, stream.begin


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


def inspect(
    folder: str | Path,
    against: str | Path | None = None,
    *,
    merge_adapter: bool | None = None,
    dequantise: bool = False,
) -> dict[str, Any]:
    """What a folder holds: facts, one row a layer, and the blend if two scores were fused.

    `against` compares the plans of two; `merge_adapter` and `dequantise` are those of `open_model`.

    Raises:
        SecateurError: neither a supported model nor a plan.
    """
    model, folder = folder, _folder(folder)
    gguf = folder.suffix.lower() == ".gguf"
    has_plan = (folder / "plan.json").is_file() or (folder.is_file() and not gguf)
    plan = read_plan(folder) if has_plan else None
    facts: dict[str, Any] = {}
    notes: tuple[str, ...] = ()
    layers: list[dict[str, Any]] = []
    if (folder / "config.json").is_file() or plan is None:
        opened = open_model(model, merge_adapter=merge_adapter, dequantise=dequantise)
        structure, notes = opened.structure, opened.notes
        facts = {
            "class": opened.raw_config.get("architectures", ["?"])[0],
            **_reading_facts(opened),
            "family": structure.family,
            "parameters": f"{structure.parameters:,}",
            "decoder linears, parameters": f"{structure.prunable:,}",
            "weights on disk, MB": f"{bytes_before(opened) / 1e6:,.1f}",
            "context, tokens": opened.context,
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
    return {"facts": facts, "layers": layers, "blend": _blend(folder), "notes": list(notes)}


def _folder(model: str | Path) -> Path:
    """The path that `model` is, if it is one."""
    try:
        return Path(model).expanduser()
    except RuntimeError:  # ~nobody
        return Path(model)


def _reading_facts(opened: OpenModel) -> dict[str, str]:
    """What is to be known of a model that was not read as it is stored."""
    facts = {"weights": opened.made} if opened.made else {}
    if opened.around is not None:
        facts["text decoder of"] = opened.around.architecture
    return facts


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
    """Size of the files that the weights are read from; of the tensors, for a live module."""
    if opened.folder is not None and opened.folder.is_file():
        return opened.folder.stat().st_size
    if opened.folder is not None:
        ggufs = list(opened.folder.glob("[!.]*.gguf"))
        return sum(f.stat().st_size for f in weight_files(opened.folder)[0] or ggufs)
    return sum(spec.bytes for spec in opened.weights.specs.values())


def _fitting(lengths: Sequence[int], context: int, stream: Text, text: str) -> list[int]:
    """The window lengths that the model and the text allow; an error if there is none."""
    if min(lengths) < 2 or max(lengths) > context:
        raise SecateurError(
            f"--windows must lie between 2 and the context of the model, {context} tokens."
        )
    fitting = [length for length in lengths if len(stream.windows(length))]
    if not fitting:
        raise SecateurError(
            f"The text of {text} has {len(stream.ids)} tokens, fewer than one window of"
            f" {min(lengths)}.\nGive more text, or smaller --windows."
        )
    return fitting
