"""Perplexity of every method with every repair on a small real model: the tables of docs/log.md.

    python benchmarks/small_models.py MODEL --stories stories.txt
    python benchmarks/small_models.py MODEL --calibration a.jsonl --heldout b.txt --heldout c.txt

Stories (documents separated by <|endoftext|>) are cut in two: the first half is for calibration,
the second for perplexity. With a seed every method sees the same calibration tokens, and all remove
the same share. Seeds choose the windows and what `random` removes; those that the JSON file has are
not run again.
"""

import argparse
import json
import platform
import tempfile
from collections.abc import Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch
import transformers

from secateur.data.sources import SEPARATOR
from secateur.methods import METHODS
from secateur.pipeline import Result, compare, evaluate
from secateur.surgery import REPAIRS

WINDOW = 128
RATIOS = (0.2, 0.5)


def halves(text: Path, folder: Path) -> tuple[Path, Path]:
    """Write the two halves of the documents to `folder`; give their paths."""
    documents = text.read_text(encoding="utf-8").split(SEPARATOR)
    middle = len(documents) // 2
    paths = folder / "calibration.txt", folder / "heldout.txt"
    for path, part in zip(paths, (documents[:middle], documents[middle:]), strict=True):
        path.write_text(SEPARATOR.join(part), encoding="utf-8")
    return paths


def trials(
    model: str, calibration: Path, texts: Sequence[Path], tokens: int, seed: int, **settings: Any
) -> list[dict[str, Any]]:
    """One row a method, repair and ratio: perplexity on each of the texts."""
    found: list[dict[str, float]] = []

    def measure(result: Result) -> None:
        options: dict[str, Any] = {
            "evaluate_tokens": tokens,
            "evaluate_lengths": [WINDOW],
            "tokenizer": tokenizer,
        }
        loaded = result.load()
        values = [evaluate(loaded, str(text), **options)[0].value for text in texts]
        found.append(dict(zip((text.name for text in texts), values, strict=True)))

    tokenizer = transformers.AutoTokenizer.from_pretrained(model)
    rows = compare(
        model,
        ratios=RATIOS,
        calibration=str(calibration),
        evaluate="none",
        seed=seed,
        align=1,
        length=256,
        each=measure,
        **settings,
    )
    kept = ("method", "repair", "ratio", "removed")
    return [
        {**{name: row[name] for name in kept}, "seed": seed, "perplexity": values}
        for row, values in zip(rows, found, strict=True)
    ]


def markdown(rows: Sequence[dict[str, Any]], dense: dict[str, float]) -> str:
    """One table for each ratio and text: a line a method, a column a repair."""
    methods, repairs = (
        list(dict.fromkeys(row[name] for row in rows)) for name in ("method", "repair")
    )
    lines: list[str] = []
    for ratio in RATIOS:
        for text, value in dense.items():
            lines += [f"| {ratio:.0%}, {text} (dense {value:.2f}) | {' | '.join(repairs)} |"]
            lines += ["|---" * (1 + len(repairs)) + "|"]
            for method in methods:
                cells = [
                    spread(
                        [
                            row["perplexity"][text]
                            for row in rows
                            if (row["method"], row["repair"], row["ratio"])
                            == (method, repair, ratio)
                        ]
                    )
                    for repair in repairs
                ]
                lines.append(f"| {method} | {' | '.join(cells)} |")
            lines.append("")
    return "\n".join(lines)


def spread(values: list[float]) -> str:
    """Mean and, over several seeds, standard deviation."""
    return f"{mean(values):.2f}" + (f" ± {stdev(values):.2f}" if len(values) > 1 else "")


def main() -> None:
    """Run all trials of one model, print its table, put them in the JSON file."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("model")
    parser.add_argument("--stories", type=Path)
    parser.add_argument("--calibration", type=Path)
    parser.add_argument("--heldout", type=Path, action="append", default=[])
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("--repairs", default=",".join(REPAIRS))
    parser.add_argument("--tokens", type=int, default=50_000, help="of each held-out text")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--json", type=Path, default=Path("benchmarks/results/small_models.json"))
    given = parser.parse_args()
    transformers.logging.set_verbosity_error()
    name = Path(given.model).name
    record = json.loads(given.json.read_text()) if given.json.is_file() else {}
    with tempfile.TemporaryDirectory() as folder:
        calibration, texts = given.calibration, given.heldout
        if given.stories is not None:
            calibration, heldout = halves(given.stories, Path(folder))
            texts = [heldout]
        options: dict[str, Any] = {"evaluate_tokens": given.tokens, "evaluate_lengths": [WINDOW]}
        dense = {t.name: evaluate(given.model, str(t), **options)[0].value for t in texts}
        own = record.setdefault(
            name,
            {
                "machine": {"processor": platform.machine(), "threads": torch.get_num_threads()},
                "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
                "dense": dense,
                "trials": [],
            },
        )
        choices = {"methods": given.methods.split(","), "repairs": given.repairs.split(",")}
        there = {trial["seed"] for trial in own["trials"]}
        for seed in (seed for seed in range(given.seeds) if seed not in there):
            own["trials"] += trials(given.model, calibration, texts, given.tokens, seed, **choices)
            given.json.parent.mkdir(parents=True, exist_ok=True)
            given.json.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    print(f"{name}: perplexity per token, window {WINDOW}\n\n{markdown(own['trials'], dense)}")


if __name__ == "__main__":
    main()
