"""Many methods on one model: the same calibration tokens, the same ratios, shared statistics.

The model is opened once, the tokens are drawn once, and each kind of pass (inputs, gradients) is
made once for all methods that need it.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from ..config import PruneConfig, make_config
from ..errors import SecateurError
from ..progress import Progress
from ..surgery import REPAIRS
from . import stages
from .choice import check_ratio
from .estimate import inputs_needed, terms_needed
from .result import Result
from .session import Run, name_of


def compare(
    model: str | Path | nn.Module,
    *,
    methods: Sequence[str],
    ratios: Sequence[float],
    repairs: Sequence[str] = (),
    tokenizer: Any = None,
    progress: Progress | None = None,
    each: Callable[[Result], None] | None = None,
    **settings: Any,
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
    configs = [
        make_config(**settings, model=name_of(model), method=method, ratio=ratio, repair=repair)
        for method in methods
        for ratio in ratios
        for repair in (repairs or (None,))
    ]
    first = Run(model, configs[0], tokenizer, progress)
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


def _sees_tokens(config: PruneConfig) -> bool:
    """Whether anything in the method looks at calibration tokens."""
    repair = REPAIRS[config.repair_name]
    inputs = inputs_needed(config.importance_name)
    terms = terms_needed(config.importance_name, config.fusion_name)
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
        terms = {name for c in alike for name in terms_needed(c.importance_name, c.fusion_name)}
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
