"""llama.cpp computes what torch does with what was exported: logits, greedy text, tokens.

`scripts/test --deploy` runs these; llama.cpp is compiled for them.
"""

import ctypes
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from transformers import AutoTokenizer

import secateur
from conftest import shared
from secateur.data.sources import embedded_folder

llama_cpp = pytest.importorskip("llama_cpp")
pytestmark = pytest.mark.deploy

TEXT = (
    "Once upon a time, in 1999, there was a caf\u00e9; the dog's name wasn't Bob.\n\n  It said:"
    ' "hello" \u2014 def f(x):\n\treturn x+1 \u65e5\u672c'
)
SMOLLM2 = Path.home() / ".cache/secateur-models/smollm2-135m"


@llama_cpp.llama_log_callback
def silent(level: int, text: bytes, data: Any) -> None:
    """llama.cpp's own log is dropped."""


@contextmanager
def engine(file: Path, **options: Any) -> Iterator[Any]:
    """llama.cpp with keys and values in fp32, so that nothing is rounded on the way."""
    llama_cpp.llama_log_set(silent, ctypes.c_void_p(0))
    exact = {"type_k": 0, "type_v": 0, "flash_attn": False}
    found = llama_cpp.Llama(
        str(file), n_ctx=256, logits_all=True, verbose=False, n_threads=1, **exact, **options
    )
    try:
        yield found
    finally:
        found.close()


def greedy(found: Any, prompt: list[int], count: int) -> list[int]:
    found.reset()
    out: list[int] = []
    for token in found.generate(prompt, temp=0.0, top_k=1, repeat_penalty=1.0):
        out.append(token)
        if len(out) == count:
            break
    return out


def exported(folder: Path, out: Path, kind: str = "f32", **options: Any) -> Path:
    done = secateur.export_model(folder, to="gguf", type=kind, out=out, **options)
    return out / done.file


def check_equal(folder: Path, file: Path, ids: list[int], error: float = 1e-3) -> None:
    """Logits to `error`, and 50 greedy tokens."""
    model = secateur.load(folder).float().eval()
    with torch.no_grad():
        wanted = model(torch.tensor([ids])).logits[0]
        text = model.generate(
            torch.tensor([ids[:8]]), max_new_tokens=50, do_sample=False, eos_token_id=None,
            pad_token_id=0, attention_mask=torch.ones(1, 8, dtype=torch.long),
        )[0, 8:].tolist()  # fmt: skip
    with engine(file) as found:
        found.eval(ids)
        logits = torch.tensor(numpy.array(found.scores[: len(ids)]))
        assert (logits - wanted).abs().max() < error
        assert greedy(found, ids[:8], 50) == text


@pytest.mark.parametrize(
    "variant",
    ["llama-gqa", "llama-mqa", "llama-biased", "llama-tied", "mistral-mha", "qwen2-gqa", "phi3"],
)
@pytest.mark.parametrize("way", ["dense", "bias", "refit", "blocks"])
def test_random_models_of_several_widths(
    variant: str,
    way: str,
    tiny_folder: Callable[..., Path],
    text_file: Path,
    tmp_path: Path,
) -> None:
    whole = {"sliding_window": None} if variant == "phi3" else {}
    folder = tiny_folder(variant, max_position_embeddings=128, **whole)
    if way != "dense":
        deep = {"granularity": "attention_block,mlp_block", "search": "AL-AM", "repair": "none"}
        how = deep if way == "blocks" else {"repair": way}
        secateur.prune(
            folder, out=tmp_path / "small", method="flap", ratio=0.4, align=1, samples=8,
            length=16, calibration=str(text_file), evaluate="none", **how,
        )  # fmt: skip
        folder = tmp_path / "small"
    ids = torch.randint(3, 128, (40,), generator=torch.Generator().manual_seed(0)).tolist()
    check_equal(folder, exported(folder, tmp_path / "out", no_tokenizer=True), ids)


