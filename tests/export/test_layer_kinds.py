"""Layers that stay are what they were: sliding or full, rotated or not, mixture or dense, scaled.

Configs are as the hub has them: what the family's code derives from a layer's number is absent.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor

import secateur
from conftest import _COMMON, _GPT, _ROPE, _ROUTED, tiny_tokenizer
from secateur.errors import SecateurError
from secateur.export import Form, pruned_form
from secateur.export.kinds import without_numbers
from secateur.models import OpenModel, filled, open_model
from secateur.structure import Plan
from secateur.surgery import pruned_view

LAYERS = 7
DERIVED = ("layer_types", "no_rope_layers", "moe_layers", "mlp_only_layers", "attention_layers")
_MODELS = {"Gemma3Text": "Gemma3ForCausalLM", "GPT2": "GPT2LMHeadModel"}
_OWN = {"head_dim": None}
# (family, its config); a sequence is longer than a window of 8
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "gemma2": ("Gemma2", {"sliding_window": 8}),
    "gemma3-4b": ("Gemma3Text", {"sliding_window": 8}),
    "gemma3-1b": ("Gemma3Text", {"sliding_window": 8, "sliding_window_pattern": 3}),
    "qwen2": (
        "Qwen2",
        {**_OWN, "use_sliding_window": True, "sliding_window": 8, "max_window_layers": 4},
    ),
    "qwen3": ("Qwen3", {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 3}),
    "smollm3": ("SmolLM3", {**_OWN, "no_rope_layer_interval": 3}),
    "smollm3-sliding": (
        "SmolLM3",
        {**_OWN, "no_rope_layer_interval": 3, "use_sliding_window": True, "sliding_window": 8},
    ),
    "gpt_oss": (
        "GptOss",
        {**_ROUTED, "num_local_experts": 4, "sliding_window": 8, "rope_parameters": _ROPE},
    ),
    "gpt2": ("GPT2", {**_GPT, "scale_attn_by_inverse_layer_idx": True}),
    "qwen3_moe": (
        "Qwen3Moe",
        {**_ROUTED, "num_experts": 4, "moe_intermediate_size": 20, "decoder_sparse_step": 2},
    ),
    "cohere2": ("Cohere2", {**_OWN, "sliding_window": 8}),
    "exaone4": ("Exaone4", {**_OWN, "sliding_window": 8}),
    "olmo3": ("Olmo3", {**_OWN, "sliding_window": 8}),
    "qwen2_moe": (
        "Qwen2Moe",
        {
            **_OWN, **_ROUTED, "num_experts": 4, "moe_intermediate_size": 20,
            "shared_expert_intermediate_size": 24, "decoder_sparse_step": 2,
        },
    ),
    "gpt_neo": (
        "GPTNeo",
        {
            "vocab_size": 128, "hidden_size": 48, "num_heads": 6, "intermediate_size": 56,
            "window_size": 8, "max_position_embeddings": 64, "num_layers": LAYERS,
            "attention_types": [[["global", "local"], 3], [["global"], 1]],
        },
    ),
}  # fmt: skip
SLOW = ("cohere2", "exaone4", "olmo3", "qwen2_moe", "gpt_neo", "qwen3", "smollm3")
CASES = [pytest.param(n, marks=pytest.mark.slow) if n in SLOW else n for n in FAMILIES]
IDS = torch.randint(3, 128, (2, 24), generator=torch.Generator().manual_seed(1))


def written(name: str, folder: Path) -> tuple[Any, Path]:
    """A random model, and its folder with a config that leaves out what is derived."""
    family, own = FAMILIES[name]
    base = {} if "vocab_size" in own else _COMMON
    settings = {**base, **own, "num_hidden_layers": LAYERS, "num_layers": own.get("num_layers")}
    settings = {key: value for key, value in settings.items() if value is not None}
    if "num_layers" in settings:
        del settings["num_hidden_layers"]
    config = getattr(transformers, f"{family}Config")(**settings)
    torch.manual_seed(0)
    model = getattr(transformers, _MODELS.get(family, f"{family}ForCausalLM"))(config).eval()
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn(parameter.shape)
    model.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    raw = json.loads((folder / "config.json").read_text())
    raw = {key: value for key, value in raw.items() if key not in DERIVED}
    if "sliding_window_pattern" in own:
        raw["sliding_window_pattern"] = own["sliding_window_pattern"]
    (folder / "config.json").write_text(json.dumps(raw))
    return model, folder


def without(opened: OpenModel, gone: Sequence[int]) -> Form:
    structure = opened.structures.select(["layer"])
    keep: dict[str, tuple[int, ...]] = {f"layers.{layer}.layer": () for layer in gone}
    plan = Plan(keep, structure.architecture, structure.weights)
    weights = pruned_view(opened.weights, structure, plan)
    return pruned_form(
        opened.family, opened.raw_config, opened.config, opened.structures, plan, weights
    )


def bypassed(model: Any, path: str, gone: Sequence[int], *, tuples: bool) -> Tensor:
    """Logits of the dense model in which the layers `gone` hand their input through."""
    before = {}
    for number in gone:
        layer = model.get_submodule(path)[number]
        before[layer] = layer.forward

        def hand_through(hidden: Tensor, *args: Any, **kwargs: Any) -> Any:
            return (hidden, None) if tuples else hidden

        layer.forward = hand_through
    found = logits(model)
    for layer, forward in before.items():
        layer.forward = forward
    return found


def logits(model: Any) -> Tensor:
    with torch.no_grad():
        return model(IDS, use_cache=False).logits


@pytest.mark.parametrize("name", CASES)
def test_layers_that_stay_are_what_they_were(name: str, tmp_path: Path) -> None:
    model, folder = written(name, tmp_path / "dense")
    opened = open_model(folder)
    dense = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    assert torch.equal(logits(dense), logits(model))  # the keys that are absent are derived again
    kinds = logits(dense)
    for gone in ((1,), (3,), (1, 2), (2, 4, 6)):
        form = without(opened, gone)
        small = filled(form.empty(), form.weights)
        got, expected = (
            logits(small),
            bypassed(dense, opened.family.layers, gone, tuples=opened.family.tuples),
        )
        assert torch.allclose(got, expected, atol=1e-5), (gone, form.config)
        assert not torch.allclose(expected, kinds, atol=1e-3)
        assert form.stock == (name != "gpt2")


@pytest.mark.parametrize("name", ["gemma3-1b", "gpt2", "qwen3_moe"])
def test_they_are_what_they_were_after_a_second_cut(name: str, tmp_path: Path) -> None:
    model, folder = written(name, tmp_path / "dense")
    settings: dict[str, Any] = {
        "method": "magnitude", "search": "AL-AM", "granularity": "layer", "ratio": 0.25,
        "evaluate": "none",
    }  # fmt: skip
    one, two = tmp_path / "one", tmp_path / "two"
    gone: list[int] = []
    left = list(range(LAYERS))
    for source, out in ((folder, one), (one, two)):
        result = secateur.prune(source, out=out, **settings)
        away = [a.layer for a in result.structure.axes if result.plan.removed(a)]
        assert away
        gone += [left[layer] for layer in away]
        left = [layer for number, layer in enumerate(left) if number not in away]
    opened = open_model(folder)
    expected = bypassed(model, opened.family.layers, gone, tuples=opened.family.tuples)
    small = transformers.AutoModelForCausalLM.from_pretrained(two)
    assert torch.allclose(logits(small), expected, atol=1e-5)


@pytest.mark.parametrize("name", ["gemma3-1b", "smollm3-sliding", "gpt2", "qwen3_moe"])
@pytest.mark.parametrize("granularity", ["attention_block", "mlp_block"])
def test_blocks_leave_every_layer_what_it_was(name: str, granularity: str, tmp_path: Path) -> None:
    model, folder = written(name, tmp_path / "dense")
    opened = open_model(folder)
    structure = opened.structures.select([granularity])
    if not structure.axes:
        pytest.skip(f"{name} has no units of this granularity")
    axis = structure.axes[0]
    plan = Plan({axis.name: ()}, structure.architecture, structure.weights)
    weights = pruned_view(opened.weights, structure, plan)
    form = pruned_form(
        opened.family, opened.raw_config, opened.config, opened.structures, plan, weights
    )
    small = filled(form.empty(), form.weights)
    for fine in axis.of:
        for parameter in model.get_submodule(
            opened.structures.by_name[fine].consumer.module
        ).parameters():
            parameter.data.zero_()
    assert torch.allclose(logits(small), logits(model), atol=1e-5)


def test_no_list_is_cut_because_it_is_as_long_as_there_are_layers(tmp_path: Path) -> None:
    """Three ends of a text in a model of three layers."""
    settings = {**_COMMON, "eos_token_id": [2, 3, 4], "head_dim": 8}
    settings["architectures"] = ["LlamaForCausalLM"]
    transformers.LlamaForCausalLM(transformers.LlamaConfig(**settings)).save_pretrained(tmp_path)
    raw = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**raw, "a_list_of_mine": ["x", "y", "z"]}))
    form = without(open_model(tmp_path), [1])
    assert form.config["eos_token_id"] == [2, 3, 4]
    assert form.config["a_list_of_mine"] == ["x", "y", "z"]
    assert form.config["num_hidden_layers"] == 2


def test_what_other_readers_derive_kinds_from_goes_or_stays_true(tmp_path: Path) -> None:
    _, folder = written("gemma3-1b", tmp_path / "dense")
    opened = open_model(folder)
    # full attention is every third layer: 2 and 5
    assert "sliding_window_pattern" not in without(opened, [1]).config
    kept = without(opened, [6]).config
    assert kept["sliding_window_pattern"] == 3
    assert kept["layer_types"] == ["sliding_attention"] * 2 + ["full_attention"] + (
        ["sliding_attention"] * 2 + ["full_attention"]
    )
    _, folder = written("qwen2", tmp_path / "qwen2")
    config = without(open_model(folder), [1, 5]).config
    assert config["max_window_layers"] == 3
    assert config["layer_types"].count("sliding_attention") == 2


def test_dense_layers_before_the_mixtures_are_counted_anew() -> None:
    """DeepSeek's `first_k_dense_replace`; Llama-4's list of the layers that are mixtures."""
    from secateur.models import Family

    deepseek = Family("DeepseekV3Config", "DeepseekV3ForCausalLM", "model.layers", ())
    raw = {"num_hidden_layers": 6, "first_k_dense_replace": 3}
    assert without_numbers(deepseek, raw, [0, 2, 4, 5])["first_k_dense_replace"] == 2
    llama4 = Family("Llama4TextConfig", "Llama4ForCausalLM", "model.layers", ())
    raw = {"num_hidden_layers": 6, "interleave_moe_layer_step": 2}
    config = without_numbers(llama4, raw, [0, 2, 3, 5])
    assert config["moe_layers"] == [2, 3]  # 1, 3 and 5 were
    assert len(config["no_rope_layers"]) == len(config["layer_types"]) == 4


def test_a_layer_that_no_config_can_say_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A class that makes every second layer of other modules, whatever the config says."""
    from transformers.models.llama import modeling_llama as code

    _, folder = written("qwen3", tmp_path / "dense")
    opened = open_model(folder)
    assert opened.structures.axes
    stock = transformers.Qwen3ForCausalLM.__init__

    def init(self: Any, config: Any) -> None:
        stock(self, config)
        for layer in self.model.layers[1::2]:
            layer.mlp.act_fn = code.LlamaRMSNorm(4)

    monkeypatch.setattr(transformers.Qwen3ForCausalLM, "__init__", init)
    with pytest.raises(SecateurError, match=r"(?s)act_fn of layer 3 .*attention_block"):
        without(opened, [2])
