"""Settings that change nothing beside the others, or that give way to them: told, and not shown."""

from collections.abc import Collection, Mapping
from typing import Any

from ..config import OF_FUSIONS, PruneConfig, RecoverConfig
from ..fusion import FUSIONS
from ..importance import IMPORTANCE, gradients_needed
from ..methods import BEST, METHODS
from ..search import SEARCHES
from ..surgery import REPAIRS


def idle_settings(config: PruneConfig) -> list[str]:
    """What to tell the user of settings that change nothing beside the others."""
    score, fusion = config.importance_name, config.fusion_name
    search, repair = config.search_name, config.repair_name
    unread = unread_settings(score, fusion, search, repair)
    if config.rescore:
        unread = tuple(dict.fromkeys((*unread, "scale", "search")))
        search = "--rescore"
    told = [
        f"--{name.replace('_', '-')} changes nothing here: {fusion or score}, {search} and"
        f" {repair} do not ask for it"
        for name in unread
        if getattr(config, name) != PruneConfig.model_fields[name].default
    ]
    return told + _idle_here(config) + _replaced(config)


def _replaced(config: PruneConfig) -> list[str]:
    """What whole layers or blocks put in the place of the method's own."""
    told = []
    for kind, taken in (("search", config.search_name), ("repair", config.repair_name)):
        if getattr(config, kind) is not None or (kind == "search" and config.rescore):
            continue  # it was asked for, or --rescore takes its place in turn
        named = getattr(METHODS[config.method], kind)
        if taken != named:
            told.append(
                f"{config.method}'s {kind} {named} knows no whole layers or blocks: {taken} takes"
                f" its place (--{kind})"
            )
    return told


def _idle_here(config: PruneConfig) -> list[str]:
    """The same of settings that other methods and budgets ask for."""
    return [
        f"--{name.replace('_', '-')} changes nothing here: it goes with {others}"
        for name, others in unread_here(config).items()
        if getattr(config, name) != PruneConfig.model_fields[name].default
    ]


def unread_here(config: PruneConfig) -> dict[str, str]:
    """Settings that the method and the budget in force do not look at, and what would."""
    counted = {} if config.budget_name == "ratio" else {"of": "--ratio"}
    if config.budget_name in ("ratio", "parameters"):
        counted |= dict.fromkeys(("at_context", "at_batch"), "--memory, --speedup and --latency")
    return counted if config.method == BEST else {**counted, "effort": f"--method {BEST}"}


def unread_settings(
    score: str | None, fusion: str | None, search: str, repair: str
) -> tuple[str, ...]:
    """The settings that nothing looks at where these are in force (names not known take none)."""
    fits = repair in REPAIRS and REPAIRS[repair].fits
    gradient = score in IMPORTANCE and bool(gradients_needed(IMPORTANCE[score]))
    taken = FUSIONS[fusion].settings if fusion in FUSIONS else ()
    read = {
        "fine": fusion is not None,
        **{name: name in taken for name in OF_FUSIONS},
        "members": gradient,
        "target": fits,
        "damping": fits,
        "square_attention": score is not None,
        "scale": search in SEARCHES and SEARCHES[search].across,
    }
    return tuple(name for name, there in read.items() if not there)


def seen_settings(settings: Mapping[str, Any], unread: Collection[str]) -> dict[str, Any]:
    """Those of `settings` that are on, and that something looks at."""
    return {
        name: value
        for name, value in settings.items()
        if value is not None and value is not False and name not in unread
    }


def unread_recovery_settings(config: RecoverConfig) -> tuple[str, ...]:
    """The settings that a recovery does not look at."""
    adapters = config.trained in ("lora", "groupwise")
    read = {
        "rank": adapters,
        "alpha": adapters,
        "dropout": config.trained == "lora",
        "bits": config.trained == "groupwise",
        "group": config.trained == "groupwise",
        "grid": config.trained == "groupwise",
        "top_k": config.distils,
        "teacher": config.distils or config.data == "self",
    }
    return tuple(name for name, there in read.items() if not there)


def idle_recovery_settings(config: RecoverConfig) -> list[str]:
    """What to tell the user of settings that a recovery does not look at."""
    usual = {name: field.default for name, field in RecoverConfig.model_fields.items()}
    why = {
        "teacher": "with --loss next-token; --loss kl learns from it",
        "top_k": "with --loss next-token, which learns from the text",
    }
    usually = f"with --recipe {config.recipe}, which trains {config.trained}"
    return [
        f"--{name.replace('_', '-')} changes nothing {why.get(name, usually)}"
        for name in unread_recovery_settings(config)
        if getattr(config, name) != usual[name]
    ]
