"""Peak memory of a score that is made of Gram matrices, on a model of a billion parameters.

    python benchmarks/gram_memory.py

The claim: a Gram matrix [channel, channel] is there while its layer is, and goes with it: while
statistics are collected, memory stays within one decoder layer and 0.5 GB. All 16 layers' would be
3.5 GB. The model, the processes and how the peak is taken are those of `memory.py`.

The score is sum over the consumer's outputs of w_i (G w)_i, the part of channel i in the energy of
what the consumer gives, with G = X^T X.
"""

import sys
from pathlib import Path
from typing import Any

from memory import SETTINGS, SIZES, STAGES, Stages, build, in_fresh_process, main, measured
from memory import memory as of_process

SCORE = '''
from secateur.importance import importance


@importance("energy", paper="")
def energy(weight, input_gram):
    """The part of every channel in the energy of what its consumer gives."""
    flat = weight.flatten(0, 1)
    return (flat * (input_gram @ flat)).sum(dim=1).view(weight.shape[:2])
'''
# q, k, v, o, gate, up, down in bf16
HEADS = SIZES["hidden_size"] // SIZES["num_attention_heads"]
KV = SIZES["num_key_value_heads"] * HEADS
LAYER = (
    2 * SIZES["hidden_size"] * (2 * SIZES["hidden_size"] + 2 * KV + 3 * SIZES["intermediate_size"])
)
LIMIT = LAYER + 0.5e9


def prune(work: Path) -> dict[str, Any]:
    """Make a plan by the score; this is the process that the limit is about."""
    import psutil
    import torch
    import transformers.models.llama.modeling_llama  # noqa: F401

    import secateur

    (work / "score.py").write_text(SCORE, encoding="utf-8")
    clock = Stages()
    base = {"resident": psutil.Process().memory_info().rss, "anonymous": of_process("RssAnon")}
    clock.watch("secateur.pipeline", {"statistics": STAGES["statistics"]})
    settings = {**SETTINGS, "method": "energy", "use": str(work / "score.py")}
    with clock("other"):
        secateur.prune(work / "dense", dry_run=True, calibration=str(work / "text.txt"), **settings)
    return {
        "base": base,
        "peaks": clock.peaks,
        "spans": clock.spans,
        "threads": torch.get_num_threads(),
    }


def benchmark(work: Path, repeats: int) -> dict[str, Any]:
    """Build once, look `repeats` times; the peak is that of the statistics."""
    built = in_fresh_process("build", work, __file__)
    reports = [in_fresh_process("prune", work, __file__) for _ in range(repeats)]
    found = measured(reports, LIMIT)
    peak = max(run["statistics"]["peak"] for run in found["repeats"])
    return {"model": SIZES | {"parameters": built["parameters"]}, **found, "peak": peak}


if __name__ == "__main__":
    sys.exit(main(str(__doc__), "gram_memory", {"build": build, "prune": prune}, benchmark))
