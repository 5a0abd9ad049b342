"""A GGUF file holds the model: read back by transformers, or tensor by tensor where it cannot."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from gguf_files import logits, read, uninterleaved, written
from transformers import AutoModelForCausalLM

import secateur
from conftest import tiny_model
from secateur.deployment.gguf_tensors import interleaved
from secateur.errors import SecateurError


@pytest.mark.parametrize(
    "variant", ["llama-gqa", "llama-tied", "mistral-mha", "qwen2-gqa", "qwen3-gqa", "gemma3"]
)
def test_transformers_reads_the_same_model_back(
    variant: str, tiny_folder: Callable[..., Path], tmp_path: Path
) -> None:
    # gemma3 needs a global layer; transformers' reader takes heads to be as wide as the makers' are
    changes = {
        "gemma3": {"num_hidden_layers": 7, "head_dim": 256},
        "qwen3-gqa": {"head_dim": 128},
    }
    folder = tiny_folder(variant, **changes.get(variant, {}))
    file = written(folder, tmp_path / "out")
    back = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name)
    whole = AutoModelForCausalLM.from_pretrained(folder)
    assert (logits(back) - logits(whole)).abs().max() < 1e-4
    assert [one.name for one in file.parent.iterdir() if one.suffix == ".gguf"] == [file.name]


def test_rows_of_halves_lie_beside_one_another() -> None:
    rows = torch.arange(24.0)[:, None]
    assert torch.equal(uninterleaved(interleaved(rows, 8), 8), rows)
    assert interleaved(rows, 8)[:4, 0].tolist() == [0, 4, 1, 5]


@pytest.mark.parametrize("variant", ["llama-gqa", "mistral-gqa", "qwen2-gqa"])
def test_layers_of_several_widths_are_deci(
    variant: str, pruned: Callable[..., Path], tmp_path: Path
) -> None:
    folder = pruned(variant, method="flap")
    fields, tensors = read(written(folder, tmp_path / "out"))
    model = secateur.load(folder)
    state = {name: value.float() for name, value in model.state_dict().items()}
    head_dim = fields["deci.attention.key_length"]
    layers = model.model.layers
    assert fields["general.architecture"] == "deci"
    assert fields["deci.feed_forward_length"] == [x.mlp.down_proj.in_features for x in layers]
    for name in ("q", "k"):
        key = {"q": "head_count", "k": "head_count_kv"}[name]
        rows = [getattr(x.self_attn, f"{name}_proj").out_features for x in layers]
        assert fields[f"deci.attention.{key}"] == [one // head_dim for one in rows]
    assert len(set(fields["deci.feed_forward_length"])) > 1
    names = {
        "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
        "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
        "mlp.down_proj": "ffn_down",
    }  # fmt: skip
    seen = set()
    for ours, theirs in names.items():
        for layer in range(len(layers)):
            for part in ("weight", "bias"):
                here = f"model.layers.{layer}.{ours}.{part}"
                there = f"blk.{layer}.{theirs}.{part}"
                assert (here in state) == (there in tensors)
                if here in state:
                    found = tensors[there]
                    turned = theirs in ("attn_q", "attn_k")
                    found = uninterleaved(found, head_dim) if turned else found
                    assert torch.equal(found, state[here])
                    seen.add(part)
    assert seen == {"weight", "bias"}


def test_blocks_that_are_gone_are_zeros(
    tiny_folder: Callable[..., Path], text_file: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "small"
    secateur.prune(
        tiny_folder(), out=folder, granularity="attention_block,mlp_block", ratio=0.4,
        method="magnitude", search="AL-AM", calibration=str(text_file), samples=4, length=16,
        evaluate="none",
    )  # fmt: skip
    fields, tensors = read(written(folder, tmp_path / "out"))
    modules = json.loads((folder / "config.json").read_text())["pruned_modules"]
    gone = [path for path, sizes in modules.items() if "absent" in sizes]
    assert gone
    for path in gone:
        layer = int(path.split(".")[2])
        last = "attn_output" if path.endswith("self_attn") else "ffn_down"
        assert not tensors[f"blk.{layer}.{last}.weight"].any()
        assert f"blk.{layer}.{last}.bias" not in tensors
    assert min(fields["deci.attention.head_count"]) >= 1
    assert min(fields["deci.feed_forward_length"]) >= 1


@pytest.mark.parametrize(
    ("variant", "says"),
    [
        ("bloom", ["knows no layers of the family 'bloom'", "llama"]),
        ("qwen3-gqa", ["has one width for all layers", "layers 0 and", "--profile gguf"]),
        ("gemma3", ["has one width for all layers", "--profile gguf"]),
    ],
)
def test_what_llama_cpp_cannot_hold_is_refused(
    variant: str,
    says: list[str],
    pruned: Callable[..., Path],
    tmp_path: Path,
    assert_refused: Callable[..., str],
) -> None:
    folder = pruned(variant, method="flap")
    assert_refused(
        "export", folder, "--to", "gguf", "--no-tokenizer", "--out", tmp_path / "out", says=says
    )
    assert not (tmp_path / "out").exists()


def test_names_that_do_not_exist_are_refused(
    tiny_folder: Callable[..., Path], tmp_path: Path, assert_refused: Callable[..., str]
) -> None:
    folder, out = tiny_folder(), tmp_path / "out"
    says = ["Unknown destination 'ggu'", "'gguf'"]
    assert_refused("export", folder, "--to", "ggu", "--out", out, says=says)
    says = ["Unknown type 'q9'", "q8_0"]
    assert_refused("export", folder, "--to", "gguf", "--type", "q9", "--out", out, says=says)
    assert_refused("export", folder, "--to", "gguf", says=["Add --out DIR"])
    says = ["--no-tokenizer"]  # the tiny tokenizer is of words
    assert_refused("export", folder, "--to", "gguf", "--out", out, says=says)
    assert not out.exists()


def test_attention_of_another_sharpness_is_in_the_norms_of_q(
    tiny_folder: Callable[..., Path], tmp_path: Path
) -> None:
    folder = tiny_folder("gemma3", query_pre_attn_scalar=40, head_dim=10)
    _, tensors = read(written(folder, tmp_path / "out"))
    own = secateur.load(folder).model.layers[1].self_attn
    assert torch.allclose(tensors["blk.1.attn_q_norm.weight"], (own.q_norm.weight + 1) / 2)
    assert torch.allclose(tensors["blk.1.attn_k_norm.weight"], own.k_norm.weight + 1)
    large = tiny_folder("gemma3", query_pre_attn_scalar=32, head_dim=10, num_hidden_layers=62)
    _, tensors = read(written(large, tmp_path / "large"))  # llama.cpp divides by width by heads: 8
    own = secateur.load(large).model.layers[1].self_attn
    assert torch.allclose(tensors["blk.1.attn_q_norm.weight"], (own.q_norm.weight + 1) / 2)


def test_windows_and_caps_of_gemma3_are_in_the_file(
    tiny_folder: Callable[..., Path], tmp_path: Path
) -> None:
    kinds = ["full_attention", "sliding_attention", "sliding_attention"]
    folder = tiny_folder("gemma3", layer_types=kinds, final_logit_softcapping=30.0)
    fields, _ = read(written(folder, tmp_path / "out"))
    assert fields["gemma3.attention.sliding_window_pattern"] == [False, True, True]
    assert fields["gemma3.attention.sliding_window"] == 8
    assert fields["gemma3.final_logit_softcapping"] == 30.0


def test_a_stream_that_was_cut_has_its_width(
    tiny_folder: Callable[..., Path], text_file: Path, tmp_path: Path
) -> None:
    how: dict[str, Any] = {
        "granularity": "hidden", "method": "magnitude", "search": "AL-AM", "repair": "none",
        "ratio": 0.2, "align": 1, "calibration": str(text_file), "samples": 4, "length": 16,
        "evaluate": "none", "prompts": 0,
    }  # fmt: skip
    secateur.prune(tiny_folder(), out=tmp_path / "small", **how)
    fields, tensors = read(written(tmp_path / "small", tmp_path / "out"))
    width = secateur.load(tmp_path / "small").model.embed_tokens.weight.shape[1]
    assert width < 48
    (length,) = (v for name, v in fields.items() if name.endswith("embedding_length"))
    assert length == width == tensors["token_embd.weight"].shape[1]
    secateur.prune(tiny_folder("gemma3"), out=tmp_path / "gemma", **how)
    with pytest.raises(SecateurError, match="scales embeddings"):
        written(tmp_path / "gemma", tmp_path / "out", force=True)


def test_a_folder_that_was_exported_is_ours_to_replace(
    tiny_folder: Callable[..., Path], tmp_path: Path, assert_refused: Callable[..., str]
) -> None:
    folder, out = tiny_folder(), tmp_path / "out"
    written(folder, out)
    with pytest.raises(SecateurError, match="--force"):
        written(folder, out)
    written(folder, out, force=True)
    (out / "mine.txt").write_text("not ours")
    with pytest.raises(SecateurError, match=r"mine\.txt"):
        written(folder, out, force=True)


def test_the_rotary_embedding_is_told_or_refused(
    tiny_folder: Callable[..., Path], tmp_path: Path
) -> None:
    scaled = {
        "rope_type": "llama3", "rope_theta": 10000.0, "factor": 8.0, "low_freq_factor": 1.0,
        "high_freq_factor": 4.0, "original_max_position_embeddings": 32,
    }  # fmt: skip
    folder = tiny_folder(rope_parameters=scaled)
    fields, tensors = read(written(folder, tmp_path / "a"))
    buffers = dict(tiny_model(rope_parameters=scaled).named_buffers())
    plain = dict(tiny_model().named_buffers())
    (name,) = (name for name in plain if name.endswith("rotary_emb.inv_freq"))
    assert torch.allclose(tensors["rope_freqs.weight"], plain[name] / buffers[name], rtol=1e-5)
    assert fields["llama.rope.freq_base"] == 10000.0
    linear = {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0}
    fields, _ = read(written(tiny_folder(rope_parameters=linear), tmp_path / "linear"))
    assert fields["llama.rope.scaling.type"] == "linear"
    assert fields["llama.rope.scaling.factor"] == 4.0
    # qwen2's own has no factors, and deci has
    fields, _ = read(written(tiny_folder("qwen2-gqa", rope_parameters=scaled), tmp_path / "qwen2"))
    assert fields["general.architecture"] == "deci"
    with pytest.raises(SecateurError, match="'llama3'"):
        written(tiny_folder("qwen3-gqa", rope_parameters=scaled), tmp_path / "qwen3")
    odd = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0}
    with pytest.raises(SecateurError, match="'yarn'"):
        written(tiny_folder(rope_parameters=odd), tmp_path / "b")
    fields, _ = read(written(tiny_folder("mistral-gqa"), tmp_path / "c"))
    assert fields["llama.context_length"] == 8  # the window
