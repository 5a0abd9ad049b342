"""GGUF files as MODEL: the same weights that transformers reads, one tensor at a time."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers.convert_slow_tokenizer import bytes_to_unicode

import secateur
from conftest import tiny_model, tiny_tokenizer
from secateur import pipeline
from secateur.cli.main import run
from secateur.models import load, open_model

gguf = pytest.importorskip("gguf")

_NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
}


def _gguf_name(name: str) -> str:
    for own, theirs in _NAMES.items():
        name = name.replace(own, theirs)
    return name.replace("model.layers.", "blk.")


def _permuted(weight: np.ndarray, heads: int) -> np.ndarray:
    """The order of rows that llama.cpp has for the queries and keys of a llama."""
    return weight.reshape(heads, 2, -1, *weight.shape[1:]).swapaxes(1, 2).reshape(weight.shape)


def write_gguf(file: Path, model: Any, kind: Any = None) -> None:
    """Write a tiny llama as llama.cpp's converter does; matrices in the quantisation `kind`."""
    config = model.config
    writer = gguf.GGUFWriter(file, "llama")
    writer.add_name("tiny")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(config.head_dim)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(10000.0)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("default")
    tokens = ["<pad>", "<s>", "</s>", "th", "the", *list(bytes_to_unicode().values())[:123]]
    writer.add_token_list(tokens)
    writer.add_token_types([3 if n < 3 else 1 for n in range(config.vocab_size)])
    writer.add_token_merges(["t h", "th e"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    for name, tensor in model.state_dict().items():
        weight = tensor.float().numpy()
        if "q_proj" in name:
            weight = _permuted(weight, config.num_attention_heads)
        if "k_proj" in name:
            weight = _permuted(weight, config.num_key_value_heads)
        if kind is None or weight.ndim == 1:
            writer.add_tensor(_gguf_name(name), np.ascontiguousarray(weight))
        else:
            packed = gguf.quantize(weight, kind)
            writer.add_tensor(_gguf_name(name), packed, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.fixture
def llama() -> Any:
    sizes = {"hidden_size": 64, "intermediate_size": 64, "head_dim": 16}
    return tiny_model(num_attention_heads=4, num_key_value_heads=2, **sizes)


def _theirs(file: Path, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=dtype)
    return dict(model.state_dict())


@pytest.mark.parametrize("kind", [None, "Q8_0", "Q4_0"])
def test_weights_are_those_that_transformers_reads(tmp_path: Path, llama: Any, kind: Any) -> None:
    file = tmp_path / "tiny.gguf"
    write_gguf(file, llama, kind and getattr(gguf.GGMLQuantizationType, kind))
    opened = open_model(file)
    wanted = _theirs(file, opened.dtype)
    assert opened.dtype is (torch.float32 if kind is None else torch.bfloat16)
    assert set(opened.weights.specs) == set(wanted)
    for name, tensor in wanted.items():
        assert opened.weights.specs[name].shape == tensor.shape
        assert torch.equal(opened.weights.tensor(name), tensor), name


def test_a_float_file_gives_the_model_back(tmp_path: Path, llama: Any) -> None:
    file = tmp_path / "tiny.gguf"
    write_gguf(file, llama)
    ids = torch.arange(3, 40)[None]
    with torch.no_grad():
        wanted = llama(input_ids=ids).logits
        assert torch.equal(load(file)(input_ids=ids).logits, wanted)


@pytest.mark.slow
def test_every_command_takes_the_file(tmp_path: Path, llama: Any, text_file: Path) -> None:
    (tmp_path / "in").mkdir()
    file = tmp_path / "in" / "tiny.gguf"
    write_gguf(file, llama)
    (tmp_path / "in" / "LICENSE").write_text("of something else")
    out, plain = tmp_path / "out", tmp_path / "plain"
    short = ["--samples", "8", "--length", "16", "--calibration", text_file]
    magnitude = ["--methods", "magnitude", "--ratios", "0.2"]
    for arguments in (
        ["prune", file, *short, "--out", out],
        ["evaluate", file, "--evaluate", text_file, "--evaluate-lengths", "32"],
        ["inspect", file],
        ["discover", file],
        ["convert", file, "--out", plain],
        ["compare", file, *magnitude, *short],
    ):
        assert run([str(argument) for argument in arguments]) == 0
    for folder in (out, plain):
        assert (folder / "tokenizer.json").is_file()
        assert not (folder / "LICENSE").exists()  # what lies beside a file is not its own
        assert not list(folder.glob("*.gguf"))
    same = open_model(plain).weights
    for name in same.specs:
        assert torch.equal(same.tensor(name), open_model(file).weights.tensor(name))
    assert "dequantised from GGUF" in str(pipeline.inspect(file)["facts"])


def test_a_folder_whose_only_weights_are_one_file_is_that_model(tmp_path: Path, llama: Any) -> None:
    write_gguf(tmp_path / "tiny.gguf", llama)
    tiny_tokenizer().save_pretrained(tmp_path)
    (tmp_path / "LICENSE").write_text("ours")
    opened = open_model(tmp_path)
    assert opened.made == "dequantised from GGUF"
    assert opened.tokenizer.convert_tokens_to_ids("A") == 65  # that of the folder
    result = secateur.prune(
        tmp_path, out=tmp_path / "out", method="magnitude", evaluate="none", samples=2, length=8
    )
    assert (tmp_path / "out" / "LICENSE").read_text() == "ours"
    assert "the weights are dequantised from GGUF" in result.notes


def test_two_files_are_not_chosen_from(tmp_path: Path, llama: Any) -> None:
    for name in ("a.gguf", "b.gguf"):
        write_gguf(tmp_path / name, llama)
    with pytest.raises(secateur.SecateurError, match=r"has 2 GGUF files[^\n]*\nName one: "):
        open_model(tmp_path)


def test_what_is_no_gguf_is_named(tmp_path: Path) -> None:
    (tmp_path / "x.gguf").write_bytes(b"GGUF" + bytes(40))
    with pytest.raises(secateur.SecateurError, match="no sound GGUF file"):
        open_model(tmp_path / "x.gguf")


def test_the_package_is_asked_for_before_anything(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "x.gguf").write_bytes(b"")
    monkeypatch.setattr("secateur.models.inputs.gguf.find_spec", lambda name: None)
    with pytest.raises(secateur.SecateurError, match=r'pip install "secateur\[gguf\]"'):
        open_model(tmp_path / "x.gguf")
