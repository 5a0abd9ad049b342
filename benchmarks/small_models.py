"""Perplexity of every method on small real models: the table of docs/log.md.

    python benchmarks/small_models.py --text stories.txt MODEL...

The text (documents separated by <|endoftext|>) is cut in two: its first half is for calibration,
its second for perplexity. Every method sees the same calibration tokens and removes the same share.
"""

import argparse
import json
import platform
import tempfile
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch
import transformers

import secateur
from secateur.cli.screen import table
from secateur.data.sources import SEPARATOR
from secateur.methods import METHODS

WINDOW = 128


def halves(text: Path, folder: Path) -> tuple[Path, Path]:
    """Write the two halves of the documents to `folder`; give their paths."""
    documents = text.read_text(encoding="utf-8").split(SEPARATOR)
    middle = len(documents) // 2
    paths = folder / "calibration.txt", folder / "heldout.txt"
    for path, part in zip(paths, (documents[:middle], documents[middle:]), strict=True):
        path.write_text(SEPARATOR.join(part), encoding="utf-8")
    return paths


def trial(model: str, texts: tuple[Path, Path], tokens: int, **settings: Any) -> dict[str, Any]:
    """Prune once and measure."""
    calibration, heldout = texts
    result = secateur.prune(
        model,
        calibration=str(calibration),
        evaluate=str(heldout),
        evaluate_tokens=tokens,
        **settings,
    )
    values = {entry["window"]: entry for entry in result.numbers["perplexity"]}
    return {
        "model": Path(model).name,
        **settings,
        "removed_share": result.numbers["removed_share"],
        "before": values[WINDOW]["before"],
        "after": values[WINDOW]["after"],
    }


def spread(values: list[float]) -> str:
    """Mean and, over several seeds, standard deviation."""
    return f"{mean(values):.2f}" + (f" ± {stdev(values):.2f}" if len(values) > 1 else "")


def main() -> None:
    """Run all trials, print one table a model, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="+")
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--tokens", type=int, default=50_000, help="of held-out text")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--json", type=Path, default=Path("benchmarks/results/small_models.json"))
    arguments = parser.parse_args()
    transformers.logging.set_verbosity_error()

    trials: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        texts = halves(arguments.text, Path(folder))
        for model in arguments.models:
            for method in METHODS:
                for ratio in (0.2, 0.5):
                    for seed in range(arguments.seeds):
                        settings = {"method": method, "ratio": ratio, "seed": seed, "align": 1}
                        trials.append(trial(model, texts, arguments.tokens, **settings))
    for name in dict.fromkeys(entry["model"] for entry in trials):
        here = [entry for entry in trials if entry["model"] == name]
        rows = []
        for method in METHODS:
            cells = [
                spread([e["after"] for e in here if (e["method"], e["ratio"]) == (method, ratio)])
                for ratio in (0.2, 0.5)
            ]
            rows.append((method, *cells))
        dense = here[0]["before"]
        title = f"{name}: perplexity per token, window {WINDOW}; dense {dense:.2f}"
        table(title, ("method", "20% removed", "50% removed"), rows)
    arguments.json.parent.mkdir(parents=True, exist_ok=True)
    versions = {"torch": torch.__version__, "transformers": transformers.__version__}
    machine = {"processor": platform.machine(), "threads": torch.get_num_threads()}
    record = {"machine": machine, "versions": versions, "trials": trials}
    arguments.json.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
