"""What every recovery brings back on a small real model: the table of docs/log.md.

    python benchmarks/recoveries.py MODEL --best wanda-sp --stories stories.txt
    python benchmarks/recoveries.py MODEL --best llm-pruner --calibration a.jsonl --heldout b.txt

The bases are FLAP as published, and the method named with `--best`, repaired by `refit`. All
recipes see the same examples, about as often: 200 steps of 16, or 2 epochs over 1,600 of them, each
as long as the windows of the perplexity. Each trial runs in a process of its own with one thread,
for its peak memory and its processor time.
Results go into a JSON file for each model, one by one; what is there already is not run again, so
that a run can be cut short. The texts are those of `small_models.py`: nothing is trained on what is
measured.
"""

import argparse
import json
import multiprocessing
import platform
import resource
import tempfile
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import torch
import transformers

import secateur
from secateur.models import open_model
from secateur.pipeline import evaluate
from secateur.recovery import quantised
from small_models import WINDOW, halves, spread

RATIOS = (0.2, 0.5)
EXAMPLES = 1_600
RECIPES: dict[str, tuple[dict[str, Any], ...]] = {
    "distil": ({"recipe": "distil"},),
    "lora": ({"recipe": "lora"},),
    "groupwise, L = 16": ({"recipe": "groupwise", "group": 16},),
    "groupwise, L = 32": ({"recipe": "groupwise", "group": 32},),
    "groupwise, L = 64": ({"recipe": "groupwise", "group": 64},),
    "groupwise by next token, L = 32": (
        {"recipe": "groupwise", "group": 32, "loss": "next-token"},
    ),
    "distil, then groupwise, L = 32": (
        {"recipe": "distil"},
        {"recipe": "groupwise", "group": 32},
    ),
}
# What is rounded, too, without training in few bits.
ROUNDED = {name: f"{name}, then 4 bits, L = 32" for name in ("distil", "lora")}


