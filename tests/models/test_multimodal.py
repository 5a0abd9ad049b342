"""Multimodal checkpoints: the text decoder is pruned inside them, or written alone."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors import safe_open
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

import secateur
from conftest import logits, tiny_tokenizer
from secateur.export.proof import mask
from secateur.models import load, open_config, open_model
from secateur.pipeline import convert, inspect
from secateur.structure import Plan

_TEXT: dict[str, Any] = {
    "vocab_size": 128,
    "hidden_size": 48,
    "intermediate_size": 56,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "num_key_value_heads": 3,
    "head_dim": 8,
    "max_position_embeddings": 64,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
_SIGLIP = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 16,
    "patch_size": 8,
}
_PIXTRAL = {**_SIGLIP, "head_dim": 8, "model_type": "pixtral"}
_QWEN = {"depth": 1, "num_heads": 2, "patch_size": 8, "hidden_size": 16, "out_hidden_size": 48}
_QWEN3 = {**_QWEN, "deepstack_visual_indexes": [0], "num_position_embeddings": 16}
_IDS = {"image_token_id": 120, "video_token_id": 121, "vision_start_token_id": 122}
_LLAMA4 = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 16,
    "patch_size": 4,
    "vision_output_dim": 16,
    "projector_input_dim": 16,
    "projector_output_dim": 16,
    "pixel_shuffle_ratio": 0.5,
}
_ROUTED = {"num_experts_per_tok": 2, "moe_intermediate_size": 20}


def _mrope(*section: int, **more: Any) -> dict[str, Any]:
    return {"rope_type": "default", "rope_theta": 1e4, "mrope_section": list(section), **more}


_FAMILIES: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "gemma3": (
        "Gemma3",
        {"sliding_window": 8},
        {"vision_config": _SIGLIP, "mm_tokens_per_image": 4, "image_token_index": 120},
    ),
    "mistral3": (
        "Mistral3",
        {"model_type": "mistral", "tie_word_embeddings": False},
        {"vision_config": _PIXTRAL, "image_token_index": 120, "tie_word_embeddings": False},
    ),
    "llava": (
        "Llava",
        {"model_type": "llama"},
        {"vision_config": {**_SIGLIP, "model_type": "siglip_vision_model"}},
    ),
    "qwen2_5_vl": (
        "Qwen2_5_VL",
        {"rope_parameters": _mrope(1, 1, 2)},
        {"vision_config": _QWEN, **_IDS},
    ),
    "qwen3_vl": (
        "Qwen3VL",
        {"rope_parameters": _mrope(2, 1, 1, mrope_interleaved=True)},
        {"vision_config": _QWEN3, **_IDS},
    ),
    "qwen3_vl_moe": (
        "Qwen3VLMoe",
        {**_ROUTED, "num_experts": 4, "rope_parameters": _mrope(2, 1, 1, mrope_interleaved=True)},
        {"vision_config": _QWEN3, **_IDS},
    ),
    "llama4": (
        "Llama4",
        {"num_local_experts": 4, "intermediate_size_mlp": 40, "attention_chunk_size": 8}
        | {"interleave_moe_layer_step": 2},
        {"vision_config": _LLAMA4, "image_token_index": 120},
    ),
}
# Traced, and that takes a while.
_SLOW = ("llama4",)
_ALL = [pytest.param(n, marks=pytest.mark.slow) if n in _SLOW else n for n in _FAMILIES]
# Of these the class around holds other head counts; of qwen2_5_vl it does not.
_ANY_HEADS = ["gemma3", "mistral3", "llava", "qwen3_vl", "qwen3_vl_moe"]


def tiny(family: str) -> Any:
    """A random multimodal model."""
    name, text, rest = _FAMILIES[family]
    if rest.get("image_token_index") is None and family == "llava":
        rest = {**rest, "image_token_index": 120}
    config = getattr(transformers, f"{name}Config")(text_config={**_TEXT, **text}, **rest)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = getattr(transformers, f"{name}ForConditionalGeneration")(config).eval()
        for parameter in model.parameters():
            parameter.data.normal_(0, 0.15)
    return model


@pytest.fixture
def multimodal(tmp_path: Path) -> Callable[[str], tuple[Path, Any]]:
    """Write a random multimodal checkpoint; give its folder and the model."""

    def make(family: str) -> tuple[Path, Any]:
        model, folder = tiny(family), tmp_path / family
        model.save_pretrained(folder)
        tiny_tokenizer().save_pretrained(folder)
        (folder / "preprocessor_config.json").write_text('{"size": 16}')
        return folder, model

    return make


def _tensors(folder: Path) -> dict[str, torch.Tensor]:
    with safe_open(folder / "model.safetensors", "pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


@pytest.mark.parametrize("family", _ALL)
def test_the_decoder_alone_gives_the_logits_of_the_whole_model(
    multimodal: Any, tokens: torch.Tensor, family: str
) -> None:
    folder, model = multimodal(family)
    opened = open_model(folder)
    wanted = logits(model, tokens)
    assert torch.equal(logits(opened.whole(torch.float32), tokens), wanted)
    source = opened.streamed()
    with source.front() as front:
        states, calls = front(tokens)
    for number, (args, named) in enumerate(calls):
        with source.layer(number) as layer, torch.no_grad():
            out = layer(states, *args, **named)
        states = out[0] if isinstance(out, tuple) else out
    with source.back() as back:
        torch.testing.assert_close(back(states), wanted, rtol=1e-4, atol=1e-5)
    assert type(load(folder)).__name__ == type(model).__name__


def test_a_head_stored_apart_is_the_decoders(multimodal: Any, tokens: torch.Tensor) -> None:
    """The config ties the head to the embeddings, and the files do not: they count."""
    folder, model = multimodal("gemma3")
    held = _tensors(folder)
    (embeddings,) = (name for name in held if name.endswith("embed_tokens.weight"))
    save_file(
        held | {"lm_head.weight": held[embeddings].flip(0)},
        folder / "model.safetensors",
        metadata={"format": "pt"},
    )
    opened = open_model(folder)
    theirs = AutoModelForImageTextToText.from_pretrained(folder).eval()
    assert torch.equal(logits(opened.whole(torch.float32), tokens), logits(theirs, tokens))
    assert not torch.equal(logits(theirs, tokens), logits(model, tokens))
    assert any("not tied" in note for note in opened.notes)
    assert opened.around.with_text({})["tie_word_embeddings"] is False


def test_a_quantised_model_is_loaded_whole(multimodal: Any, tokens: torch.Tensor) -> None:
    folder, model = multimodal("gemma3")
    held = _tensors(folder)
    linears = [name for name in held if "language_model" in name and "_proj.weight" in name]
    for name in linears:
        held[name] = held[name].to(torch.float8_e4m3fn)
        held[f"{name}_scale_inv"] = torch.ones(1)
    save_file(held, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "fp8"}
    (folder / "config.json").write_text(json.dumps(config))
    loaded = load(folder, dequantise=True)
    assert type(loaded) is type(model)
    decoder = load(folder, dequantise=True, text_only=True)
    assert torch.equal(logits(loaded, tokens), logits(decoder, tokens))


def test_the_file_that_a_config_names_is_not_named_in_what_is_written(multimodal: Any) -> None:
    folder, _ = multimodal("gemma3")
    (folder / "model.safetensors").rename(folder / "own.safetensors")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(
        json.dumps(config | {"transformers_weights": "own.safetensors"})
    )
    assert "transformers_weights" not in open_model(folder).around.raw


def _kept(structure: Any, kind: str) -> dict[str, tuple[int, ...]]:
    """The same number of units in each layer (and expert), and others of them."""
    return {
        axis.name: tuple(n for n in range(axis.units) if n % (axis.units // axis.groups) != number)
        for number, axis in ((axis.layer, axis) for axis in structure.axes)
        if kind in (axis.kind, "all")
    }


@pytest.mark.parametrize("family", [*_ANY_HEADS, "qwen2_5_vl"])
def test_a_plan_that_the_class_can_hold_is_cut_inside_the_whole_model(
    multimodal: Any, tmp_path: Path, tokens: torch.Tensor, family: str
) -> None:
    folder, model = multimodal(family)
    structure = open_model(folder).structure
    keep = _kept(structure, "all" if family in _ANY_HEADS else "mlp")
    plan = Plan(keep, structure.architecture, structure.weights)
    out = tmp_path / "small"
    result = secateur.apply(plan, folder, out=out, repair="none", evaluate="none")
    dense = open_model(folder).whole(torch.float32)
    mask(dense, structure, plan)
    # fused kernels of experts want widths in multiples of 16 bytes
    small = AutoModelForImageTextToText.from_pretrained(
        out, dtype=torch.float32, experts_implementation="eager"
    )
    assert type(small) is type(model)
    torch.testing.assert_close(logits(small, tokens), logits(dense, tokens), rtol=1e-4, atol=1e-5)
    names = _tensors(folder)
    touched = {m.tensor.rpartition("layers.")[2] for axis in structure.axes for m in axis.members}
    for name, tensor in _tensors(out).items():
        if name.rpartition("layers.")[2] not in touched or "vis" in name:
            assert torch.equal(tensor, names[name]), name
    assert _tensors(out).keys() == names.keys()
    before, after = (json.loads((f / "config.json").read_text()) for f in (folder, out))
    assert before["vision_config"] == after["vision_config"]
    assert (out / "preprocessor_config.json").is_file()
    assert not any("alone" in note for note in result.notes)
    again = open_model(out)  # it can be opened, measured and pruned again
    assert torch.equal(logits(again.whole(torch.float32), tokens), logits(small, tokens))
    card = (out / "README.md").read_text()
    assert f"{type(model).__name__}.from_pretrained" in card


@pytest.mark.parametrize("family", ["gemma3", "qwen2_5_vl", *_SLOW])
@pytest.mark.slow
def test_any_other_plan_gives_the_text_model_alone(
    multimodal: Any, tmp_path: Path, tokens: torch.Tensor, family: str
) -> None:
    folder, model = multimodal(family)
    structure = open_model(folder).structure
    axis = next(axis for axis in structure.axes if axis.kind == "attention")
    plan = Plan({axis.name: (0, 2)}, structure.architecture, structure.weights)
    out = tmp_path / "small"
    result = secateur.apply(plan, folder, out=out, repair="none", evaluate="none")
    (note,) = (note for note in result.notes if "alone" in note)
    assert type(model).__name__ in note
    dense = open_model(folder).whole(torch.float32)
    mask(dense, structure, plan)
    small = AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32)
    torch.testing.assert_close(logits(small, tokens), logits(dense, tokens), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("family", ["gemma3", "qwen3_vl"])
def test_text_only_is_asked_for_from_the_start(
    multimodal: Any, tmp_path: Path, tokens: torch.Tensor, family: str
) -> None:
    folder, model = multimodal(family)
    small, plain = tmp_path / "small", tmp_path / "plain"
    how = {"method": "magnitude", "search": "uniform", "ratio": 0.2, "evaluate": "none"}
    result = secateur.prune(folder, out=small, text_only=True, **how)
    assert result.form is not None
    assert result.form.stock
    for place in (small, result):
        found = secateur.load(place) if isinstance(place, Path) else place.load()
        assert type(found).__name__.endswith("ForCausalLM")
    assert not any("vis" in name for name in _tensors(small))
    convert(folder, out=plain, text_only=True)
    alone = AutoModelForCausalLM.from_pretrained(plain, dtype=torch.float32)
    assert torch.equal(logits(alone, tokens), logits(model, tokens))
    assert torch.equal(logits(load(folder, text_only=True), tokens), logits(model, tokens))


def test_a_live_multimodal_module_is_pruned(tokens: torch.Tensor) -> None:
    model = tiny("gemma3")
    result = secateur.prune(model, ratio=0.0, method="magnitude", evaluate="none")
    assert torch.equal(logits(result.load(), tokens), logits(model, tokens))


def test_it_is_said_what_is_looked_at(multimodal: Any, said: Any) -> None:
    folder, _ = multimodal("gemma3")
    assert inspect(folder)["facts"]["text decoder of"] == "Gemma3ForConditionalGeneration"
    assert open_config(folder).structures.family == "gemma3_text"
    assert "Gemma3ForConditionalGeneration" in said("inspect", folder)


def test_a_decoder_without_a_causal_model_says_so(tmp_path: Path, assert_refused: Any) -> None:
    transformers.MllamaConfig().save_pretrained(tmp_path / "odd")
    says = ["is multimodal", "cannot be opened alone", "Save the decoder"]
    assert_refused("discover", tmp_path / "odd", says=says)
