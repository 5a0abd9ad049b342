"""What a plan records of how it came about, and what of that a later run takes from it."""

from collections.abc import Mapping
from difflib import get_close_matches
from typing import Any

from ..config import OF_FUSIONS, PruneConfig, displaced, make_config
from ..errors import SecateurError
from ..fusion import FUSIONS
from ..importance import IMPORTANCE
from ..methods import BEST, METHODS
from ..registry import is_name
from ..search import SEARCHES
from ..structure import Plan, Structure

# Settings that a plan records because they say how it came about; applying it needs none of them.
RECORDED = (
    "method",
    "effort",
    "ratio",
    "parameters",
    "memory",
    "speedup",
    "latency",
    "at_context",
    "at_batch",
    "of",
    "layers",
    "attention_layers",
    "mlp_layers",
    "attention_units",
    "attention_ratio",
    "align",
    "tensor_parallel",
    "stock",
    "seed",
    "importance",
    "fusion",
    "fine",
    *OF_FUSIONS,
    "members",
    "scale",
    "search",
    "search_rounds",
    "rescore",
    "granularity",
    "target",
    "damping",
)

# What a plan may say of the calibration text that its repair is done anew on.
_CALIBRATION = ("calibration", "field", "samples", "length", "bos", "seed")


def recorded(
    keep: Mapping[str, tuple[int, ...]], structure: Structure, config: PruneConfig
) -> Plan:
    """The plan that keeps these units, with the settings that led to it."""
    calibration = {
        name: value for name in _CALIBRATION if (value := getattr(config, name)) is not None
    }
    names = [name for name in RECORDED if name != "effort" or config.method == BEST]
    settings = {
        **{name: getattr(config, name) for name in names},
        "importance": config.importance_name,
        "fusion": config.fusion_name,
        "search": config.search_name,
    }
    return Plan(
        keep,
        structure.architecture,
        structure.weights,
        config.repair_name,
        calibration,
        settings,
    )


def config_of(plan: Plan, names: Mapping[str, Any]) -> PruneConfig:
    """The settings that a plan records, overridden by `names`.

    What chose the units may be a user's: its name is kept, and it need not be there.

    Raises:
        SecateurError: a setting is none, or none that a plan has a say in.
    """
    # a plan that says nothing of BOS is of a time when texts alone began with it
    told = displaced(_settings_of(plan), names)
    settings = {"bos": "document", **told, "repair": plan.repair, **names}
    known: dict[str, Mapping[str, Any]] = {
        "method": METHODS,
        "importance": IMPORTANCE,
        "fusion": FUSIONS,
        "search": SEARCHES,
    }
    gone = {
        what: name
        for what, there in known.items()
        if is_name(name := settings.get(what)) and name not in there and what not in names
    }
    there = {what: value for what, value in settings.items() if what not in gone}
    return make_config(**there).model_copy(update=gone)


def _settings_of(plan: Plan) -> dict[str, Any]:
    """The settings that a plan has a say in: data, never code or anything of the machine.

    Raises:
        SecateurError: it names others where it says what to repair it with.
    """
    other = next((name for name in plan.calibration if name not in _CALIBRATION), None)
    if other is not None:
        nearest = get_close_matches(other, _CALIBRATION, n=1)
        hint = f" Did you mean {nearest[0]!r}?" if nearest else ""
        raise SecateurError(
            f"The plan's calibration names {other!r}.{hint} Expected"
            f" {', '.join(_CALIBRATION)} alone.\n"
            "Remove it from plan.json, and type what you want as an option."
        )
    known = {name: plan.settings[name] for name in RECORDED if name in plan.settings}
    return {**known, **plan.calibration}
