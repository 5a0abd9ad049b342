"""Adapters, live modules and other things that are no plain checkpoint."""

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from torch import nn

import secateur
from conftest import logits, tiny_model, tiny_tokenizer
from secateur.cli.main import run
from secateur.models import load, open_model

Adapted = Callable[..., tuple[Path, Path, Any]]


@pytest.fixture
def adapted(tmp_path: Path) -> Adapted:
    """Write a base and an adapter to it; give both folders and the model that PEFT merges."""

    def make(variant: str = "llama-gqa", *, tiny: Any = None, **settings: Any) -> Any:
        base, adapter = tmp_path / "base", tmp_path / "adapter"
        tiny_model(variant, **(tiny or {})).save_pretrained(base)
        tiny_tokenizer().save_pretrained(base)
        config = peft.LoraConfig(r=4, task_type="CAUSAL_LM", **settings)
        model = peft.get_peft_model(load(base), config)
        for name, parameter in model.named_parameters():
            if parameter.requires_grad or "modules_to_save" in name:
                parameter.data.normal_(0, 0.2, generator=torch.Generator().manual_seed(1))
        model.save_pretrained(adapter)
        return base, adapter, model.merge_and_unload().eval()

    return make


_LINEARS = ["q_proj", "o_proj", "down_proj"]


@pytest.mark.parametrize(
    ("variant", "settings"),
    [
        ("llama-gqa", {"target_modules": _LINEARS, "lora_alpha": 7}),
        ("llama-biased", {"target_modules": _LINEARS, "use_dora": True}),
        ("gpt2", {"target_modules": ["c_attn", "c_proj"], "fan_in_fan_out": True}),
        ("qwen3-gqa", {"target_modules": _LINEARS, "modules_to_save": ["lm_head"]}),
        ("qwen2-gqa", {"target_modules": ["q_proj"], "bias": "all"}),
        ("llama-biased", {"target_modules": ["q_proj"], "bias": "lora_only"}),
        ("llama-gqa", {"target_modules": ["q_proj"], "modules_to_save": ["mlp"]}),
        ("qwen3_moe", {"target_modules": ["q_proj"], "target_parameters": ["experts.down_proj"]}),
    ],
)
def test_merged_weights_are_those_that_peft_merges(
    adapted: Adapted, tokens: torch.Tensor, variant: str, settings: dict[str, Any]
) -> None:
    base, adapter, merged = adapted(variant, **settings)
    opened = open_model(adapter, merge_adapter=True)
    state = merged.state_dict()
    for name in opened.weights.specs:
        assert torch.equal(opened.weights.tensor(name), state[name]), name
    wanted = logits(merged, tokens)
    assert not torch.allclose(logits(load(base), tokens), wanted)
    assert torch.equal(logits(load(adapter, merge_adapter=True), tokens), wanted)


def test_an_adapter_is_pruned_as_the_merged_model(
    adapted: Adapted, tmp_path: Path, calibrated: list[str], tokens: torch.Tensor
) -> None:
    _, adapter, merged = adapted(target_modules=_LINEARS)
    whole = tmp_path / "whole"
    merged.save_pretrained(whole)
    tiny_tokenizer().save_pretrained(whole)
    options = [*calibrated, "--evaluate", "none"]
    for source, out, how in ((adapter, "a", ["--merge-adapter"]), (whole, "b", [])):
        arguments = ["prune", source, *options, *how, "--out", tmp_path / out]
        assert run([str(argument) for argument in arguments]) == 0
    assert torch.equal(
        logits(secateur.load(tmp_path / "a"), tokens), logits(secateur.load(tmp_path / "b"), tokens)
    )
    assert (tmp_path / "a" / "tokenizer.json").is_file()
    assert not (tmp_path / "a" / "adapter_config.json").exists()


def test_an_adapter_alone_says_how_it_is_merged(adapted: Adapted, assert_refused: Any) -> None:
    base, adapter, _ = adapted(target_modules=_LINEARS)
    says = ["is an adapter and no model", str(base), "--merge-adapter"]
    assert_refused("evaluate", adapter, "--evaluate", "x", says=says)
    assert_refused("evaluate", adapter, "--evaluate", "x", "--no-merge-adapter", says=says)


def test_a_model_with_an_adapter_beside_it_is_asked_about(
    adapted: Adapted, assert_refused: Any, tokens: torch.Tensor, tmp_path: Path
) -> None:
    base, adapter, merged = adapted(target_modules=_LINEARS)
    bare = logits(load(base), tokens)
    for file in ("adapter_config.json", "adapter_model.safetensors"):
        (adapter / file).rename(base / file)
    says = ["whole model and an adapter", "--merge-adapter", "--no-merge-adapter"]
    assert_refused("evaluate", base, "--evaluate", "x", says=says)
    assert torch.equal(logits(load(base, merge_adapter=True), tokens), logits(merged, tokens))
    assert torch.equal(logits(load(base, merge_adapter=False), tokens), bare)
    out = tmp_path / "out"
    secateur.prune(
        base, out=out, merge_adapter=False, method="magnitude", evaluate="none", samples=2, length=8
    )
    assert not list(out.glob("adapter*"))


