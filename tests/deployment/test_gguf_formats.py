"""Number formats of a GGUF file: what is rounded, what is not, and what is told."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import pytest
import torch
from gguf_files import BROAD, logits, read, uninterleaved, written
from transformers import AutoModelForCausalLM

import secateur
from secateur.checkpoint import Packed
from secateur.cli.main import run
from secateur.deployment.gguf_tensors import exact_kind
from secateur.errors import SecateurError
from secateur.gguf_types import BLOCKS


@pytest.fixture
def few_bits(
    tiny_folder: Callable[..., Path], text_file: Path, tmp_path: Path
) -> Callable[..., Path]:
    """A folder whose linears are in so many bits, so many columns a group."""

    def make(bits: int, group: int, variant: str = "llama-gqa") -> Path:
        common: dict[str, Any] = {"length": 16, "evaluate": "none", "prompts": 0}
        secateur.prune(
            tiny_folder(variant, **BROAD), out=tmp_path / "cut", method="magnitude", ratio=0.2,
            align=1, samples=4, calibration=str(text_file), **common,
        )  # fmt: skip
        secateur.recover(
            tmp_path / "cut", out=tmp_path / "small", recipe="groupwise", bits=bits, group=group,
            data=str(text_file), samples=8, steps=1, **common,
        )  # fmt: skip
        return tmp_path / "small"

    return make


@pytest.mark.parametrize(("bits", "kind"), [(4, "q4_1"), (5, "q5_1")])
def test_few_bits_are_written_as_they_are(
    bits: int, kind: str, few_bits: Callable[..., Path], tmp_path: Path
) -> None:
    """Codes, scales and zeros of a groupwise recovery are blocks of llama.cpp, to the bit."""
    small = few_bits(bits, 64)
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


def test_few_bits_of_stacked_linears_are_written_one_by_one(
    few_bits: Callable[..., Path], tmp_path: Path
) -> None:
    """Phi-3's q, k and v are one weight, and gate and up another."""
    small = few_bits(4, 32, "phi3")
    file = written(small, tmp_path / "out", type=None)
    opened = secateur.open_model(small)
    tensors = {one.name: one for one in gguf.GGUFReader(file).tensors}
    for layer in range(3):
        stacked = {
            name: opened.codes[f"model.layers.{layer}.{name}.weight"]().weight(torch.float32)
            for name in ("self_attn.qkv_proj", "mlp.gate_up_proj")
        }
        back = {}
        for name in ("attn_q", "attn_k", "attn_v", "ffn_gate", "ffn_up"):
            found = tensors[f"blk.{layer}.{name}.weight"]
            assert found.tensor_type.name == "Q4_1"
            back[name] = torch.tensor(gguf.quants.dequantize(found.data, found.tensor_type))
            if name in ("attn_q", "attn_k"):
                back[name] = uninterleaved(back[name], 16)
        parts = [back[name] for name in ("attn_q", "attn_k", "attn_v")]
        assert torch.equal(torch.cat(parts), stacked["self_attn.qkv_proj"])
        parts = [back[name] for name in ("ffn_gate", "ffn_up")]
        assert torch.equal(torch.cat(parts), stacked["mlp.gate_up_proj"])


def test_an_adapter_over_few_bits_is_not_lost(
    few_bits: Callable[..., Path], tmp_path: Path
) -> None:
    peft = pytest.importorskip("peft")
    small = few_bits(4, 32)
    model = secateur.load(tmp_path / "cut")
    config = peft.LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False)
    peft.get_peft_model(model, config).save_pretrained(tmp_path / "tuned")
    settings = json.loads((tmp_path / "tuned" / "adapter_config.json").read_text())
    settings["base_model_name_or_path"] = str(small)
    (tmp_path / "tuned" / "adapter_config.json").write_text(json.dumps(settings))
    done = secateur.export_model(
        tmp_path / "tuned", to="gguf", out=tmp_path / "out", no_tokenizer=True, merge_adapter=True
    )
    assert done.type == "f16"
    assert any("merged with its adapter" in one for one in done.notes)


