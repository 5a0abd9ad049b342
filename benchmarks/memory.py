"""Peak memory of pruning a model of a billion parameters, and of reading the result back.

    python benchmarks/memory.py

The claim: pruning needs memory for a decoder layer and an embedding, not for the model; at most
1.2 GB above the interpreter with its imports. Each part has a process of its own, so that the
memory of one is not taken for another's: `build` writes a random bf16 Llama of 2 GB shard by
shard, `prune` prunes it and takes the perplexity of the result (this one is measured), `load`
loads the result whole.

The peak is the kernel's own mark (VmHWM; pages of memory-mapped shards count), less what is
resident after the imports. Linux resets that mark on request, so every stage has its exact peak;
it includes what earlier stages left behind. The anonymous part is sampled from outside.
"""

import argparse
import importlib.metadata
import json
import math
import os
import platform
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

import psutil

LIMIT = 1.2e9
SETTINGS: dict[str, Any] = {
    "method": "flap",
    "ratio": 0.2,
    "samples": 8,
    "length": 128,
    "evaluate": "none",
}
TOKENS, WINDOW = 1024, 128
# 1.0 billion parameters: a decoder layer is 109 MB in bf16, the embedding and the head 131 MB each.
SIZES = {
    "vocab_size": 32000,
    "hidden_size": 2048,
    "intermediate_size": 7168,
    "num_hidden_layers": 16,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "tie_word_embeddings": False,
}
# Stages by the function that is called for each, and the module of the pipeline that calls it.
STAGES = {
    "open": ("subject", "open_model"),
    "windows": ("texts", "calibration_windows"),
    "statistics": ("passes", "collect"),
    "scores": ("choosing", "scores"),
    "search": ("choosing", "kept_units"),
    "repair": ("cutting", "added_biases"),
    "form": ("cutting", "pruned_form"),
    "write": ("publishing", "write_folder"),
}
VERSIONS = ("secateur", "torch", "transformers", "safetensors", "tokenizers")
SAMPLE_SECONDS = 0.004
WORDS = [a + b + c + d for a in "bdglmprt" for b in "aiou" for c in "bdglmprt" for d in "aiou"]


def memory(field: str, pid: int | str = "self") -> int:
    """Bytes, from /proc/PID/status; 0 once the process is gone."""
    for line in Path(f"/proc/{pid}/status").read_text(encoding="ascii").splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    return 0


