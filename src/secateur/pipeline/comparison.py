"""Many methods on one model: the same calibration tokens, the same ratios, shared statistics.

The model is opened once, the tokens are drawn once, and each kind of pass (inputs, gradients) is
made once for all methods that need it.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Unpack

from torch import nn

from ..arguments import (
    a_function,
    a_model,
    a_number,
    a_progress,
    a_tokenizer,
    a_word,
    optional,
    public,
    some,
)
from ..config import PruneConfig, PruneSettings, make_config
from ..errors import SecateurError
from ..progress import Progress
from ..surgery import REPAIRS
from . import stages
from .choice import check_ratio
from .estimate import inputs_needed, terms_needed
from .result import Result
from .session import Run, name_of
from .texts import named


@public(
    model=a_model,
    methods=some(a_word),
    ratios=some(a_number),
    repairs=some(a_word),
    tokenizer=a_tokenizer,
    progress=a_progress,
    each=optional(a_function),
)
def compare(
    model: str | Path | nn.Module,
    *,
    methods: str | Sequence[str],
    ratios: float | Sequence[float],
    repairs: str | Sequence[str] = (),
    tokenizer: Any = None,
    progress: Progress | None = None,
    each: Callable[[Result], None] | None = None,
    **settings: Unpack[PruneSettings],
) -> list[dict[str, Any]]:
    """One row for each method, ratio and repair (none given: the method's own).

    A row has `method`, `ratio`, `repair`, `removed` (the share of decoder linears that went),
    `seconds` and `perplexity`, a list by window; `blend` is that of a fusion. `each` is called with
    every result, for what rows do not say. `settings` are those of `prune`.

    Raises:
        SecateurError: bad input, or a ratio that a method cannot meet.
    """
    if not methods or not ratios:
        raise SecateurError(
            "Nothing to compare.\nType: secateur compare MODEL --methods flap,magnitude"
            " --ratios 0.2,0.5 --out DIR"
        )
    _refuse_lists(settings)
    shares = [ratios] if isinstance(ratios, int | float) else ratios
    names, texts = named(settings)
    configs = [
        make_config(**names, model=name_of(model), method=method, ratio=ratio, repair=repair)
        for method in methods
        for ratio in shares
        for repair in (repairs or (None,))
    ]
    first = Run(model, configs[0], tokenizer, progress, texts)
    for config in configs:
        check_ratio(first.sibling(config).structure, config)
    first.read_evaluation_text()
    first.share(tokens=any(_sees_tokens(config) for config in configs))
    _gather(first, configs)
    rows = []
    for config in configs:
        run = first.sibling(config)
        result = run.carry_out(*run.plan(), None, None)
        if each is not None:
            each(result)
        rows.append(_row(run, result))
    return rows


def _refuse_lists(settings: Mapping[str, Any]) -> None:
    """One method, ratio or repair is one of a list here.

    Raises:
        SecateurError: it was given by the name that `prune` has for it.
    """
    for one, many in (("method", "methods"), ("ratio", "ratios"), ("repair", "repairs")):
        if one in settings:
            raise SecateurError(f"Comparing takes {many}, not {one}.")


def _sees_tokens(config: PruneConfig) -> bool:
    """Whether anything in the method looks at calibration tokens."""
    repair = REPAIRS[config.repair_name]
    inputs = inputs_needed(config.importance_name)
    terms = terms_needed(config)
    return bool(inputs or terms or repair.needs or repair.fit)


def _gather(first: Run, configs: Sequence[PruneConfig]) -> None:
    """Every pass that some method needs, over all layers."""
    inputs = {
        name
        for config in configs
        for name in (
            *inputs_needed(config.importance_name),
            *REPAIRS[config.repair_name].needs,
        )
    }
    for asking in (False, True):
        alike = [c for c in configs if stages.asks_loss(c.fusion_name) is asking]
        terms = {name for c in alike for name in terms_needed(c)}
        if alike:
            first.sibling(alike[0]).gather(inputs, terms, everywhere=True)


def _row(run: Run, result: Result) -> dict[str, Any]:
    numbers: Mapping[str, Any] = result.numbers
    return {
        "method": run.config.method,
        "ratio": run.config.ratio,
        "repair": run.config.repair_name,
        "removed": numbers["removed_share"],
        "stock": numbers["form"]["stock"],
        "why_not_stock": numbers["form"]["why_not_stock"],
        "parameters": numbers["parameters"]["after"],
        "dense_parameters": numbers["parameters"]["before"],
        "bytes_each": run.opened.dtype.itemsize,
        "search": run.config.search_name,
        "seed": run.config.seed,
        "calibration": run.calibrated,
        "evaluation": numbers.get("evaluation"),
        "blend": numbers.get("blend"),
        "seconds": result.seconds["total"],
        "perplexity": [
            {name: entry[name] for name in ("window", "tokens", "before", "after")}
            for entry in numbers.get("perplexity", ())
        ],
    }
