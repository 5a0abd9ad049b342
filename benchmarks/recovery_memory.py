"""Peak memory of training with few-bit weights against LoRA on half-precision ones.

    python benchmarks/recovery_memory.py

One training step of each on the same random Llama, in a process of its own: parameters and what a
step takes, above the interpreter with its imports. LoRA holds the weights in bfloat16.
"""

import argparse
import json
import multiprocessing
import resource
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from secateur.cli.screen import table
from secateur.data import Examples
from secateur.recovery import Batch, Groupwise, Halves, Lora, next_token
from secateur.recovery.passes import backward

CONFIG: dict[str, Any] = {
    "vocab_size": 8192,
    "hidden_size": 1536,
    "intermediate_size": 4096,
    "num_hidden_layers": 12,
    "num_attention_heads": 24,
    "num_key_value_heads": 8,
    "dtype": torch.bfloat16,
}


def peak() -> float:
    """The kernel's high-water mark in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def step(recipe: str, windows: int, length: int) -> dict[str, float]:
    """Build the model, adapt it, take one step; what that took in MB."""
    torch.set_num_threads(1)
    LlamaForCausalLM(LlamaConfig(**{**CONFIG, "num_hidden_layers": 1, "hidden_size": 48}))
    before = peak()
    torch.manual_seed(0)
    with torch.device("meta"):
        model = LlamaForCausalLM(LlamaConfig(**CONFIG)).to(torch.bfloat16)
    layers = [n for n, m in model.named_modules() if isinstance(m, torch.nn.Linear)]
    linears = [name for name in layers if "lm_head" not in name]
    trained: Any = None
    if recipe == "lora":
        model = model.to_empty(device="cpu")
        for parameter in model.parameters():
            parameter.data.normal_(std=0.02)
        trained = Lora(model, linears, rank=8, alpha=16, dropout=0.05, seed=0)
    else:
        for path in linears:  # one linear at a time, as a loader of few bits does
            parent, _, name = path.rpartition(".")
            empty: Any = model.get_submodule(path)
            full = torch.nn.Linear(empty.in_features, empty.out_features, bias=False)
            setattr(model.get_submodule(parent), name, full)
            settings: dict[str, Any] = {"bits": 4, "group": 32, "grid": "min-max", "rank": 8}
            one = Groupwise(model, [path], alpha=16, seed=0, **settings)
            trained = (trained or {}) | one.parameters
        for module in model.modules():
            for name, parameter in module._parameters.items():
                if parameter is not None and parameter.is_meta:
                    real = torch.full(parameter.shape, 0.02, dtype=torch.bfloat16)
                    module._parameters[name] = torch.nn.Parameter(real, requires_grad=False)
    rotary = model.model.rotary_emb
    rotary.inv_freq = type(rotary)(model.config).inv_freq
    loaded = peak() - before
    ids = torch.randint(0, CONFIG["vocab_size"], (windows, length))
    halves = Halves(model.eval(), ids[:, :3], partial(torch.autocast, "cpu", torch.bfloat16))
    batch = Batch.of(Examples.of_windows(ids), torch.arange(windows), torch.device("cpu"))
    backward(halves, next_token, batch, 1.0)
    return {"loaded": loaded, "step": peak() - before}


def main() -> None:
    """Both, a table and the JSON."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--windows", type=int, default=1)
    parser.add_argument("--length", type=int, default=64)
    parser.add_argument(
        "--json", type=Path, default=Path("benchmarks/results/recovery_memory.json")
    )
    given = parser.parse_args()
    found = {}
    for recipe in ("lora", "groupwise"):
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(max_workers=1, mp_context=context) as pool:
            found[recipe] = pool.submit(step, recipe, given.windows, given.length).result()
    with torch.device("meta"):
        model = LlamaForCausalLM(LlamaConfig(**CONFIG))
    size = sum(p.numel() for p in model.parameters())
    rows = [(name, f"{one['loaded']:,.0f}", f"{one['step']:,.0f}") for name, one in found.items()]
    title = (
        f"{size / 1e6:,.0f}M parameters, {given.windows} x {given.length} tokens: MB above imports"
    )
    table(title, ("recipe", "loaded", "after one step"), rows)
    given.json.write_text(json.dumps({"parameters": size, **found}, indent=1) + "\n")


if __name__ == "__main__":
    main()
