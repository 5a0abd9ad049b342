"""Peak memory of gradient scores of a model of a billion parameters.

    python benchmarks/gradient_memory.py

The claim: gradients of a bf16 model need at most 2 GB above the interpreter with its imports, for
all Taylor terms at once (`first`: those of LLM-Pruner's default alone). The checkpoint, the
processes and the way of measuring are those of `memory.py`.
"""

import math
import sys
from functools import partial
from pathlib import Path
from typing import Any

import psutil

from memory import SIZES, Stages, build, in_fresh_process, main, measured, memory, surroundings

LIMIT = 2e9
SAMPLES, LENGTH = 10, 64
# Stages by the function that is called for each.
GRADIENTS = {
    "forward": ("gradients", "_Inputs.ascend"),
    "loss": ("gradients", "_start"),
    "backward": ("gradients", "_Descent.by_linears"),
}


def gradients(work: Path, *, everything: bool) -> dict[str, Any]:
    """Collect gradient terms of random windows; this is the process that the limit is about."""
    import torch
    import transformers.models.llama.modeling_llama  # noqa: F401

    from secateur.models import open_model
    from secateur.stats import GRADIENTS as TERMS
    from secateur.stats import Walk
    from secateur.stats import gradients as module

    clock = Stages()
    base = {"resident": psutil.Process().memory_info().rss, "anonymous": memory("RssAnon")}
    clock.watch("secateur.stats", GRADIENTS)
    torch.manual_seed(0)
    with clock("other"):
        opened = open_model(work / "dense")
        tokens = torch.randint(3, SIZES["vocab_size"], (SAMPLES, LENGTH))
        walk = Walk(opened.streamed(device="cpu"), tokens, batch=8)
        needs = TERMS if everything else ("batch_first",)
        found = module.collect_gradients(walk, opened.structure.axes, needs)
    total = sum(tally["batch_first"].sum().item() for tally in found.tallies.values())
    if not math.isfinite(total) or total == 0:
        raise SystemExit(f"the Taylor terms add up to {total}")
    return {
        "base": base,
        "peaks": clock.peaks,
        "spans": clock.spans,
        "threads": torch.get_num_threads(),
    }


PARTS = {
    "build": build,
    "first": partial(gradients, everything=False),
    "all": partial(gradients, everything=True),
}


def benchmark(work: Path, repeats: int) -> dict[str, Any]:
    """Build once, collect `repeats` times; everything that the JSON file holds."""
    built = in_fresh_process("build", work, __file__)
    print(f"built {built['parameters']:,} parameters in {built['shards']} shards", flush=True)
    first, everything = (
        [in_fresh_process(part, work, __file__) for _ in range(repeats)]
        for part in ("first", "all")
    )
    return {
        **surroundings(everything),
        "settings": {"samples": SAMPLES, "length": LENGTH},
        "model": SIZES | {"parameters": built["parameters"], "shards": built["shards"]},
        **measured(everything, LIMIT),
        "first only": measured(first, LIMIT),
    }


if __name__ == "__main__":
    sys.exit(main(str(__doc__), "gradient_memory", PARTS, benchmark))