@pytest.mark.parametrize("place", [0, 1])
def test_neither_folder_is_written_over(adapted: Adapted, place: int) -> None:
    folders = adapted(target_modules=_LINEARS)
    with pytest.raises(secateur.SecateurError, match="that is read"):
        secateur.prune(
            folders[1], merge_adapter=True, force=True, out=folders[place], evaluate="none"
        )


def test_an_adapter_to_a_tied_head_is_left_to_peft(adapted: Adapted) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT warns of it already
        _, adapter, _ = adapted("llama-tied", target_modules=["q_proj", "lm_head"])
    with pytest.raises(secateur.SecateurError, match=r"cannot be merged into its base.*tie"):
        open_model(adapter, merge_adapter=True)


def test_an_adapter_with_trained_tokens_is_refused(adapted: Adapted) -> None:
    _, adapter, _ = adapted(target_modules=["q_proj"], trainable_token_indices=[1, 2])
    with pytest.raises(secateur.SecateurError, match=r"cannot be merged .*token_adapter"):
        open_model(adapter, merge_adapter=True)


def test_an_adapter_to_another_model_is_refused(adapted: Adapted, tmp_path: Path) -> None:
    _, adapter, _ = adapted(target_modules=_LINEARS)
    other = tmp_path / "other"
    tiny_model(hidden_size=96).save_pretrained(other)
    config = json.loads((adapter / "adapter_config.json").read_text())
    config["base_model_name_or_path"] = str(other)
    (adapter / "adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(secateur.SecateurError, match=r"cannot be merged into its base: .*size"):
        open_model(adapter, merge_adapter=True)


def _offloaded() -> nn.Module:
    from accelerate import cpu_offload

    return cpu_offload(tiny_model())


_LIVE: dict[str, tuple[Callable[[], Any], type[Exception], str]] = {
    "linear": (lambda: nn.Linear(2, 2), secateur.SecateurError, "expected a causal language"),
    "parallel": (lambda: nn.DataParallel(tiny_model()), secateur.SecateurError, "model.module"),
    "peft": (
        lambda: peft.get_peft_model(tiny_model(), peft.LoraConfig(target_modules=["q_proj"])),
        secateur.SecateurError,
        r"model.merge_and_unload\(\)",
    ),
    "meta": (lambda: tiny_model().to("meta"), secateur.SecateurError, "are on the meta device"),
    "offloaded": (_offloaded, secateur.SecateurError, r"are offloaded \(device_map\)"),
    "base model": (lambda: tiny_model().model, secateur.SecateurError, "without its head"),
}


@pytest.mark.parametrize(("make", "kind", "says"), _LIVE.values(), ids=_LIVE)
def test_live_modules_that_cannot_be_read_are_told_what_to_do(
    make: Callable[[], Any], kind: type[Exception], says: str
) -> None:
    with pytest.raises(kind, match=says) as caught:
        secateur.prune(make(), tokenizer=tiny_tokenizer(), evaluate="none")
    assert len(str(caught.value).splitlines()) <= 2


def test_a_module_that_was_dequantised_is_read(tokens: torch.Tensor) -> None:
    model = tiny_model()
    model.config.quantization_config = {"quant_method": "gguf"}
    result = secateur.prune(model, ratio=0.0, method="magnitude", evaluate="none")
    assert torch.equal(logits(result.load(), tokens), logits(model, tokens))


def test_anything_that_stands_for_a_path_is_one(model: Path) -> None:
    class Elsewhere:
        def __fspath__(self) -> str:
            return str(model)

    assert open_model(Elsewhere()).source == str(model)


def test_what_is_no_model_at_all_is_named() -> None:
    for thing in (tiny_model().config, 7, None):
        with pytest.raises(TypeError, match=r"model must be a folder.* not"):
            open_model(thing)
    for thing in (tiny_model(), 7):
        with pytest.raises(TypeError, match="model must be a folder or a name on the hub"):
            secateur.convert(thing, out="x")  # type: ignore[arg-type]


def test_settings_that_change_nothing_are_told(model: Path) -> None:
    how = {"merge_adapter": True, "dequantise": True, "text_only": True}
    result = secateur.prune(model, method="magnitude", evaluate="none", **how)
    for option, lack in (
        ("--merge-adapter", "has no adapter"),
        ("--dequantise", "is not quantised"),
        ("--text-only", "is not multimodal"),
    ):
        assert f"{option} changes nothing: {model} {lack}" in result.notes


def test_a_token_without_an_embedding_has_two_causes(model: Path, text_file: Path) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens(["gardener"])  # the model's own tokenizer, and one token more than it has
    with pytest.raises(secateur.SecateurError, match=r"gives token 128[^\n]*added to it\.\n.*text"):
        secateur.prune(model, calibration=str(text_file), tokenizer=tokenizer, samples=4, length=16)