def test_groups_that_blocks_do_not_divide_are_not_exact() -> None:
    def codes(group: int, width: int, bits: int = 4) -> Any:
        groups = -(-width // group)
        whole = (
            torch.zeros(2, width, dtype=torch.uint8),
            torch.ones(2, groups),
            torch.ones(2, groups),
        )
        return lambda: Packed.of(*whole, bits=bits, group=group)

    assert exact_kind({}) is None
    assert exact_kind({"a": codes(32, 64)}) == "q4_1"
    assert exact_kind({"a": codes(48, 32), "b": codes(48, 64)}) is None
    assert exact_kind({"a": codes(32, 64), "b": codes(32, 64, bits=5)}) is None
    assert exact_kind({"a": codes(32, 64, bits=3)}) is None


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


@pytest.mark.parametrize(
    ("kind", "head", "found"),
    [("q4_0", "q4_0", "Q4_0"), ("f16", "q8_0", "Q8_0"), ("q4_0", "f16", "F16")],
)
def test_embedding_and_head_have_a_format_of_their_own(
    kind: str, head: str, found: str, tiny_folder: Callable[..., Path], tmp_path: Path
) -> None:
    file = written(tiny_folder(**BROAD), tmp_path / "out", type=kind, head_type=head)
    kinds = {one.name: one.tensor_type.name for one in gguf.GGUFReader(file).tensors}
    assert kinds["token_embd.weight"] == found
    assert kinds["output.weight"] == found
    assert kinds["blk.0.ffn_up.weight"] == kind.upper()
    assert file.stem.endswith(f"-{kind}" if kind == head else f"-{kind}-head-{head}")
    assert f'head_type = "{head}"' in (file.parent / "export.toml").read_text()


def test_a_format_of_the_head_is_refused_where_there_is_none(
    tiny_folder: Callable[..., Path], tmp_path: Path
) -> None:
    folder, out = tiny_folder(), tmp_path / "out"
    for to, head, message in (("safetensors", "q8_0", "--to gguf"), ("gguf", "q9", "q8_0")):
        with pytest.raises(SecateurError, match=message):
            secateur.export_model(folder, to=to, head_type=head, out=out)
    assert not out.exists()


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


def test_numbers_that_16_bits_do_not_hold_are_refused(
    tiny_folder: Callable[..., Path], tmp_path: Path
) -> None:
    model = secateur.load(tiny_folder())
    with torch.no_grad():
        model.model.layers[1].mlp.down_proj.weight[0, 0] = 1e5
    model.save_pretrained(tmp_path / "large")
    for kind in ("f16", "q8_0"):
        with pytest.raises(SecateurError, match=r"blk\.1\.ffn_down\.weight has .*\n.*--type bf16"):
            written(tmp_path / "large", tmp_path / "out", type=kind)
        assert not (tmp_path / "out").exists()
    written(tmp_path / "large", tmp_path / "out", type="bf16")


def test_a_disk_that_fills_up_is_told_as_such(
    tiny_folder: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    assert_refused: Callable[..., str],
) -> None:
    def full(self: Any, *args: Any) -> None:
        raise OSError("11008 requested and 10192 written")

    monkeypatch.setattr(gguf.GGUFWriter, "write_tensor_data", full)
    command = ["export", tiny_folder(), "--to", "gguf", "--no-tokenizer", "--out", tmp_path / "out"]
    assert_refused(*command, says=["No space left"])
    assert not (tmp_path / "out").exists()


def test_few_bits_of_a_bf16_folder_are_what_they_stand_for(
    few_bits: Callable[..., Path], tmp_path: Path
) -> None:
    """The view rounds them to the dtype of the checkpoint, and the file does not."""
    small = few_bits(4, 32)
    config = json.loads((small / "config.json").read_text()) | {"dtype": "bfloat16"}
    (small / "config.json").write_text(json.dumps(config))
    _, tensors = read(written(small, tmp_path / "out", type="f32"))
    opened = secateur.open_model(small)
    name = "model.layers.1.mlp.up_proj.weight"
    assert torch.equal(tensors["blk.1.ffn_up.weight"], opened.codes[name]().weight(torch.float32))
    assert not torch.equal(tensors["blk.1.ffn_up.weight"], opened.weights.tensor(name).float())


def test_a_file_has_a_name_that_a_modelfile_can_say(
    tiny_folder: Callable[..., Path], tmp_path: Path
) -> None:
    odd = tmp_path / 'a\nb "c" \u00e9'
    tiny_folder().rename(odd)
    file = written(odd, tmp_path / "out", type=None)
    assert file.name == "a-b--c-f16.gguf"
    assert (tmp_path / "out" / "Modelfile").read_text().splitlines()[0] == f"FROM ./{file.name}"