class Stages:
    """Kernel peaks and time spans by stage; of nested stages, the inner one is charged."""

    def __init__(self) -> None:
        self.peaks: dict[str, int] = {}
        self.spans: list[tuple[str, float, float]] = []
        self._name, self._since = "imports", time.monotonic()

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """Charge what happens inside to `name`."""
        outer = self._name
        self._switch(name)
        try:
            yield
        finally:
            self._switch(outer)

    def _switch(self, name: str) -> None:
        now = time.monotonic()
        self.peaks[self._name] = max(self.peaks.get(self._name, 0), memory("VmHWM"))
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # VmHWM = VmRSS
        self.spans.append((self._name, self._since, now))
        self._name, self._since = name, now

    def watch(self, package: str, functions: Mapping[str, tuple[str, str]]) -> None:
        """Let functions (methods) of the modules of `package` run as the stages that name them."""
        for stage, (name, function) in functions.items():
            path, _, last = function.rpartition(".")
            module = import_module(f"{package}.{name}")
            owner = getattr(module, path) if path else module
            setattr(owner, last, self._staged(stage, getattr(owner, last)))

    def _staged(self, stage: str, inner: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            with self(stage):
                return inner(*args, **kwargs)

        return call


def build(work: Path) -> dict[str, Any]:
    """Write the dense checkpoint, its tokenizer and the text; one shard at a time in memory."""
    import torch
    from safetensors.torch import save_file
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    folder = work / "dense"
    config = LlamaConfig(**SIZES, dtype="bfloat16", architectures=["LlamaForCausalLM"])
    config.save_pretrained(folder)
    with torch.device("meta"):
        shapes = {name: t.shape for name, t in LlamaForCausalLM(config).state_dict().items()}
    shards: dict[str, list[str]] = {}
    for name in shapes:  # a shard for every decoder layer, the embedding, the norm and the head
        shards.setdefault(name.partition(".layers.")[2].partition(".")[0] or name, []).append(name)
    weight_map: dict[str, str] = {}
    torch.manual_seed(0)
    for number, names in enumerate(shards.values(), start=1):
        tensors = {name: torch.ones(shapes[name], dtype=torch.bfloat16) for name in names}
        for matrix in (tensor for tensor in tensors.values() if tensor.dim() == 2):
            matrix.normal_(std=0.02)
        file = f"model-{number:05}-of-{len(shards):05}.safetensors"
        save_file(tensors, folder / file, metadata={"format": "pt"})
        weight_map.update(dict.fromkeys(names, file))
    parameters = sum(shape.numel() for shape in shapes.values())
    index = {"metadata": {"total_size": 2 * parameters}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    vocabulary = {word: number for number, word in enumerate(["<unk>", *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>").save_pretrained(folder)
    text = " ".join(random.Random(0).choices(WORDS, k=8 * TOKENS))
    (work / "text.txt").write_text(text + "\n", encoding="utf-8")
    return {"parameters": parameters, "shards": len(shards), "peak": memory("VmHWM")}


def prune(work: Path) -> dict[str, Any]:
    """Prune by FLAP, then read the result back; this is the process that the limit is about."""
    import torch
    import transformers.models.llama.modeling_llama  # noqa: F401

    import secateur

    clock = Stages()
    base = {"resident": psutil.Process().memory_info().rss, "anonymous": memory("RssAnon")}
    clock.watch("secateur.pipeline", STAGES)
    text, out = str(work / "text.txt"), work / "pruned"
    with clock("other"):
        result = secateur.prune(work / "dense", out=out, force=True, calibration=text, **SETTINGS)
    with clock("reload"):
        (found,) = secateur.evaluate(out, text, evaluate_tokens=TOKENS, evaluate_lengths=[WINDOW])
    if not math.isfinite(found.value):
        raise SystemExit("the pruned model has no finite perplexity")
    return {
        "base": base,
        "peaks": clock.peaks,
        "spans": clock.spans,
        "parameters": result.numbers["parameters"]["after"],
        "perplexity": found.value,
        "threads": torch.get_num_threads(),
    }


def load(work: Path) -> dict[str, Any]:
    """Load the result whole, as a user would, and look at its logits."""
    import torch

    import secateur

    started = time.monotonic()
    model = secateur.load(work / "pruned")
    seconds = time.monotonic() - started
    with torch.no_grad():
        logits = model(torch.arange(1, 33).view(2, 16)).logits
    if logits.shape != (2, 16, SIZES["vocab_size"]) or not torch.isfinite(logits).all():
        raise SystemExit(f"the pruned model gives bad logits: {list(logits.shape)}")
    parameters = sum(parameter.numel() for parameter in model.parameters())
    return {"class": type(model).__name__, "parameters": parameters, "seconds": seconds}


PARTS = {"build": build, "prune": prune, "load": load}


def in_fresh_process(part: str, work: Path, script: str = __file__) -> dict[str, Any]:
    """Run a part of `script`; `samples` are its anonymous memory by time.

    Malloc has its default settings.
    """
    command = [sys.executable, script, "--part", part, "--work", str(work)]
    tuned = ("MALLOC_", "GLIBC_TUNABLES", "LD_PRELOAD")
    environment = {name: x for name, x in os.environ.items() if not name.startswith(tuned)}
    environment |= {"HF_HUB_OFFLINE": "1", "TQDM_DISABLE": "1"}
    samples: list[tuple[float, int]] = []
    with tempfile.TemporaryFile(dir=work) as answer:
        process = subprocess.Popen(command, stdout=answer, env=environment)
        while process.poll() is None:
            samples.append((time.monotonic(), memory("RssAnon", process.pid)))
            time.sleep(SAMPLE_SECONDS)
        if process.returncode:
            raise SystemExit(f"the part {part!r} failed with exit code {process.returncode}")
        answer.seek(0)
        return {**json.load(answer), "samples": samples}


def above_imports(report: dict[str, Any]) -> dict[str, dict[str, float]]:
    """Seconds, and bytes above the imports, by stage and in total."""
    base = report["base"]
    rows: dict[str, dict[str, float]] = {}
    for name, since, until in report["spans"]:
        inside = [size for moment, size in report["samples"] if since <= moment <= until]
        row = rows.setdefault(name, {"seconds": 0.0, "peak": 0, "anonymous": 0})
        row["seconds"] += until - since
        row["peak"] = report["peaks"][name] - base["resident"]
        row["anonymous"] = max([row["anonymous"], *(size - base["anonymous"] for size in inside)])
    del rows["imports"]
    rows["total"] = {
        key: (sum if key == "seconds" else max)(row[key] for row in rows.values())
        for key in ("seconds", "peak", "anonymous")
    }
    return rows


def spread(runs: list[dict[str, dict[str, float]]]) -> dict[str, dict[str, dict[str, float]]]:
    """Median, least and greatest of every number over the repeats."""
    summary: dict[str, dict[str, dict[str, float]]] = {}
    for stage, row in runs[0].items():
        for key in row:
            values = [run[stage][key] for run in runs]
            ends = {"median": statistics.median(values), "min": min(values), "max": max(values)}
            summary.setdefault(stage, {})[key] = ends
    return summary


def benchmark(work: Path, repeats: int) -> dict[str, Any]:
    """Build once, prune `repeats` times, load once; everything that the JSON file holds."""
    built = in_fresh_process("build", work)
    print(f"built {built['parameters']:,} parameters in {built['shards']} shards", flush=True)
    reports = [in_fresh_process("prune", work) for _ in range(repeats)]
    loaded = in_fresh_process("load", work)
    if loaded["parameters"] != reports[0]["parameters"]:
        raise SystemExit("the loaded model does not have the parameters that pruning reported")
    return {
        **surroundings(reports),
        "settings": SETTINGS | {"evaluated tokens": TOKENS, "evaluation window": WINDOW},
        "model": SIZES | {"parameters": built["parameters"], "shards": built["shards"]},
        "pruned": {key: loaded[key] for key in ("class", "parameters", "seconds")},
        "perplexity": [report["perplexity"] for report in reports],
        **measured(reports, LIMIT),
    }


def surroundings(reports: list[dict[str, Any]]) -> dict[str, Any]:
    """The machine and the versions that the reports are of."""
    cpu = Path("/proc/cpuinfo").read_text(encoding="utf-8").partition("model name\t: ")[2]
    return {
        "machine": {
            "processor": cpu.partition("\n")[0] or platform.machine(),
            "cores": os.cpu_count(),
            "threads": reports[0]["threads"],
            "memory": psutil.virtual_memory().total,
            "libc": " ".join(platform.libc_ver()),
        },
        "versions": {"python": platform.python_version()}
        | {name: importlib.metadata.version(name) for name in VERSIONS},
    }


def measured(reports: list[dict[str, Any]], limit: float) -> dict[str, Any]:
    """The greatest peak, and what it is made of."""
    runs = [above_imports(report) for report in reports]
    return {
        "limit": limit,
        "peak": max(run["total"]["peak"] for run in runs),
        "resident after imports": [report["base"]["resident"] for report in reports],
        "above imports": spread(runs),
        "repeats": runs,
    }


def show(numbers: dict[str, Any]) -> bool:
    """Print the table; say whether the limit is met."""
    print(f"{'stage':<12}{'seconds':>8}{'peak, MB':>10}{'least - greatest':>18}{'anonymous':>11}")
    for stage, row in numbers["above imports"].items():
        peak, seconds, anonymous = row["peak"], row["seconds"]["median"], row["anonymous"]["median"]
        ends = f"{peak['min'] / 1e6:.0f} - {peak['max'] / 1e6:.0f}"
        print(f"{stage:<12}{seconds:>8.1f}{peak['median'] / 1e6:>10.0f}", end="")
        print(f"{ends:>18}{anonymous / 1e6:>11.0f}")
    limit = numbers["limit"]
    met = bool(numbers["peak"] <= limit)
    verdict = "met" if met else "NOT MET"
    print(f"greatest peak {numbers['peak'] / 1e9:.2f} GB, limit {limit / 1e9:.1f} GB: {verdict}")
    return met


def main(
    about: str,
    name: str,
    parts: dict[str, Callable[[Path], dict[str, Any]]],
    benchmark: Callable[[Path, int], dict[str, Any]],
) -> int:
    """Run one of `parts` in this process, or the whole `benchmark`; numbers go to NAME.json."""
    parser = argparse.ArgumentParser(description=about.partition("\n")[0])
    parser.add_argument("--work", type=Path, help="folder for the models; default: a temporary one")
    parser.add_argument("--keep", action="store_true", help="leave the models there")
    parser.add_argument("--repeats", type=int, default=1, help="measure so many times")
    default = Path(__file__).parent / "results" / f"{name}.json"
    parser.add_argument("--json", type=Path, default=default, help="where the numbers go")
    parser.add_argument("--part", choices=parts, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.part:
        print(json.dumps(parts[options.part](options.work)))
        return 0
    if options.work:
        options.work.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(dir=options.work, prefix=f"{name}-"))
    try:
        numbers = benchmark(work, options.repeats)
    finally:
        if not options.keep:
            shutil.rmtree(work)
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text(json.dumps(numbers, indent=1) + "\n", encoding="utf-8")
    return 0 if show(numbers) else 1


if __name__ == "__main__":
    sys.exit(main(str(__doc__), "memory", PARTS, benchmark))
