"""Tokens per second in llama.cpp of pruned models beside the dense one, at equal number formats.

    python benchmarks/engine_speed.py DENSE SMALL [SMALL ...] --types f16 q8_0 q4_0 --out a.json

Every model is exported to GGUF; then all write from nothing (what llama-bench calls tg), read a
prompt and write after it, in turns, round after round, the first of which counts for nothing. The
attention is llama.cpp's own choice where it has one, flash attention. A type A:B has embedding and
head in B. The share of the parameter ratio is

    (tokens/s of the small one / those of the dense one) / (dense parameters / small parameters)
"""

import argparse
import ctypes
import json
import platform
import tempfile
import time
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import llama_cpp

import secateur

PROMPT, WRITES = 256, 64


@llama_cpp.llama_log_callback
def _silent(level: int, text: bytes, data: Any) -> None:
    """llama.cpp's own log is dropped."""


def exported(folder: Path, kind: str, out: Path) -> Path:
    kind, _, head = kind.partition(":")
    done = secateur.export_model(
        folder, to="gguf", type=kind, head_type=head or None, out=out, no_tokenizer=True
    )
    return out / done.file


def opened(file: Path, threads: int) -> Any:
    return llama_cpp.Llama(
        str(file), n_ctx=PROMPT + WRITES + 8, n_batch=PROMPT, n_threads=threads,
        n_threads_batch=threads, flash_attn=True, verbose=False,
    )  # fmt: skip


def written(model: Any) -> float:
    """Tokens per second, writing."""
    started = time.perf_counter()
    for n in range(WRITES):
        model.eval([3 + n])
    return WRITES / (time.perf_counter() - started)


def timed(model: Any) -> dict[str, float]:
    """Tokens per second by what the model does."""
    model.reset()
    from_nothing = written(model)
    model.reset()
    started = time.perf_counter()
    model.eval([3 + n % 500 for n in range(PROMPT)])
    reading = PROMPT / (time.perf_counter() - started)
    return {"writing": from_nothing, "reading": reading, "writing after it": written(model)}


def parameters(folder: Path) -> int:
    return sum(spec.elements for spec in secateur.open_model(folder).weights.specs.values())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("dense", type=Path)
    parser.add_argument("small", type=Path, nargs="+")
    parser.add_argument("--types", nargs="+", default=["f16", "q8_0", "q4_0"])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    llama_cpp.llama_log_set(_silent, ctypes.c_void_p(0))
    folders = [arguments.dense, *arguments.small]
    sizes = {folder.name: parameters(folder) for folder in folders}
    rows = []
    for kind in arguments.types:
        with tempfile.TemporaryDirectory() as place:
            files = {f.name: exported(f, kind, Path(place) / f.name) for f in folders}
            models = {name: opened(file, arguments.threads) for name, file in files.items()}
            found: dict[str, list[dict[str, float]]] = {name: [] for name in files}
            for turn in range(arguments.rounds + 1):
                for name, model in models.items():
                    speeds = timed(model)
                    if turn:
                        found[name].append(speeds)
            for model in models.values():
                model.close()
            dense = arguments.dense.name
            for name, speeds in found.items():
                ratio = sizes[dense] / sizes[name]
                row: dict[str, Any] = {
                    "model": name, "type": kind, "parameters": sizes[name],
                    "megabytes": files[name].stat().st_size / 1e6,
                }  # fmt: skip
                for what in speeds[0]:
                    own = [speed[what] for speed in speeds]
                    ratios = [a[what] / b[what] for a, b in zip(speeds, found[dense], strict=True)]
                    low, _, high = quantiles(ratios, n=4)
                    row[what] = {
                        "tokens_per_second": median(own),
                        "times_dense": median(ratios),
                        "quartiles": [low, high],
                        "share_of_parameter_ratio": median(ratios) / ratio,
                    }
                rows.append(row)
                print(json.dumps(row), flush=True)
    about = {
        "machine": platform.machine(), "threads": arguments.threads, "rounds": arguments.rounds,
        "llama_cpp": llama_cpp.__version__, "prompt": PROMPT, "writes": WRITES,
    }  # fmt: skip
    arguments.out.write_text(json.dumps({"about": about, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
