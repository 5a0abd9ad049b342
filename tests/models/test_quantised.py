"""Quantised checkpoints: named as what they are, read as floating point where that is asked for."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import secateur
from conftest import logits, tiny_model, tiny_tokenizer
from secateur.checkpoint import TensorSpec, View
from secateur.models import load, open_model
from secateur.models.fitted import stored_apart
from secateur.pipeline import convert

_FP8 = {"quant_method": "fp8", "weight_block_size": [16, 16], "activation_scheme": "dynamic"}
_SIZES = {"hidden_size": 64, "intermediate_size": 96, "head_dim": 16}
_HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2}

Changed = dict[str, torch.Tensor]


@pytest.fixture
def quantised(tmp_path: Path) -> Callable[..., Path]:
    """Write a checkpoint whose linears `change` has quantised; `settings` go to config.json."""

    def make(
        change: Callable[[str, torch.Tensor], Changed],
        settings: dict[str, Any] | None = None,
        variant: str = "llama-gqa",
        **sizes: Any,
    ) -> Path:
        folder = tmp_path / "quantised"
        tiny_model(variant, **{**_SIZES, **_HEADS, **sizes}).save_pretrained(folder)
        tiny_tokenizer().save_pretrained(folder)
        held: Changed = {}
        for name, tensor in load_file(folder / "model.safetensors").items():
            linear = "proj" in name and "bias" not in name
            held |= change(name, tensor) if linear else {name: tensor}
        save_file({n: t.contiguous() for n, t in held.items()}, folder / "model.safetensors")
        config = json.loads((folder / "config.json").read_text())
        config |= {"quantization_config": settings} if settings else {}
        (folder / "config.json").write_text(json.dumps(config))
        return folder

    return make


def _fp8(block: int) -> Callable[[str, torch.Tensor], Changed]:
    def change(name: str, weight: torch.Tensor) -> Changed:
        rows, columns = (-(-size // block) for size in weight.shape)
        scales = torch.rand(rows, columns, generator=torch.Generator().manual_seed(1)) + 0.5
        codes = (weight * 4).to(torch.float8_e4m3fn)
        return {name: codes, f"{name}_scale_inv": scales}

    return change


def test_fp8_in_blocks_is_what_transformers_makes_of_it(
    quantised: Any, tokens: torch.Tensor
) -> None:
    from transformers import AutoModelForCausalLM, FineGrainedFP8Config

    folder = quantised(_fp8(16), _FP8)
    ours = load(folder, dequantise=True)
    how = FineGrainedFP8Config(weight_block_size=(16, 16), dequantize=True)
    theirs = AutoModelForCausalLM.from_pretrained(
        folder, quantization_config=how, dtype=torch.float32
    )
    for name, tensor in theirs.state_dict().items():
        assert torch.equal(ours.state_dict()[name], tensor), name
    assert torch.equal(logits(ours, tokens), logits(theirs, tokens))


def test_fp8_blocks_may_be_cut_short_at_the_edge(quantised: Any) -> None:
    settings = {**_FP8, "weight_block_size": [40, 40]}
    folder = quantised(_fp8(40), settings)
    stored = load_file(folder / "model.safetensors")
    weights = open_model(folder, dequantise=True).weights
    name = "model.layers.0.mlp.up_proj.weight"  # 96 x 64: blocks of 40, 40, 16 and 40, 24
    scales = stored[f"{name}_scale_inv"]
    for row, column in ((0, 0), (39, 40), (80, 63), (95, 39)):
        wanted = stored[name][row, column].float() * scales[row // 40, column // 40]
        assert weights.tensor(name)[row, column] == wanted


@pytest.mark.parametrize("shape", [[], [1]])
def test_fp8_with_one_scale_for_all(quantised: Any, shape: list[int]) -> None:
    def change(name: str, weight: torch.Tensor) -> Changed:
        scale = torch.full(shape, 0.25)
        act = name.replace(".weight", ".activation_scale")
        return {
            name: weight.to(torch.float8_e4m3fn),
            f"{name}_scale_inv": scale,
            act: scale.clone(),
        }

    folder = quantised(change, {**_FP8, "weight_block_size": None})
    stored = load_file(folder / "model.safetensors")
    weights = open_model(folder, dequantise=True).weights
    name = "model.layers.1.self_attn.o_proj.weight"
    assert torch.equal(weights.tensor(name), stored[name].float() * 0.25)


def test_int8_rows_of_bitsandbytes(quantised: Any) -> None:
    def change(name: str, weight: torch.Tensor) -> Changed:
        most = weight.abs().amax(dim=1)
        codes = (weight / most[:, None] * 127).round().to(torch.int8)
        return {name: codes, name.replace(".weight", ".SCB"): most}

    settings = {"quant_method": "bitsandbytes", "load_in_8bit": True}
    folder = quantised(change, settings)
    dense = tiny_model(**_SIZES, **_HEADS).state_dict()
    weights = open_model(folder, dequantise=True).weights
    for name, tensor in dense.items():
        step = tensor.abs().amax(dim=-1, keepdim=True) / 127 if tensor.dim() == 2 else 0
        assert ((weights.tensor(name) - tensor).abs() <= step / 2 + 1e-6).all(), name


def test_rows_of_int8_without_their_scale_are_named(quantised: Any) -> None:
    def change(name: str, weight: torch.Tensor) -> Changed:
        return {name: weight.to(torch.int8)}

    folder = quantised(change, {"quant_method": "bitsandbytes", "load_in_8bit": True})
    with pytest.raises(secateur.SecateurError, match=r"lacks .*mlp\.up_proj\.SCB"):
        open_model(folder, dequantise=True).weights.tensor("model.layers.0.mlp.up_proj.weight")


def test_a_head_in_codes_is_compared_by_what_it_stands_for() -> None:
    """The first row of the embeddings is as wide as the hidden state, that of codes is not."""

    specs = dict.fromkeys(("head", "embeddings"), TensorSpec((4, 8), torch.float32))

    def head(name: str) -> torch.Tensor:
        width, dtype = (4, torch.uint8) if name == "head" else (8, torch.float32)
        return torch.ones(1, width, dtype=dtype)

    coded = View(specs, lambda _: torch.ones(4, 8), head)
    tied: Any = torch.nn.Module()
    tied.all_tied_weights_keys = {"head": "embeddings"}
    assert stored_apart(coded, tied) == []


def test_mxfp4_is_what_transformers_makes_of_it(tmp_path: Path, tokens: torch.Tensor) -> None:
    from transformers import AutoModelForCausalLM, Mxfp4Config

    folder = tmp_path / "oss"
    model = tiny_model("gpt_oss", hidden_size=64, intermediate_size=32, head_dim=16)
    model.save_pretrained(folder)
    draw = torch.Generator().manual_seed(3)
    held: Changed = {}
    for name, tensor in load_file(folder / "model.safetensors").items():
        if not name.endswith(("gate_up_proj", "down_proj")):
            held[name] = tensor
            continue
        experts, width, rows = tensor.shape
        blocks = (experts, rows, width // 32, 16)
        held[f"{name}_blocks"] = torch.randint(256, blocks, generator=draw, dtype=torch.uint8)
        scales = torch.randint(118, 124, blocks[:3], generator=draw, dtype=torch.uint8)
        held[f"{name}_scales"] = scales
    save_file(held, folder / "model.safetensors")
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "mxfp4"}
    (folder / "config.json").write_text(json.dumps(config))
    how = Mxfp4Config(dequantize=True)
    theirs = AutoModelForCausalLM.from_pretrained(
        folder, quantization_config=how, dtype=torch.float32
    )
    ours = load(folder, dequantise=True)
    for name, tensor in theirs.state_dict().items():
        assert torch.equal(ours.state_dict()[name], tensor), name


def test_convert_writes_the_floating_point_model(
    quantised: Any, tmp_path: Path, tokens: torch.Tensor
) -> None:
    folder = quantised(_fp8(16), _FP8)
    (folder / "quantize_config.json").write_text("{}")
    out = tmp_path / "plain"
    convert(folder, out=out, dequantise=True)
    assert torch.equal(logits(load(out), tokens), logits(load(folder, dequantise=True), tokens))
    assert "quantization_config" not in json.loads((out / "config.json").read_text())
    assert not (out / "quantize_config.json").exists()


def test_what_is_pruned_is_floating_point(quantised: Any, tmp_path: Path) -> None:
    folder, out = quantised(_fp8(16), _FP8), tmp_path / "out"
    how = {"dequantise": True, "method": "magnitude", "evaluate": "none"}
    result = secateur.prune(folder, out=out, **how)
    assert "the weights are dequantised from fp8" in result.notes
    assert "quantization_config" not in json.loads((out / "config.json").read_text())
    assert all(t.dtype == torch.float32 for t in load_file(out / "model.safetensors").values())


def _gptq(name: str, weight: torch.Tensor) -> Changed:
    path = name.removesuffix(".weight")
    parts = {"qweight": (8, 8), "qzeros": (1, 8), "scales": (1, 8), "g_idx": (8,)}
    return {f"{path}.{part}": torch.zeros(size, dtype=torch.int32) for part, size in parts.items()}


def _awq(name: str, weight: torch.Tensor) -> Changed:
    return {n: t for n, t in _gptq(name, weight).items() if "g_idx" not in n}


def _nf4(name: str, weight: torch.Tensor) -> Changed:
    parts = ("absmax", "quant_map", "quant_state.bitsandbytes__nf4")
    return {name: torch.zeros(4, 1, dtype=torch.uint8)} | {
        f"{name}.{part}": torch.zeros(4, dtype=torch.uint8) for part in parts
    }


_NAMED: dict[str, tuple[Any, dict[str, Any] | None, str | None, list[str]]] = {
    "gptq": (_gptq, {"quant_method": "gptq", "bits": 4}, None, ["GPTQ", "floating-point model"]),
    "gptq by its file": (_gptq, None, "quantize_config.json", ["GPTQ", "GPTQModel"]),
    "gptq by its tensors": (_gptq, None, None, ["GPTQ"]),
    "awq by its file": (_awq, None, "quant_config.json", ["AWQ", "floating-point model"]),
    "fp8": (_fp8(16), _FP8, None, ["fp8", "--dequantise"]),
    "fp8 by its tensors": (_fp8(16), None, None, ["fp8", "--dequantise"]),
    "bitsandbytes by its tensors": (_nf4, None, None, ["bitsandbytes, 4 bits", "--dequantise"]),
    "compressed-tensors": (
        _awq,
        {"quant_method": "compressed-tensors", "format": "pack-quantized"},
        None,
        ["compressed-tensors", "--dequantise"],
    ),
    "unknown": (_awq, {"quant_method": "vptq"}, None, ["quantised .vptq.", "floating-point model"]),
}


@pytest.mark.parametrize(("change", "settings", "file", "says"), _NAMED.values(), ids=_NAMED)
def test_quantised_models_are_called_what_they_are(
    quantised: Any, assert_refused: Any, change: Any, settings: Any, file: Any, says: list[str]
) -> None:
    folder = quantised(change, settings)
    if file is not None:
        (folder / file).write_text("{}")
    assert_refused("inspect", folder, says=says)


@pytest.mark.parametrize(
    ("change", "settings", "package"),
    [
        (_nf4, None, "bitsandbytes"),
        (_awq, {"quant_method": "compressed-tensors"}, "compressed-tensors"),
    ],
)
def test_packages_are_asked_for_before_anything(
    quantised: Any,
    assert_refused: Any,
    monkeypatch: pytest.MonkeyPatch,
    change: Any,
    settings: Any,
    package: str,
) -> None:
    folder = quantised(change, settings)
    monkeypatch.setattr("secateur.models.inputs.quantised.find_spec", lambda name: None)
    assert_refused("inspect", folder, "--dequantise", says=[f"pip install {package}"])


def test_a_file_beside_floating_point_weights_says_nothing(model: Path) -> None:
    (model / "quantize_config.json").write_text('{"bits": 4}')
    assert open_model(model).made == ""


@pytest.mark.slow
def test_bitsandbytes_in_four_bits_by_its_own_code(quantised: Any) -> None:
    functional = pytest.importorskip("bitsandbytes.functional")

    def change(name: str, weight: torch.Tensor) -> Changed:
        codes, state = functional.quantize_4bit(weight, quant_type="nf4", blocksize=64)
        parts = state.as_dict(packed=True)
        return {name: codes} | {f"{name}.{part}": value for part, value in parts.items()}

    folder = quantised(change, {"quant_method": "bitsandbytes", "load_in_4bit": True})
    weights = open_model(folder, dequantise=True).weights
    for name, tensor in tiny_model(**_SIZES, **_HEADS).state_dict().items():
        if "proj" in name:
            codes, state = functional.quantize_4bit(tensor, quant_type="nf4", blocksize=64)
            assert torch.equal(weights.tensor(name), functional.dequantize_4bit(codes, state))


@pytest.mark.slow
@pytest.mark.parametrize("bits", [4, 8])
def test_compressed_tensors_by_its_own_code(quantised: Any, bits: int) -> None:
    pytest.importorskip("compressed_tensors")
    from compressed_tensors.compressors import BaseCompressor
    from compressed_tensors.quantization import QuantizationScheme

    form = "pack-quantized" if bits == 4 else "int-quantized"
    settings = {"num_bits": bits, "type": "int", "symmetric": True, "strategy": "channel"}
    scheme = QuantizationScheme(targets=["Linear"], weights=settings, format=form)
    compressor = BaseCompressor.get_value_from_registry(form)

    def change(name: str, weight: torch.Tensor) -> Changed:
        scale = weight.abs().amax(dim=1, keepdim=True) / (2 ** (bits - 1) - 1)
        stored = {"weight": weight, "weight_scale": scale}
        packed = compressor.compress(stored, scheme)
        return {name.replace("weight", part): value for part, value in packed.items()}

    group = {"targets": ["Linear"], "weights": settings, "format": form}
    folder = quantised(
        change,
        {"quant_method": "compressed-tensors", "format": form, "config_groups": {"group_0": group}},
    )
    weights = open_model(folder, dequantise=True).weights
    for name, tensor in tiny_model(**_SIZES, **_HEADS).state_dict().items():
        if "proj" in name:
            step = tensor.abs().amax(dim=1, keepdim=True) / (2 ** (bits - 1) - 1)
            assert ((weights.tensor(name) - tensor).abs() <= step / 2 + 1e-6).all(), name
