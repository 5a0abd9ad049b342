"""Peak memory of pruning layers as wide as those of a model of 70 billion parameters.

    python benchmarks/large_layers.py

The claim: FLAP, HyWIA and a refit prune a model whose layers take 1.7 GB each within two and a half
of them and 1 GB, whatever the number of layers. Layers of 8,192 with MLPs of 28,672 and 64 query
heads of 8 groups, three of them, 5 GB in bf16 of random weights, and 4 windows of 64 tokens. Each
method has a process of its own; how the peak is taken is told in `memory.py`.
"""

import math
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from memory import STAGES, Stages, in_fresh_process, main, measured, surroundings
from memory import memory as of_process
from random_llama import Shape, write_model

SHAPE = Shape(layers=3, hidden=8192, mlp=28672, heads=64, kv_heads=8, vocabulary=32000)
LAYER = 2 * sum(math.prod(size) for size in SHAPE.layer.values())
LIMIT = 2.5 * LAYER + 1e9
WINDOWS, TOKENS = 4, 64
METHODS: dict[str, dict[str, Any]] = {
    "flap": {"method": "flap"},
    "hywia": {"method": "hywia", "repair": "none"},
    "refit": {"method": "flap", "repair": "refit"},
}


def build(work: Path) -> dict[str, Any]:
    """Write the dense checkpoint, a layer at a time."""
    import torch

    write_model(work / "dense", SHAPE, torch.device("cpu"))
    return {"peak": of_process("VmHWM")}


def prune(name: str, work: Path) -> dict[str, Any]:
    """Prune by one method; this is the process that the limit is about."""
    import psutil
    import torch
    import transformers.models.llama.modeling_llama  # noqa: F401

    import secateur

    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(3, SHAPE.vocabulary, (WINDOWS, TOKENS), generator=generator)
    clock = Stages()
    base = {"resident": psutil.Process().memory_info().rss, "anonymous": of_process("RssAnon")}
    clock.watch("secateur.pipeline", STAGES)
    settings = {**METHODS[name], "ratio": 0.2, "evaluate": "none", "prompts": 0}
    with clock("other"):
        result = secateur.prune(
            work / "dense", out=work / "pruned", force=True, calibration=tokens, **settings
        )
    return {
        "base": base,
        "peaks": clock.peaks,
        "spans": clock.spans,
        "parameters": result.numbers["parameters"]["after"],
        "threads": torch.get_num_threads(),
    }


PARTS: dict[str, Callable[[Path], dict[str, Any]]] = {
    "build": build,
    **{name: partial(prune, name) for name in METHODS},
}


def benchmark(work: Path, repeats: int) -> dict[str, Any]:
    """Build once, prune by each method `repeats` times."""
    in_fresh_process("build", work, __file__)
    found, about = {}, {}
    for name in METHODS:
        reports = [in_fresh_process(name, work, __file__) for _ in range(repeats)]
        found[name], about = measured(reports, LIMIT), surroundings(reports)
        seconds = found[name]["above imports"]["total"]["seconds"]["median"]
        print(f"{name}: {found[name]['peak'] / 1e9:.2f} GB, {seconds:.0f} s", flush=True)
    worst = max(found.values(), key=lambda own: float(own["peak"]))
    return {
        **about,
        "model": vars(SHAPE) | {"bytes": SHAPE.bytes, "bytes of a layer": LAYER},
        "windows": WINDOWS,
        "tokens": TOKENS,
        "methods": found,
        "limit": LIMIT,
        "peak": worst["peak"],
        "above imports": worst["above imports"],
    }


if __name__ == "__main__":
    sys.exit(main(str(__doc__), "large_layers", PARTS, benchmark))
