"""Peak memory of pruning a one-billion-parameter model, and of reading the result back.

The claim under test: pruning needs memory for a decoder layer and an embedding, not for the model;
at most 1.2 GB above the interpreter with its imports. Run it (Linux only) as::

    python benchmarks/memory.py

Every part runs in a process of its own, so that one part's memory is not mistaken for another's:
`build` writes a random bf16 Llama of 2 GB shard by shard, `prune` prunes it and takes the
perplexity of the result through the streaming pass, `load` loads it whole and looks at its logits.

The peak is the kernel's (VmHWM), file-backed pages of memory-mapped shards included, less the
resident memory after the imports. The kernel resets that mark on request, so each stage has an
exact peak of its own; the anonymous part is sampled from outside every few milliseconds.
"""

import argparse
import importlib
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
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil

LIMIT = 1.2e9
RATIO, SAMPLES, LENGTH, TOKENS = 0.2, 8, 128, 1024
# 1.0 billion parameters; the decoder layer is 109 MB in bf16, the embedding and the head 131 MB.
SIZES = {
    "vocab_size": 32000,
    "hidden_size": 2048,
    "intermediate_size": 7168,
    "num_hidden_layers": 16,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "max_position_embeddings": 2048,
    "tie_word_embeddings": False,
}
LAYERS_IN_A_SHARD = 2
# What the pipeline calls, by the name of the stage that the report has; the rest is "other".
STAGES = {
    "open_model": "open",
    "calibration_windows": "windows",
    "collect": "statistics",
    "scores": "scores",
    "search": "search",
    "added_biases": "repair",
    "pruned_form": "form",
    "write_model": "write",
}
VERSIONS = ("secateur", "torch", "transformers", "safetensors", "tokenizers")
SAMPLE_SECONDS = 0.004
SYLLABLES = [consonant + vowel for consonant in "bdglmprt" for vowel in "aiou"]
WORDS = [first + second for first in SYLLABLES for second in SYLLABLES]