@pytest.mark.parametrize("variant", ["qwen3-gqa", "gemma3"])
def test_random_models_of_families_with_one_width(
    variant: str, tiny_folder: Callable[..., Path], text_file: Path, tmp_path: Path
) -> None:
    layers = {"num_hidden_layers": 7, "sliding_window": 64} if variant == "gemma3" else {}
    folder = tiny_folder(variant, max_position_embeddings=128, **layers)
    secateur.prune(
        folder, out=tmp_path / "small", method="magnitude", ratio=0.3, align=1, stock=True,
        search="uniform", samples=8, length=16, calibration=str(text_file), evaluate="none",
    )  # fmt: skip
    ids = torch.randint(3, 128, (40,), generator=torch.Generator().manual_seed(0)).tolist()
    file = exported(tmp_path / "small", tmp_path / "out", no_tokenizer=True)
    # llama.cpp looks GELU up in a table of 16 bits
    check_equal(tmp_path / "small", file, ids, 0.05 if variant == "gemma3" else 1e-3)


def real(name: str) -> Path:
    """A model that was trained."""
    if name == "embedded":
        return Path(embedded_folder())
    if name == "smollm2-135m":
        if not SMOLLM2.exists():
            pytest.skip("SmolLM2-135M is not here")
        return SMOLLM2
    return shared(f"models/{name}")


@pytest.mark.parametrize("name", ["stories260K", "prose-3m", "embedded", "smollm2-135m"])
def test_tokens_are_the_tokenizers(name: str, tmp_path: Path) -> None:
    folder = real(name)
    ids = AutoTokenizer.from_pretrained(folder)(TEXT)["input_ids"]
    with engine(exported(folder, tmp_path / "out", "f16")) as found:
        assert found.tokenize(TEXT.encode(), add_bos=True, special=True) == ids
        assert found.metadata["general.architecture"] == "llama"


@pytest.mark.parametrize("ratio", [0.2, 0.5])
@pytest.mark.parametrize("name", ["stories260K", "embedded", "smollm2-135m"])
@pytest.mark.parametrize("way", ["free", "uniform"])
def test_trained_models_that_were_cut(name: str, ratio: float, way: str, tmp_path: Path) -> None:
    """With FLAP's biases and widths by layer; and with one width, refitted, of the stock class."""
    folder, small = real(name), tmp_path / "small"
    even = {
        "method": "flap", "search": "uniform", "attention_ratio": 0.0, "repair": "refit",
        "stock": True,
    }  # fmt: skip
    how = {"method": "flap"} if way == "free" else even
    secateur.prune(
        folder, out=small, ratio=ratio, samples=16, length=128, evaluate="none",
        calibration="embedded", prompts=0, **how,
    )  # fmt: skip
    ids = AutoTokenizer.from_pretrained(small)(TEXT)["input_ids"]
    check_equal(small, exported(small, tmp_path / "out"), ids)
    for kind in ("q8_0", "q4_0", "q4_k_m", "q2_k", "q6_k"):
        file = exported(small, tmp_path / "out", kind, force=True)
        with engine(file) as found:
            found.eval(ids)
            assert numpy.isfinite(found.scores[: len(ids)]).all()
            assert len(greedy(found, ids[:8], 20)) == 20


@pytest.mark.parametrize(
    ("kind", "head"), [("q4_k_m", "q4_0"), ("q4_k_m", "f16"), ("q4_0", "q4_0")]
)
def test_embedding_and_head_have_their_own_format_and_run(
    kind: str, head: str, tiny_folder: Any, tmp_path: Path
) -> None:
    gguf = pytest.importorskip("gguf")
    folder = tiny_folder(
        "llama-gqa", hidden_size=256, intermediate_size=256, num_attention_heads=4,
        num_key_value_heads=2, head_dim=64,
    )  # fmt: skip
    file = exported(folder, tmp_path / "out", kind, head_type=head, no_tokenizer=True)
    kinds = {one.name: one.tensor_type.name for one in gguf.GGUFReader(file).tensors}
    assert kinds["token_embd.weight"] == kinds["output.weight"] == head.upper()
    assert kinds["blk.0.ffn_up.weight"] == {"q4_k_m": "Q4_K"}.get(kind, kind.upper())
    with engine(file) as found:
        found.eval([5, 6, 7])
        assert numpy.isfinite(numpy.array(found.scores[:3])).all()
