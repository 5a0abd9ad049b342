"""Perplexity after every repair on small real models: the table of docs/log.md.

    python benchmarks/repairs.py --text stories.txt MODEL...

As `small_models.py`: the first half of the text's documents calibrates, the second half is held
out. All repairs mend the same cut, FLAP's.
"""

import argparse
import math
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor

from secateur.cli.screen import table
from secateur.config import PruneConfig, make_config
from secateur.data import Text
from secateur.evaluation import perplexity
from secateur.export import pruned_form
from secateur.models import OpenModel, StreamedModel, open_model
from secateur.pipeline import (
    added_biases,
    calibration_windows,
    evaluation_text,
    kept_units,
    scores,
)
from secateur.stats import Walk, collect
from secateur.structure import Plan
from secateur.surgery import TARGETS, pruned_view, sequential_repair
from small_models import WINDOW, halves

SEQUENTIAL: dict[str, dict[str, Any]] = {
    "sequential bias": {"damping": math.inf},
    "mask_tuning": {"fit": "mask_tuning"},
    **{f"refit, {target}": {"target": target} for target in TARGETS},
    "refit, residual, cut consumers only": {"every": False},
}


def measured(opened: OpenModel, plan: Plan, text: Text, **tensors: Mapping[str, Tensor]) -> float:
    """Held-out perplexity of the model cut by `plan`, with `added` or `replaced` tensors."""
    weights = pruned_view(opened.weights, opened.structure, plan, **tensors)
    form = pruned_form(
        opened.family, opened.raw_config, opened.config, opened.structure, plan, weights
    )
    source = StreamedModel(
        form.empty(torch.float32), opened.family, form.weights, torch.device("cpu")
    )
    windows = text.windows(WINDOW)
    return perplexity(source, windows, batch=32, begin=text.begin.window).value


def trials(config: PruneConfig, text: Text, opened: OpenModel) -> dict[str, float]:
    """Perplexity by repair."""
    windows = calibration_windows(opened, config).ids
    source = opened.streamed(device="cpu", dtype="float32")
    axes = opened.structure.axes
    statistics = collect(Walk(source, windows, batch=16), axes, ["input_mean", "input_var"])
    found = scores(axes, "wifv", opened.weights, statistics, seed=0)
    keep = kept_units(opened.structure, found, config)
    plan = Plan(keep, opened.structure.architecture, opened.structure.weights)
    added = added_biases(opened.structure, plan, "bias", opened.weights, statistics)
    values = {
        "none": measured(opened, plan, text),
        "bias": measured(opened, plan, text, added=added),
    }
    for name, options in SEQUENTIAL.items():
        walk = Walk(source, windows, batch=16)
        repaired = sequential_repair(walk, opened.structure, plan, **options)
        values[name] = measured(opened, plan, text, replaced=repaired.tensors)
    return values


def main() -> None:
    """Run all trials, print one table a model."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="+")
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--tokens", type=int, default=50_000, help="of held-out text")
    arguments = parser.parse_args()
    transformers.logging.set_verbosity_error()
    with tempfile.TemporaryDirectory() as folder:
        calibration, heldout = halves(arguments.text, Path(folder))
        for model in arguments.models:
            opened = open_model(model)
            text = evaluation_text(opened, str(heldout), tokens=arguments.tokens)
            whole = Plan({}, opened.structure.architecture, opened.structure.weights)
            dense = measured(opened, whole, text)
            columns = []
            for ratio in (0.2, 0.5):
                config = make_config(
                    model=model,
                    ratio=ratio,
                    align=1,
                    length=256,
                    calibration=str(calibration),
                    evaluate="none",
                )
                columns.append(trials(config, text, opened))
            rows = [(name, *(f"{column[name]:.2f}" for column in columns)) for name in columns[0]]
            title = f"{Path(model).name}: perplexity, window {WINDOW}; dense {dense:.2f}"
            table(title, ("repair", "20% removed", "50% removed"), rows)


if __name__ == "__main__":
    main()
