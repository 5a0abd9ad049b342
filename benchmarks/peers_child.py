"""One measured run of `peers.py`, in a process and an environment of its own.

    python benchmarks/peers_child.py JOB.json

The job says which side runs what; seconds, memory and the units that stayed go to the file that it
names. The public code of the peers is imported from its folder and called as its own scripts call
it. What it would fetch or cannot have is handed in from outside: see `stand_ins` and the two sides
that use them. This file must run on the Python and transformers of either environment, so it
imports neither of ours.
"""

import contextlib
import json
import os
import resource
import sys
import time
import types
from argparse import Namespace
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

Job = dict[str, Any]
# What tells the rows of a random weight apart.
KEY_COLUMNS = 16
# FLAP's public code allots room for so many windows, whatever it is given.
FLAP_ROWS = 2048
# The terms of LLM-Pruner by its name, and by ours.
TERMS = {
    "param_first": "taylor-first",
    "param_second": "taylor-second",
    "param_mix": "taylor-mixed",
    "vectorize": "taylor-vector",
}


def memory(field: str) -> int:
    """Bytes, from /proc/self/status."""
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise SystemExit(f"this system does not tell {field}")


def processor_seconds() -> float:
    """Seconds of all threads of this process on a processor."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


class Clock:
    """What a run costs, from its making (all is imported) to `stop`."""

    def __init__(self) -> None:
        # a first product starts the threads of torch
        torch.ones(256, 256) @ torch.ones(256, 256)
        self.loaded: float | None = None
        self._base = memory("VmRSS")
        self._spent, self._since = processor_seconds(), time.monotonic()

    def load_ended(self) -> None:
        """The model is in memory."""
        self.loaded = time.monotonic() - self._since

    def stop(self) -> Job:
        """Seconds and bytes so far."""
        seconds = time.monotonic() - self._since
        return {
            "seconds": seconds,
            "loading": self.loaded,
            "processor": processor_seconds() - self._spent,
            "peak": memory("VmHWM"),
            "imports": self._base,
        }


def build(job: Job) -> Job:
    """Write the seeded random Llama, in fp32 and in bf16 with the same values, and the windows."""
    sizes, work = job["sizes"], Path(job["work"])
    torch.manual_seed(job["seed"])
    tensors = {name: values.bfloat16() for name, values in random_llama(sizes)}
    for dtype in ("float32", "bfloat16"):
        folder = work / dtype
        folder.mkdir(parents=True, exist_ok=True)
        values = {name: tensor.to(getattr(torch, dtype)) for name, tensor in tensors.items()}
        save_file(values, folder / "model.safetensors", metadata={"format": "pt"})
        config = {
            **sizes,
            "model_type": "llama",
            "architectures": ["LlamaForCausalLM"],
            "torch_dtype": dtype,
            "hidden_act": "silu",
            "rms_norm_eps": 1e-6,
            "tie_word_embeddings": False,
        }
        (folder / "config.json").write_text(json.dumps(config, indent=1), encoding="utf-8")
    count, length = job["most"]
    windows = torch.randint(3, sizes["vocab_size"], (count, length))
    save_file({"windows": windows}, work / "windows.safetensors")
    return {"parameters": sum(tensor.numel() for tensor in tensors.values())}


def random_llama(sizes: Job) -> Iterator[tuple[str, torch.Tensor]]:
    """Tensors by name: norms of one, matrices drawn as transformers draws them."""
    hidden, inner = sizes["hidden_size"], sizes["intermediate_size"]
    shapes = dict.fromkeys("qkvo", (hidden, hidden))
    yield "model.embed_tokens.weight", torch.randn(sizes["vocab_size"], hidden) * 0.02
    for number in range(sizes["num_hidden_layers"]):
        layer = f"model.layers.{number}"
        for name, shape in shapes.items():
            yield f"{layer}.self_attn.{name}_proj.weight", torch.randn(shape) * 0.02
        yield f"{layer}.mlp.gate_proj.weight", torch.randn(inner, hidden) * 0.02
        yield f"{layer}.mlp.up_proj.weight", torch.randn(inner, hidden) * 0.02
        yield f"{layer}.mlp.down_proj.weight", torch.randn(hidden, inner) * 0.02
        yield f"{layer}.input_layernorm.weight", torch.ones(hidden)
        yield f"{layer}.post_attention_layernorm.weight", torch.ones(hidden)
    yield "model.norm.weight", torch.ones(hidden)
    yield "lm_head.weight", torch.randn(sizes["vocab_size"], hidden) * 0.02


def windows_of(job: Job) -> torch.Tensor:
    """The calibration windows of a job, [window, token]."""
    found = load_file(Path(job["work"]) / "windows.safetensors")["windows"]
    return found[: job["samples"], : job["length"]].contiguous()


def checkpoint_of(job: Job) -> Path:
    """The folder of the dense model."""
    return Path(job["work"]) / str(job["checkpoint"])


def stand_ins() -> None:
    """`datasets` is not there: nothing is fetched, the windows are handed in.

    transformers comes first, which looks whether it has the real one.
    """
    import transformers  # noqa: F401

    absent = types.ModuleType("datasets")

    def load_dataset(*_: Any, **__: Any) -> None:
        raise SystemExit("a peer asks for a data set that the benchmark did not hand in")

    absent.load_dataset = load_dataset  # type: ignore[attr-defined]
    sys.modules["datasets"] = absent


def flap(job: Job) -> tuple[Job, Any]:
    """FLAP's `prune_flap` on a model loaded as its main.py loads one.

    Handed in: the windows (for its `get_loaders`); the device cpu; the dtype, which its main.py and
    a cast of the means in `prune_flap` fix to fp16, a dtype that a CPU has no fast arithmetic for.
    """
    stand_ins()
    sys.path.insert(0, job["code"])
    from lib import prune as code  # type: ignore[import-not-found]
    from models.hf_llama.modeling_llama import LlamaForCausalLM  # type: ignore[import-not-found]

    dtype = getattr(torch, job["dtype"])
    windows = windows_of(job)
    code.get_loaders = lambda *_, **__: ([(row[None], None) for row in windows], None)
    torch.half = dtype
    arguments = Namespace(
        nsamples=job["samples"],
        seed=0,
        metrics="WIFV",
        structure="AL-AM",
        pruning_ratio=job["ratio"],
        remove_heads=-1,
        unstr=False,
    )
    clock = Clock()
    model = LlamaForCausalLM.from_pretrained(
        checkpoint_of(job), torch_dtype=dtype, low_cpu_mem_usage=True
    )
    for layer in model.model.layers:
        for linear in (layer.self_attn.o_proj, layer.mlp.down_proj):
            linear.bias = torch.nn.Parameter(torch.zeros_like(linear.bias, device="cpu"))
    model.seqlen = job["length"]
    model.eval()
    clock.load_ended()
    code.prune_flap(arguments, model, None, torch.device("cpu"))
    unused = 2 * (FLAP_ROWS - job["samples"]) * job["length"] * model.config.hidden_size
    return {**clock.stop(), "unused": unused * dtype.itemsize}, model


def llm_pruner(job: Job) -> tuple[Job, Any]:
    """The `main` of LLM-Pruner's hf_prune.py, with the arguments of its published recipe.

    It loads in fp32 on a CPU. Handed in: the windows (for its `get_examples`) and no tokenizer; its
    perplexities, which come last, are where the clock stops.
    """
    stand_ins()
    sys.path.insert(0, job["code"])
    import hf_prune as code  # type: ignore[import-not-found]

    windows = windows_of(job)
    code.get_examples = lambda *_, **__: windows
    tokenizer = types.SimpleNamespace(from_pretrained=lambda *_, **__: Namespace())
    code.LlamaTokenizer = tokenizer
    found: list[Any] = []
    whole = code.LlamaForCausalLM.from_pretrained

    def from_pretrained(*args: Any, **kwargs: Any) -> Any:
        model = whole(*args, **kwargs)
        clock.load_ended()
        return model

    def perplexities(model: Any, *_: Any, **__: Any) -> None:
        found.extend([clock.stop(), model])

    code.LlamaForCausalLM.from_pretrained = from_pretrained
    code.PPLMetric = perplexities
    arguments = Namespace(**_hf_prune_arguments(job))
    clock = Clock()
    code.main(arguments)
    return found[0], found[1]


def _hf_prune_arguments(job: Job) -> Job:
    """Those of scripts/llama_prune.sh, and the defaults of hf_prune.py for the rest."""
    start, end = job["layers"]
    return {
        "base_model": str(checkpoint_of(job)),
        "save_ckpt_log_name": "log",
        "pruning_ratio": job["ratio"],
        "pruner_type": "taylor",
        "taylor": job["terms"],
        "block_wise": True,
        "channel_wise": False,
        "layer_wise": False,
        "block_attention_layer_start": start,
        "block_attention_layer_end": end,
        "block_mlp_layer_start": start,
        "block_mlp_layer_end": end,
        "iterative_steps": 1,
        "grouping_strategy": "sum",
        "global_pruning": False,
        "num_examples": job["samples"],
        "max_seq_len": 128,
        "device": "cpu",
        "eval_device": "cpu",
        "seed": 42,
        "save_model": False,
        "test_before_train": False,
        "test_after_train": False,
        "torch_version": float(".".join(torch.__version__.split(".")[:2])),
    }


def ours(job: Job) -> tuple[Job, Any]:
    """`secateur.prune` of the same folder on the same windows, and the pruned model in memory.

    Layers are loaded while they are needed, so loading cannot be told apart.
    """
    import transformers.models.llama.modeling_llama  # noqa: F401

    import secateur

    settings: Job = {"method": job["method"], "ratio": job["ratio"], "align": 1}
    settings["dtype"] = job["checkpoint"]  # by itself it takes fp32 where a CPU is slow in bf16
    if job["method"] == "llm-pruner":
        settings |= _as_many_units(job) | {"importance": TERMS[job["terms"]]}
    clock = Clock()
    result = secateur.prune(
        checkpoint_of(job), calibration=windows_of(job), evaluate="none", device="cpu", **settings
    )
    model = result.load()
    return {**clock.stop(), "stages": dict(result.seconds)}, model


def _as_many_units(job: Job) -> Job:
    """Settings that take from each layer what LLM-Pruner takes: heads rounded down, channels up."""
    sizes, (start, end) = job["sizes"], job["layers"]
    hidden, inner, heads = (
        sizes[name] for name in ("hidden_size", "intermediate_size", "num_attention_heads")
    )
    width = hidden // heads
    heads_lost = (hidden - int(hidden * (1 - job["ratio"]))) // width
    channels_lost = inner - int(inner * (1 - job["ratio"]))
    lost = 4 * width * heads_lost + 3 * channels_lost
    share = (end - start) / sizes["num_hidden_layers"]
    return {
        "layers": f"{start}-{end - 1}",
        "attention_units": heads_lost * (end - start),
        "ratio": share * lost / (4 * hidden + 3 * inner),
    }


def plain(job: Job) -> tuple[Job, None]:
    """What no pruning can be faster than: the loop over all decoder layers, with all in memory.

    For LLM-Pruner: the mean loss and its gradient, windows in batches of eight.
    """
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(checkpoint_of(job))
    windows = windows_of(job).split(8)
    model.model(windows[0][:1])
    clock = Clock()
    if job["method"] == "flap":
        with torch.no_grad():
            for batch in windows:
                model.model(batch, use_cache=False)
    else:
        for batch in windows:
            loss = model(batch, labels=batch, use_cache=False).loss
            (loss * len(batch) / job["samples"]).backward()
    return clock.stop(), None


def units_of(model: Any, dense: Path) -> list[list[list[int]]]:
    """Which rows of q_proj and gate_proj of the dense model are left, by layer and kind."""
    kept: list[list[list[int]]] = []
    with safe_open(dense / "model.safetensors", "pt") as file:
        for number, layer in enumerate(model.model.layers):
            rows: list[list[int]] = []
            for name, linear in _read(layer):
                left = linear.weight[:, :KEY_COLUMNS]
                whole = file.get_slice(f"model.layers.{number}.{name}.weight")[:, :KEY_COLUMNS]
                places = {key: row for row, key in enumerate(_keys(whole.to(left.dtype)))}
                rows.append([places[key] for key in _keys(left)])
            kept.append(rows)
    return kept


def _read(layer: Any) -> list[tuple[str, Any]]:
    pairs = [("self_attn.q_proj", layer.self_attn), ("mlp.gate_proj", layer.mlp)]
    return [(name, getattr(module, name.split(".")[1])) for name, module in pairs]


def _keys(rows: torch.Tensor) -> Iterator[bytes]:
    return (row.tobytes() for row in rows.detach().float().numpy())


SIDES: dict[str, Callable[[Job], tuple[Job, Any]]] = {
    "flap": flap,
    "llm-pruner": llm_pruner,
    "ours": ours,
    "plain": plain,
}


def main() -> None:
    """Do the job whose file is named."""
    job: Job = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    os.environ["HF_HUB_OFFLINE"] = "1"
    with contextlib.redirect_stdout(sys.stderr):
        if job["side"] == "build":
            report = build(job)
        else:
            report, model = SIDES[job["side"]](job)
            report["threads"] = torch.get_num_threads()
            if model is not None:
                report["kept"] = units_of(model, checkpoint_of(job))
    Path(job["answer"]).write_text(json.dumps(report), encoding="utf-8")


if __name__ == "__main__":
    main()
