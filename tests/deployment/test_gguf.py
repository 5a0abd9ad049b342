"""A GGUF file holds the model: read back by transformers, or tensor by tensor where it cannot."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import pytest
import torch
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

import secateur
from conftest import tiny_model, tiny_tokenizer
from secateur.cli.main import run
from secateur.deployment.gguf_tensors import interleaved
from secateur.deployment.gguf_tokens import BYTE, CONTROL, UNUSED, USER_DEFINED, vocabulary
from secateur.errors import SecateurError
from secateur.gguf_types import BLOCKS

# Rows of 64 and of 56.
BROAD = {
    "hidden_size": 64, "intermediate_size": 56, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 16,
}  # fmt: skip
TOKENS = torch.randint(3, 128, (2, 12), generator=torch.Generator().manual_seed(0))


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model.eval()(TOKENS).logits.float()
    return found


def written(folder: Path, out: Path, **options: Any) -> Path:
    """The file that a folder is exported to."""
    how: dict[str, Any] = {"type": "f32", "no_tokenizer": True, **options}
    done = secateur.export_model(folder, to="gguf", out=out, **how)
    return out / done.file


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


def read(file: Path) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    reader = gguf.GGUFReader(file)
    fields = {name: field.contents() for name, field in reader.fields.items()}
    tensors = {one.name: torch.tensor(one.data) for one in reader.tensors}
    return fields, tensors


def uninterleaved(rows: torch.Tensor, head_dim: int) -> torch.Tensor:
    """Row by row, by the equation."""
    back = torch.empty_like(rows)
    half = head_dim // 2
    for head in range(len(rows) // head_dim):
        for side in range(2):
            for i in range(half):
                back[head * head_dim + side * half + i] = rows[head * head_dim + 2 * i + side]
    return back


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
    says = ["Unknown target 'ggu'", "'gguf'"]
    assert_refused("export", folder, "--to", "ggu", "--out", out, says=says)
    says = ["Unknown type 'q9'", "q8_0"]
    assert_refused("export", folder, "--to", "gguf", "--type", "q9", "--out", out, says=says)
    assert_refused("export", folder, "--to", "gguf", says=["Add --out DIR"])
    says = ["--no-tokenizer"]  # the tiny tokenizer is of words
    assert_refused("export", folder, "--to", "gguf", "--out", out, says=says)
    assert not out.exists()


def test_blocks_are_those_of_the_package() -> None:
    for name, sizes in BLOCKS.items():
        assert gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[name]] == sizes


@pytest.mark.parametrize("kind", ["f16", "bf16", "q8_0", "q4_0"])
def test_number_formats_lose_what_they_must(
    kind: str, tiny_folder: Callable[..., Path], tmp_path: Path
) -> None:
    """Rows of 64 are quantised, rows of 56 are not, and embeddings never have fewer than 8 bits."""
    folder = tiny_folder(**BROAD)
    file = written(folder, tmp_path / "out", type=kind)
    kinds = {one.name: one.tensor_type.name for one in gguf.GGUFReader(file).tensors}
    wanted = kind.upper()
    assert kinds["blk.0.ffn_up.weight"] == wanted
    assert kinds["blk.0.ffn_down.weight"] == ("F16" if kind.startswith("q") else wanted)
    assert kinds["token_embd.weight"] == ("Q8_0" if kind.startswith("q") else wanted)
    assert kinds["blk.0.attn_norm.weight"] == "F32"
    back = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name)
    whole = logits(AutoModelForCausalLM.from_pretrained(folder))
    error = (logits(back) - whole).norm() / whole.norm()
    assert error < {"f16": 1e-3, "bf16": 1e-2, "q8_0": 0.03, "q4_0": 0.3}[kind]


def test_attention_of_another_sharpness_is_in_the_norms_of_q(
    tiny_folder: Callable[..., Path], tmp_path: Path
) -> None:
    folder = tiny_folder("gemma3", query_pre_attn_scalar=40, head_dim=10)
    _, tensors = read(written(folder, tmp_path / "out"))
    own = secateur.load(folder).model.layers[1].self_attn
    assert torch.allclose(tensors["blk.1.attn_q_norm.weight"], (own.q_norm.weight + 1) / 2)
    assert torch.allclose(tensors["blk.1.attn_k_norm.weight"], own.k_norm.weight + 1)
    large = tiny_folder("gemma3", query_pre_attn_scalar=40, head_dim=10, num_hidden_layers=62)
    with pytest.raises(SecateurError, match="--attention-ratio 0"):
        written(large, tmp_path / "large")


def test_odd_rows_are_told(
    tiny_folder: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tiny_folder(**BROAD)
    command = ["export", str(folder), "--to", "gguf", "--type", "q8_0", "--no-tokenizer"]
    assert run([*command, "--json", "--out", str(tmp_path / "out")]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["facts"]["architecture"] == "llama"
    assert any("--align 32" in note for note in said["notes"])
    assert (tmp_path / "out" / "Modelfile").read_text().startswith(f"FROM ./{said['file']}\n")


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


def byte_level(cuts: Any, **own: Any) -> PreTrainedTokenizerFast:
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {"</s>": 0, **{letter: n + 1 for n, letter in enumerate(letters)}}
    vocab |= {"he": len(vocab), "hel": len(vocab) + 1}
    backend = Tokenizer(models.BPE(vocab, [("h", "e"), ("he", "l")], **own))
    backend.pre_tokenizer = cuts
    backend.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>")


def test_the_rule_that_cuts_text_has_a_name() -> None:
    level = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bare = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    numbers = pre_tokenizers.Digits(individual_digits=True)
    words = (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
        r"|\s*[\r\n]+|\s+(?!\S)|\s+"
    )
    split = pre_tokenizers.Split(Regex(words), "isolated")
    found = vocabulary(byte_level(level), 300)
    assert (found.model, found.rule, found.merges) == ("gpt2", "gpt-2", ("h e", "he l"))
    assert found.kinds[0] == CONTROL
    assert found.kinds[299] == UNUSED
    assert len(set(found.tokens)) == 300
    both = pre_tokenizers.Sequence([numbers, level])
    assert vocabulary(byte_level(both), 300).rule == "smollm"
    both = pre_tokenizers.Sequence([split, bare])
    assert vocabulary(byte_level(both), 300).rule == "qwen2"
    for odd in (numbers, pre_tokenizers.Sequence([level, level]), split):
        with pytest.raises(SecateurError, match="--no-tokenizer"):
            vocabulary(byte_level(odd), 300)
    with pytest.raises(SecateurError, match="--no-tokenizer"):
        vocabulary(byte_level(level, ignore_merges=True), 300)
    with pytest.raises(SecateurError, match="byte-pair"):
        vocabulary(tiny_tokenizer(), 128)


def test_scores_merge_in_the_order_of_ranks() -> None:
    vocab = {"<unk>": 0, "\u2581": 1, "a": 2, "b": 3, "ab": 4, "\u2581ab": 5, "<0x41>": 6}
    merges = [("a", "b"), ("\u2581", "ab")]
    backend = Tokenizer(models.BPE(vocab, merges, unk_token="<unk>", byte_fallback=True))
    steps = [normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")]
    backend.normalizer = normalizers.Sequence(steps)
    backend.add_tokens(["<more>"])
    found = vocabulary(PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>"), 9)
    assert found.model == "llama"
    assert found.space_before
    assert found.scores[4] > found.scores[5] > found.scores[2]
    assert found.kinds[6] == BYTE
    assert found.kinds[7] == USER_DEFINED
    backend.normalizer = normalizers.Lowercase()
    with pytest.raises(SecateurError, match="Lowercase"):
        vocabulary(PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>"), 9)


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
    odd = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0}
    with pytest.raises(SecateurError, match="'yarn'"):
        written(tiny_folder(rope_parameters=odd), tmp_path / "b")
    fields, _ = read(written(tiny_folder("mistral-gqa"), tmp_path / "c"))
    assert fields["llama.context_length"] == 8  # the window


@pytest.mark.parametrize(("bits", "kind"), [(4, "q4_1"), (5, "q5_1")])
def test_few_bits_are_written_as_they_are(
    bits: int, kind: str, tiny_folder: Callable[..., Path], text_file: Path, tmp_path: Path
) -> None:
    """Codes, scales and zeros of a groupwise recovery are blocks of llama.cpp, to the bit."""
    dense, small = tiny_folder(**BROAD), tmp_path / "small"
    common: dict[str, Any] = {"length": 16, "evaluate": "none", "prompts": 0}
    secateur.prune(
        dense, out=tmp_path / "cut", method="magnitude", ratio=0.2, align=1, samples=4,
        calibration=str(text_file), **common,
    )  # fmt: skip
    secateur.recover(
        tmp_path / "cut", out=small, recipe="groupwise", bits=bits, group=64, data=str(text_file),
        samples=8, steps=1, **common,
    )  # fmt: skip
    file = written(small, tmp_path / "out", type=None)
    assert file.name.endswith(f"-{kind}.gguf")
    opened = secateur.open_model(small)
    names = {"mlp.up_proj": "ffn_up", "self_attn.q_proj": "attn_q", "self_attn.v_proj": "attn_v"}
    tensors = {one.name: one for one in gguf.GGUFReader(file).tensors}
    seen = 0
    for ours, theirs in names.items():
        for layer in range(3):
            stored = opened.codes[f"model.layers.{layer}.{ours}.weight"]()
            found = tensors[f"blk.{layer}.{theirs}.weight"]
            assert found.tensor_type.name == kind.upper()
            back = torch.tensor(gguf.quants.dequantize(found.data, found.tensor_type))
            if theirs == "attn_q":
                back = uninterleaved(back, 16)
            assert torch.equal(back, stored.weight(torch.float32))
            seen += 1
    assert seen == 9
    assert tensors["token_embd.weight"].tensor_type.name == "F16"
    assert written(small, tmp_path / "again", type="f32").name.endswith("-f32.gguf")
