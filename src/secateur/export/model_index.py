"""The perplexities of a run as the hub reads them: the `model-index` at the head of a card.

https://huggingface.co/docs/hub/model-cards#evaluation-results. One result for each length of
window; its value is that of the model in the folder, rounded as in the table of the card. `args`
say what the value depends on, and what it was before.
"""

import math
from collections.abc import Mapping
from typing import Any

from ..data import HUB_SETS
from .markdown import one_line, without_place, without_places

# Data sets are called by their names on the hub, any other text so.
_LOCAL = "text"


def model_index(
    name: str, numbers: Mapping[str, Any], settings: Mapping[str, Any]
) -> list[dict[str, Any]]:
    """The results of the model `name`; none where no perplexity was taken.

    `numbers` are a run's: `perplexity` by window and `evaluation`, the text. Of that, as of all
    paths among `settings`, the name alone is told.
    """
    from huggingface_hub import EvalResult
    from huggingface_hub.repocard_data import eval_results_to_model_index

    rows = numbers.get("perplexity", ())
    if not rows:
        return []
    text = _text(numbers["evaluation"], settings)
    results = [
        EvalResult(
            task_type="text-generation",
            task_name="Text generation",
            metric_type="perplexity",
            metric_name=f"Perplexity per token, windows of {row['window']}",
            metric_value=_shown(row["after"]),
            metric_args={
                "window": row["window"],
                "tokens": row["tokens"],
                "before": _shown(row["before"]),
            },
            **text,
        )
        for row in rows
    ]
    return eval_results_to_model_index(one_line(name), results)


def _text(evaluation: Mapping[str, Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    """What a result says of the text: where it is from, which part of that it is."""
    name, source = str(evaluation["text"]), str(evaluation["source"])
    told = one_line(without_places(name, {**settings, "source": source}))
    known = HUB_SETS.get(source)
    if known is None:
        on_hub = "/" in source and without_place(source) == source
        return {"dataset_type": source if on_hub else _LOCAL, "dataset_name": told}
    spare = name != source
    found: dict[str, Any] = {
        "dataset_type": known.path,
        "dataset_name": told,
        "dataset_config": known.config,
        "dataset_revision": known.revision,
    }
    if known.files:
        return {**found, "dataset_args": {"data_files": known.files[0 if spare else 1]}}
    return {**found, "dataset_split": known.calibration if spare else known.evaluation}


def _shown(value: float) -> float | str:
    """As tables have it; JSON has no number for what is not finite."""
    return round(value, 2) if math.isfinite(value) else str(value)