def linear_bytes(folder: Path) -> int:
    """Bytes in the weight files that the decoder's linears take, codes and grids included."""
    from safetensors import safe_open

    total = 0
    for file in folder.glob("*.safetensors"):
        with safe_open(file, framework="pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118 (not a dict)
                if "_proj." in name and not name.endswith(".bias"):
                    tensor = tensors.get_tensor(name)
                    total += tensor.numel() * tensor.itemsize
    return total


def measured(folder: str | Path, texts: Sequence[str], tokens: int) -> dict[str, float]:
    """Perplexity on each of the texts."""
    options: dict[str, Any] = {"evaluate_tokens": tokens, "evaluate_lengths": [WINDOW]}
    return {Path(text).name: evaluate(folder, text, **options)[0].value for text in texts}


def pruned(model: str, out: Path, data: str, seed: int, **settings: Any) -> None:
    """The base that recoveries start from."""
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    given: dict[str, Any] = {"align": 1, "length": 256, "evaluate": "none", "seed": seed}
    secateur.prune(model, calibration=data, out=out, **given, **settings)


def recovered(
    base: Path, out: Path, recipes: Sequence[Mapping[str, Any]], **settings: Any
) -> dict[str, Any]:
    """Recoveries one after the other: processor minutes, peak above the loaded model in MB."""
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    open_model(base).whole(torch.float32)  # what any use of the model takes
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    started = time.process_time()
    with tempfile.TemporaryDirectory(dir=out.parent) as between:
        for number, recipe in enumerate(recipes, 1):
            to = out if number == len(recipes) else Path(between) / str(number)
            options = {"evaluate": "none", "force": True, **settings, **recipe}
            done = secateur.recover(base, out=to, **options)
            base = to
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {
        "minutes": (time.process_time() - started) / 60,
        "peak_mb": (peak - before) / 1024,
        "steps": done.numbers["steps"],
        "best_step": done.numbers["best_step"],
    }


def rounded(folder: Path, texts: Sequence[str], tokens: int) -> dict[str, float]:
    """Perplexity with the linears rounded to the min-max grid of 4 bits and groups of 32."""
    model = secateur.load(folder)
    for name, module in model.named_modules():
        if "_proj" in name and isinstance(module, torch.nn.Linear):
            found = quantised(module.weight.detach(), 4, 32, storage=torch.float16)
            module.weight.data = found.weight.to(module.weight.dtype)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    options: dict[str, Any] = {
        "evaluate_tokens": tokens,
        "evaluate_lengths": [WINDOW],
        "tokenizer": tokenizer,
    }
    return {Path(text).name: evaluate(model, text, **options)[0].value for text in texts}


class Results:
    """Trials in a JSON file, by base, ratio, seed and recipe."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.trials: list[dict[str, Any]] = json.loads(path.read_text()) if path.is_file() else []

    def has(self, **key: Any) -> bool:
        """Whether a trial was run before."""
        return any(key.items() <= trial.items() for trial in self.trials)

    def add(self, **trial: Any) -> None:
        """Keep a trial, now."""
        versions = {"torch": torch.__version__, "transformers": transformers.__version__}
        self.trials.append({**trial, **versions, "processor": platform.machine()})
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._path.write_text(json.dumps(self.trials, indent=1) + "\n", encoding="utf-8")


def alone(function: Any, *arguments: Any, **options: Any) -> Any:
    """The result of a call in a fresh process."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(max_workers=1, mp_context=context) as pool:
        return pool.submit(function, *arguments, **options).result()


def run_trials(
    given: argparse.Namespace, results: Results, data: str, texts: Sequence[str], work: Path
) -> None:
    """Every base, ratio and recipe for every seed, the seeds one after the other."""
    names = given.recipes.split(";")
    bases = {
        "flap": {"method": "flap"},
        f"{given.best} + refit": {"method": given.best, "repair": "refit"},
    }
    if not results.has(base="dense"):
        values = measured(given.model, texts, given.tokens)
        dense = {"base": "dense", "ratio": 0.0, "seed": 0, "recipe": "none", "perplexity": values}
        results.add(**dense, **sizes(Path(given.model)))
    for seed in range(given.first, given.first + given.seeds):
        for base, settings in bases.items():
            for ratio in RATIOS:
                key = {"base": base, "ratio": ratio, "seed": seed}
                wanted = [
                    name
                    for name in ("none", *names)
                    if any(
                        not results.has(**key, recipe=n) for n in (name, ROUNDED.get(name, name))
                    )
                ]
                if not wanted:
                    continue
                folder = work / "base"
                alone(pruned, given.model, folder, data, seed, ratio=ratio, force=True, **settings)
                if "none" in wanted:
                    values = measured(folder, texts, given.tokens)
                    results.add(**key, recipe="none", perplexity=values, **sizes(folder))
                for name in (n for n in wanted if n != "none"):
                    out = work / name
                    options = {"data": data, "teacher": given.model, "seed": seed}
                    options |= {"samples": EXAMPLES, "length": WINDOW}
                    taken = alone(recovered, folder, out, RECIPES[name], **options)
                    if not results.has(**key, recipe=name):
                        values = measured(out, texts, given.tokens)
                        results.add(**key, recipe=name, perplexity=values, **taken, **sizes(out))
                    if name in ROUNDED and not results.has(**key, recipe=ROUNDED[name]):
                        values = rounded(out, texts, given.tokens)
                        results.add(**key, recipe=ROUNDED[name], perplexity=values)


def sizes(folder: Path) -> dict[str, int]:
    """Bytes of the weight files, and of the linears in them."""
    files = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    return {"bytes": files, "linear_bytes": linear_bytes(folder)}


def markdown(trials: Sequence[Mapping[str, Any]]) -> str:
    """A line for each base, ratio and recipe; mean and spread over the seeds."""
    texts = list(trials[0]["perplexity"])
    heads = ["base", "ratio", "recovery", *texts]
    heads += ["seeds", "CPU minutes", "peak, MB", "linears, kB"]
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    kinds = dict.fromkeys((t["base"], t["ratio"], t["recipe"]) for t in trials)
    order = ["none", "distil", "lora", *ROUNDED.values(), *(n for n in RECIPES if "group" in n)]
    for kind in sorted(kinds, key=lambda kind: (kind[1], kind[0], order.index(kind[2]))):
        here = [t for t in trials if (t["base"], t["ratio"], t["recipe"]) == kind]
        cells = [spread([t["perplexity"][text] for t in here]) for text in texts]
        cells.append(str(len(here)))
        for name, scale in (("minutes", 1), ("peak_mb", 1), ("linear_bytes", 1e-3)):
            values = [t[name] * scale for t in here if name in t]
            cells.append(f"{sum(values) / len(values):,.1f}" if values else "")
        lines.append(f"| {kind[0]} | {kind[1]:.0%} | {kind[2]} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    """Run what is missing of one model's trials; print its table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("model")
    parser.add_argument("--best", default="wanda-sp", help="method of the second base")
    parser.add_argument("--stories", type=Path)
    parser.add_argument("--calibration", type=Path)
    parser.add_argument("--heldout", type=Path, action="append", default=[])
    parser.add_argument("--recipes", default=";".join(RECIPES), help="names, ';' between them")
    parser.add_argument("--tokens", type=int, default=50_000, help="of each held-out text")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--first", type=int, default=0, help="the first of the seeds")
    parser.add_argument("--results", type=Path, default=Path("benchmarks/results/recoveries"))
    given = parser.parse_args()
    transformers.logging.set_verbosity_error()
    name = Path(given.model).name
    results = Results(given.results / f"{name}.json")
    with tempfile.TemporaryDirectory() as folder:
        data, texts = given.calibration, list(given.heldout)
        if given.stories is not None:
            data, heldout = halves(given.stories, Path(folder))
            texts = [heldout]
        run_trials(given, results, str(data), [str(text) for text in texts], Path(folder))
    print(f"{name}: perplexity per token, window {WINDOW}\n")
    print(markdown(results.trials))


if __name__ == "__main__":
    main()
