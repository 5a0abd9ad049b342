"""The zero-shot tasks of real models, by us and by the harness's own run, item by item.

    python benchmarks/zero_shot.py DENSE [SMALL ...] --tasks FOLDER/ --limit 500 --out a.json

Ours streams layers; the harness's is `lm_eval --model hf` with all weights in memory, on the same
questions. `alike` counts the items of which both say the same: right or wrong by `acc`, and by
`acc_norm`. What the file has is not run again.
"""

import argparse
import json
import platform
import time
import warnings
from pathlib import Path
from typing import Any

import torch
import transformers

import secateur
from secateur.evaluation import harness
from secateur.evaluation.tasks import asked_tasks


def of_harness(model: str, arguments: argparse.Namespace) -> dict[str, dict[str, list[float]]]:
    """Every item's metrics, by task, by the harness's own `hf`."""
    from lm_eval.evaluator import evaluate
    from lm_eval.models.huggingface import HFLM

    run = harness()
    own = HFLM(
        pretrained=model,
        trust_remote_code=True,
        device="cpu",
        batch_size=arguments.batch,
        dtype=arguments.dtype,
    )
    tasks = run.loaded(asked_tasks([arguments.tasks]))
    found = evaluate(own, tasks, limit=arguments.limit, bootstrap_iters=0, log_samples=True)
    return {
        name: {
            metric: [float(one[metric]) for one in samples if metric in one]
            for metric in ("acc", "acc_norm")
        }
        for name, samples in found["samples"].items()
    }


def row_of(model: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """One model: our numbers, seconds of both, and how many items are alike."""
    started = time.monotonic()
    ours = secateur.evaluate(
        model, tasks=arguments.tasks, limit=arguments.limit, dtype=arguments.dtype
    )
    between = time.monotonic()
    theirs = {} if arguments.ours else of_harness(model, arguments)
    row: dict[str, Any] = {"seconds": round(between - started, 1), "tasks": {}}
    if theirs:
        row["seconds_harness"] = round(time.monotonic() - between, 1)
    for task in ours.tasks:
        told = task.to_json()
        other = theirs.get(task.name, {})
        told["alike"] = {
            metric: sum(a == b for a, b in zip(values, other[metric], strict=True))
            for metric, values in task.values.items()
            if other.get(metric)
        }
        row["tasks"][task.name] = told
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="+")
    parser.add_argument("--tasks", required=True)
    parser.add_argument("--limit", type=int, default=500)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--ours", action="store_true", help="leave the harness's own run out")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    transformers.logging.set_verbosity_error()
    warnings.simplefilter("ignore")
    found: dict[str, Any] = {"rows": {}}
    if arguments.out.exists():
        found = json.loads(arguments.out.read_text())
    found["about"] = {
        "limit": arguments.limit, "dtype": arguments.dtype, "torch": torch.__version__,
        "machine": platform.machine(),
    }  # fmt: skip
    for model in arguments.models:
        name = Path(model).name
        if name not in found["rows"]:
            found["rows"][name] = row_of(model, arguments)
            print(name, json.dumps(found["rows"][name]), flush=True)
            arguments.out.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
