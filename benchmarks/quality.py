"""Perplexity of real language models after every method: the table of docs/log.md.

    python benchmarks/quality.py MODEL --calibration c4.jsonl --heldout wikitext2.txt --out a.json

All calibrate on the same windows of one text and are measured on another. Each row is one call of
`prune`; what the JSON file of the model has is not run again, so that the run can be ended at any
time. With `--page`, the tables alone are written from what is there.
"""

import argparse
import json
import platform
import re
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from statistics import mean, stdev
from typing import Any
from unittest import mock

import torch
import transformers

import secateur
from secateur.models import dtype_name, open_model

# By name: what is asked of `prune`. The first are the ones that the others are compared with. Those
# that distil do it for so many minutes as are asked.
TRIALS: dict[str, dict[str, Any]] = {
    "FLAP": {"method": "flap"},
    "best": {"method": "best"},
    "best, then distil": {"method": "best", "recipe": "distil"},
    "FLAP, refit": {"method": "flap", "repair": "refit"},
    "best, effort fast": {"method": "best", "effort": "fast"},
    "best, effort max": {"method": "best", "effort": "max"},
    "fast without selection: by variance": {"method": "obs-loss", "importance": "wifv"},
    "fast without allocation: the same share of each layer": {
        "method": "obs-loss",
        "search": "uniform",
    },
    "fast without errors weighed by loss": {"method": "obs-loss", "importance": "obs"},
    "fast without weighing tokens": {"method": "obs-loss", "tokens": "alike"},
    "fast without refit: bias alone": {"method": "obs-loss", "repair": "bias"},
    "fast without repair": {"method": "obs-loss", "repair": "none"},
    "FLAP, then distil": {"method": "flap", "recipe": "distil"},
    "Wanda-sp": {"method": "wanda-sp"},
    "Wanda-sp, refit": {"method": "wanda-sp", "repair": "refit"},
    "LLM-Pruner": {"method": "llm-pruner"},
    "LLM-Pruner, refit": {"method": "llm-pruner", "repair": "refit"},
    "SAAP": {"method": "saap"},
    "SAAP, refit": {"method": "saap", "repair": "refit"},
    "HyWIA, no repair": {"method": "hywia", "repair": "none"},
    "HyWIA": {"method": "hywia"},
    "magnitude, refit": {"method": "magnitude", "repair": "refit"},
    "random, refit": {"method": "random", "repair": "refit"},
}
RATIOS = (0.2, 0.5)
DENSE = "dense"


def key(name: str, ratio: float, seed: int) -> str:
    """Where a row is in the file."""
    return f"{name} | {ratio} | {seed}"


def measured(model: str | Path, arguments: argparse.Namespace) -> float:
    """Perplexity on the held-out text."""
    (found,) = secateur.evaluate(
        model,
        str(arguments.heldout),
        evaluate_lengths=[arguments.window],
        evaluate_tokens=arguments.tokens,
        dtype=arguments.dtype,
    )
    return found.value


@contextmanager
def tokens_alike() -> Iterator[None]:
    """While entered, every token of a score or a repair counts the same, sinks too."""

    def ones(stream: torch.Tensor, _: object = None) -> torch.Tensor:
        return torch.ones(stream.shape[:-1], device=stream.device)

    with (
        mock.patch("secateur.stats.spread.token_weights", ones),
        mock.patch("secateur.surgery.streams.token_weights", ones),
    ):
        yield


def trial(
    model: str, name: str, settings: Mapping[str, Any], arguments: argparse.Namespace
) -> dict[str, Any]:
    """The row `name`: perplexity, seconds (of what the store has not), parameters."""
    settings = dict(settings)
    recipe = settings.pop("recipe", None)
    alike = settings.pop("tokens", None) == "alike"
    settings |= {
        "calibration": str(arguments.calibration),
        "samples": arguments.samples,
        "length": arguments.length,
        "dtype": arguments.dtype,
        "evaluate": "none",
        "prompts": 0,
        # of what it keeps, nothing is known to depend on how tokens count
        "store": None if alike else arguments.store,
    }
    row: dict[str, Any] = {}
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder, tokens_alike() if alike else nullcontext():
        kept = (arguments.keep or Path(folder)) / Path(model).name
        kept.mkdir(parents=True, exist_ok=True)
        small = kept / "-".join(re.findall(r"[\w.]+", name))
        if recipe is None:
            result = secateur.prune(model, out=small, force=True, **settings)
        else:
            result, recovery = secateur.prune_and_recover(
                model, out=small, force=True, recipe=recipe, **settings
            )
            row["steps"] = recovery.config.steps
        row["seconds"] = round(time.monotonic() - started, 1)
        row["perplexity"] = measured(small, arguments)
    row["parameters"] = result.numbers["parameters"]
    row |= {k: result.numbers[k] for k in ("contest", "search") if result.numbers.get(k)}
    return row