def memory(pid: int | str, *fields: str) -> list[int]:
    """Bytes of some fields of /proc/PID/status; zeros once the process is gone."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text(encoding="ascii").splitlines()
    except OSError:
        lines = []
    known = {name: value for name, _, value in (line.partition(":") for line in lines)}
    return [int(known.get(field, "0 kB").split()[0]) * 1024 for field in fields]


class Stages:
    """Kernel peaks and time spans by stage; a stage inside another is not counted twice."""

    def __init__(self) -> None:
        self.peaks: dict[str, int] = {}
        self.spans: list[tuple[str, float, float]] = []
        self._now, self._since = "imports", time.monotonic()

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """Charge what happens inside to the stage `name`."""
        outer = self._switch(name)
        try:
            yield
        finally:
            self._switch(outer)

    def _switch(self, name: str) -> str:
        before, now = self._now, time.monotonic()
        self.peaks[before] = max(self.peaks.get(before, 0), memory("self", "VmHWM")[0])
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # VmHWM = resident now
        self.spans.append((before, self._since, now))
        self._now, self._since = name, now
        return before

    def watch(self, module: Any, function: str, name: str) -> None:
        """Let `function` of `module` run as the stage `name`."""
        inner: Callable[..., Any] = getattr(module, function)

        def staged(*args: Any, **kwargs: Any) -> Any:
            with self(name):
                return inner(*args, **kwargs)

        setattr(module, function, staged)


def build(work: Path) -> dict[str, Any]:
    """Write the dense checkpoint, its tokenizer and the text; one shard at a time in memory."""
    import torch
    from safetensors.torch import save_file
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    folder = work / "dense"
    folder.mkdir(parents=True, exist_ok=True)
    config = LlamaConfig(**SIZES, dtype="bfloat16", architectures=["LlamaForCausalLM"])
    config.save_pretrained(folder)
    with torch.device("meta"):
        shapes = {name: t.shape for name, t in LlamaForCausalLM(config).state_dict().items()}
    groups: dict[str, list[str]] = {}
    for name in shapes:
        part = name.split(".")
        shard = f"layers {int(part[2]) // LAYERS_IN_A_SHARD}" if "layers" in part else part[-2]
        groups.setdefault(shard, []).append(name)
    generator = torch.Generator().manual_seed(0)
    weight_map: dict[str, str] = {}
    for number, names in enumerate(groups.values(), start=1):
        file = f"model-{number:05}-of-{len(groups):05}.safetensors"
        tensors = {name: torch.ones(shapes[name], dtype=torch.bfloat16) for name in names}
        for tensor in tensors.values():
            if tensor.dim() == 2:
                tensor.normal_(std=0.02, generator=generator)
        save_file(tensors, folder / file, metadata={"format": "pt"})
        weight_map.update(dict.fromkeys(names, file))
    parameters = sum(shape.numel() for shape in shapes.values())
    index = {"metadata": {"total_size": 2 * parameters}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    words = {word: number for number, word in enumerate(["<unk>", *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>").save_pretrained(folder)
    text = " ".join(random.Random(0).choices(WORDS, k=8 * SAMPLES * LENGTH))
    (work / "text.txt").write_text(text + "\n", encoding="utf-8")
    return {"parameters": parameters, "shards": len(groups), "peak": memory("self", "VmHWM")[0]}


def prune(work: Path) -> dict[str, Any]:
    """Prune by FLAP, then read the result back; this is the process that the limit is about."""
    import torch

    import secateur
    import secateur.pipeline

    importlib.import_module("transformers.models.llama.modeling_llama")
    stages = Stages()
    base = dict(zip(("rss", "anonymous"), memory("self", "VmRSS", "RssAnon"), strict=True))
    assert abs(base["rss"] - psutil.Process().memory_info().rss) < 2**24
    for function, name in STAGES.items():
        stages.watch(secateur.pipeline, function, name)
    text, out = str(work / "text.txt"), work / "pruned"
    windows: dict[str, Any] = {"calibration": text, "samples": SAMPLES, "length": LENGTH}
    recipe: dict[str, Any] = {"method": "flap", "ratio": RATIO, "evaluate": "none"}
    with stages("other"):
        result = secateur.prune(work / "dense", out=out, force=True, **recipe, **windows)
    with stages("reload"):
        (found,) = secateur.pipeline.evaluate(out, text, tokens=TOKENS, windows=[LENGTH])
    if not math.isfinite(found.value):
        raise SystemExit("the pruned model has no finite perplexity")
    return {
        "base": base,
        "peaks": stages.peaks,
        "spans": stages.spans,
        "parameters": result.numbers["parameters"],
        "perplexity": found.value,
        "threads": torch.get_num_threads(),
    }


def load(work: Path) -> dict[str, Any]:
    """Load the result whole, as a user would, and look at its logits."""
    import torch

    import secateur

    started = time.monotonic()
    model = secateur.load(work / "pruned")
    loading = time.monotonic() - started
    with torch.no_grad():
        logits = model(torch.arange(1, 33).view(2, 16)).logits
    if logits.shape != (2, 16, SIZES["vocab_size"]) or not torch.isfinite(logits).all():
        raise SystemExit(f"the pruned model gives bad logits: {list(logits.shape)}")
    parameters = sum(parameter.numel() for parameter in model.parameters())
    return {"class": type(model).__name__, "parameters": parameters, "seconds": loading}


def run(part: str, work: Path) -> dict[str, Any]:
    """Run `part` in a fresh process and add the samples of its anonymous memory."""
    command = [sys.executable, str(Path(__file__).resolve()), "--part", part, "--work", str(work)]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    started = time.monotonic()
    samples: list[tuple[float, int]] = []
    with (work / f"{part}.json").open("w+", encoding="utf-8") as answer:
        process = subprocess.Popen(command, stdout=answer, env=environment)
        while process.poll() is None:
            samples.append((time.monotonic(), memory(process.pid, "RssAnon")[0]))
            time.sleep(SAMPLE_SECONDS)
        answer.seek(0)
        if process.returncode:
            raise SystemExit(f"the part {part!r} failed with exit code {process.returncode}")
        report: dict[str, Any] = json.loads(answer.read())
    return {"wall": time.monotonic() - started, "samples": samples, **report}


def measured(report: dict[str, Any]) -> dict[str, Any]:
    """One repeat in bytes and seconds: by stage, and the peak of all stages, above the imports."""
    base = report["base"]
    stages: dict[str, dict[str, float]] = {}
    for name, since, until in report["spans"]:
        inside = [size for moment, size in report["samples"] if since <= moment <= until]
        row = stages.setdefault(name, {"seconds": 0.0, "peak": 0, "anonymous": 0})
        row["seconds"] += until - since
        row["peak"] = max(0, report["peaks"][name] - base["rss"])
        row["anonymous"] = max([row["anonymous"], *(n - base["anonymous"] for n in inside)])
    del stages["imports"]
    total = {
        "seconds": sum(row["seconds"] for row in stages.values()),
        "peak": max(row["peak"] for row in stages.values()),
        "anonymous": max(row["anonymous"] for row in stages.values()),
    }
    return {"base": base["rss"], "total": total, "stages": stages}


def machine() -> dict[str, Any]:
    """What the numbers depend on, and nothing that names the machine."""
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    model = next((x.partition(":")[2].strip() for x in lines if x.startswith("model name")), "?")
    return {
        "processor": model,
        "cores": os.cpu_count(),
        "memory": psutil.virtual_memory().total,
        "system": f"{platform.system()} {platform.machine()}",
    }


def table(runs: list[dict[str, Any]]) -> tuple[list[str], dict[str, Any]]:
    """The lines to print, and the median, least and greatest of every number over the repeats."""
    lines = [f"{'stage':<12}{'seconds':>9}{'peak, MB':>11}{'of it anonymous, MB':>22}"]
    summary: dict[str, Any] = {}
    for name in [*runs[0]["stages"], "total"]:
        rows = [run["stages"].get(name, run["total"]) for run in runs]
        for key in ("seconds", "peak", "anonymous"):
            values = [row[key] for row in rows]
            spread = {"median": statistics.median(values), "min": min(values), "max": max(values)}
            summary.setdefault(name, {})[key] = spread
        seconds, peak, anonymous = (value["median"] for value in summary[name].values())
        lines.append(f"{name:<12}{seconds:>9.1f}{peak / 1e6:>11.0f}{anonymous / 1e6:>22.0f}")
    return lines, summary


def benchmark(work: Path, repeats: int) -> dict[str, Any]:
    """Build once, prune `repeats` times, load once; everything that the JSON file holds."""
    built = run("build", work)
    print(f"built {built['parameters']:,} parameters in {built['shards']} shards", flush=True)
    reports = [run("prune", work) for _ in range(repeats)]
    loaded = run("load", work)
    if loaded["parameters"] != reports[0]["parameters"]["after"]:
        raise SystemExit("the loaded model does not have the parameters that the report names")
    runs = [measured(report) for report in reports]
    lines, summary = table(runs)
    print("\n".join(lines))
    first = reports[0]
    return {
        "machine": machine() | {"threads": first["threads"]},
        "versions": {"python": platform.python_version()}
        | {name: importlib.metadata.version(name) for name in VERSIONS},
        "settings": {"ratio": RATIO, "samples": SAMPLES, "length": LENGTH, "tokens": TOKENS},
        "model": {**SIZES, "shards": built["shards"], "parameters": first["parameters"]},
        "limit": LIMIT,
        "peak": summary["total"]["peak"]["max"],
        "summary": summary,
        "runs": runs,
        "perplexity": [report["perplexity"] for report in reports],
        "build": {"seconds": built["wall"], "resident with imports": built["peak"]},
        "load": {key: loaded[key] for key in ("class", "parameters", "seconds")},
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("--work", type=Path, help="folder for the models; default: a temporary one")
    parser.add_argument("--keep", action="store_true", help="leave the models in --work")
    parser.add_argument("--repeats", type=int, default=1)
    default = Path(__file__).parent / "results" / "memory.json"
    parser.add_argument("--json", type=Path, default=default, help="where the numbers go")
    parts = {"build": build, "prune": prune, "load": load}
    parser.add_argument("--part", choices=parts, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.part:
        print(json.dumps(parts[options.part](options.work)))
        return 0
    if options.work:
        options.work.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(dir=options.work, prefix="memory-"))
    try:
        numbers = benchmark(work, options.repeats)
    finally:
        if not options.keep:
            shutil.rmtree(work)
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text(json.dumps(numbers, indent=1) + "\n", encoding="utf-8")
    met = numbers["peak"] <= LIMIT
    verdict = "met" if met else "NOT MET"
    print(f"peak {numbers['peak'] / 1e9:.2f} GB, limit {LIMIT / 1e9:.1f} GB: {verdict}")
    return 0 if met else 1


if __name__ == "__main__":
    sys.exit(main())