def limits(name: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """How many minutes the row `name` may take, where it is asked for some."""
    settings = TRIALS[name]
    if settings.get("recipe"):
        return {"minutes": arguments.minutes}
    if settings.get("effort") == "max" and arguments.search_minutes is not None:
        return {"search_minutes": arguments.search_minutes}
    return {}


def computed_in(model: str, dtype: str) -> str:
    """The dtype that `dtype` comes to here."""
    return dtype_name(open_model(model).streamed(dtype=dtype).dtype)


def page(found: Mapping[str, Any], model: str) -> str:
    """The table of a model, in Markdown: mean and spread over seeds, and shares."""
    rows = found["rows"]
    dense = rows[DENSE]["perplexity"]
    lines = [
        f"### {model}",
        "",
        f"{found['about']} Dense {dense:.2f}. In brackets, the share of FLAP's increase.",
        "",
        "| what | " + " | ".join(f"{ratio:.0%} removed" for ratio in RATIOS) + " |",
        "|---|" + "---|" * len(RATIOS),
    ]
    missing = []
    for name in TRIALS:
        cells = [_cell(rows, name, ratio) for ratio in RATIOS]
        if any(cells):
            lines.append(f"| {name} | " + " | ".join(cell or "-" for cell in cells) + " |")
        else:
            missing.append(name)
    if missing:
        lines += ["", f"Not measured: {'; '.join(missing)}."]
    return "\n".join(lines)


def _cell(rows: Mapping[str, Any], name: str, ratio: float) -> str:
    """Mean, spread, share and number of seeds where there is more than one; "": not measured."""
    own = [_of(rows, name, ratio, seed) for seed in range(100)]
    flap = [_of(rows, "FLAP", ratio, seed) for seed in range(100)]
    dense = rows[DENSE]["perplexity"]
    values = [value for value in own if value is not None]
    if not values:
        return ""
    both = [(a, b) for a, b in zip(own, flap, strict=True) if a and b]
    spread = f" ± {stdev(values):.1f}" if len(values) > 1 else ""
    shares = mean((a - dense) / (b - dense) for a, b in both) if both else None
    share = "" if shares is None else f" ({shares:.0%})"
    seeds = f", {len(values)} seeds" if len(values) > 1 else ""
    return f"{mean(values):,.1f}{spread}{share}{seeds}"


def _of(rows: Mapping[str, Any], name: str, ratio: float, seed: int) -> float | None:
    row = rows.get(key(name, ratio, seed))
    return None if row is None else float(row["perplexity"])


def asked(arguments: argparse.Namespace) -> Iterable[tuple[str, float, int]]:
    """The rows, in the order in which they are run."""
    for seed in range(arguments.from_seed, arguments.seeds):
        for name in arguments.only or TRIALS:
            for ratio in arguments.ratios:
                yield name, ratio, seed


def main() -> None:
    """Run what is missing, then print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("--calibration", type=Path, required=True)
    parser.add_argument("--heldout", type=Path, required=True)
    parser.add_argument("--samples", type=int, default=32)
    parser.add_argument("--length", type=int, default=1024)
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--window", type=int, default=1024)
    parser.add_argument("--tokens", type=int, default=2**16)
    parser.add_argument("--minutes", type=float, default=30.0, help="of a distillation")
    parser.add_argument("--search-minutes", type=float, help="of the search of --effort max")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--from-seed", type=int, default=0)
    parser.add_argument("--ratios", type=float, nargs="+", default=list(RATIOS))
    parser.add_argument("--only", nargs="+", choices=list(TRIALS))
    parser.add_argument("--store", type=Path, help="keeps passes over the model for other rows")
    parser.add_argument("--keep", type=Path, help="a folder for the models, which are lost without")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--page", action="store_true")
    arguments = parser.parse_args()
    transformers.logging.set_verbosity_error()
    torch.manual_seed(0)
    found: dict[str, Any] = {"rows": {}}
    if arguments.out.exists():
        found = json.loads(arguments.out.read_text())
    about = (
        f"{arguments.samples} windows of {arguments.length} tokens of {arguments.calibration.name};"
        f" perplexity on {arguments.heldout.name}, window {arguments.window},"
        f" {arguments.tokens:,} tokens; {arguments.dtype}; {platform.machine()}, torch"
        f" {torch.__version__}."
    )
    if found.setdefault("about", about) != about:
        parser.error(f"{arguments.out} is of {found['about']}; name another --out.")
    if not arguments.page:
        if DENSE not in found["rows"]:
            found["rows"][DENSE] = {"perplexity": measured(arguments.model, arguments)}
        dtype = computed_in(arguments.model, arguments.dtype)
        for name, ratio, seed in asked(arguments):
            place, own = key(name, ratio, seed), limits(name, arguments)
            if place in found["rows"]:
                there = {what: found["rows"][place].get(what) for what in own}
                if there != own:
                    parser.error(f"{place} is there with {there}, not {own}: name another --out.")
                continue
            settings = {**TRIALS[name], **own, "ratio": ratio, "seed": seed}
            row = {**own, "dtype": dtype, **trial(arguments.model, place, settings, arguments)}
            found["rows"][place] = row
            print(place, row, flush=True)
            arguments.out.write_text(json.dumps(found, indent=1) + "\n")
    print(page(found, Path(arguments.model).name))


if __name__ == "__main__":
    main()
