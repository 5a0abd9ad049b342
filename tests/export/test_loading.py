"""A pruned folder loads three ways with equal logits, and then does all that a model does."""

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor

import secateur
from conftest import EVERY_FAMILY, EVERY_FAMILY_SLOWLY, QUICK, tiny_model
from secateur.export.proof import mask
from secateur.stats import Walk

VARIANTS = ["llama-gqa", "llama-tied", "mistral-gqa", "qwen2-gqa", "qwen3-biased"]
# ALiBi Falcon reads the mask that a static cache makes as one of two dimensions, dense too.
NO_STATIC_CACHE = ("falcon",)
IDS = torch.randint(3, 128, (2, 9), generator=torch.Generator().manual_seed(3))


@pytest.fixture
def pruned(tiny_folder: Any, text_file: Path, tmp_path: Path) -> Any:
    def make(variant: str, **settings: Any) -> Path:
        out = tmp_path / f"small-{variant}"
        settings = {"ratio": 0.4, "align": 1, **settings}
        secateur.prune(
            tiny_folder(variant), out=out, calibration=str(text_file), length=32, samples=16,
            evaluate="none", **settings,
        )  # fmt: skip
        return out

    return make


def logits(model: Any) -> Tensor:
    with torch.no_grad():
        return model(IDS).logits


_WITHOUT_PACKAGE = """
import sys
sys.modules["secateur"] = None  # importing it is an error
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer
torch.set_num_threads(1)
ids = load_file(sys.argv[1])["ids"]
out = {}
for folder in sys.argv[3:]:
    model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
    assert tokenizer("ab")["input_ids"] == [97, 98]
    again = folder + "-again"
    model.save_pretrained(again)
    second = AutoModelForCausalLM.from_pretrained(again, trust_remote_code=True)
    with torch.no_grad():
        out[folder] = model(ids).logits
        assert torch.equal(second(ids).logits, out[folder])
save_file(out, sys.argv[2])
"""


@pytest.mark.parametrize("variants", [QUICK, pytest.param(EVERY_FAMILY, marks=pytest.mark.slow)])
def test_three_ways_of_loading_give_equal_logits(
    variants: Sequence[str], pruned: Any, tmp_path: Path
) -> None:
    folders = [pruned(variant) for variant in variants]
    ways = {}
    for folder in folders:
        ways[str(folder)] = logits(secateur.load(folder))
        auto = transformers.AutoModelForCausalLM.from_pretrained(folder)
        assert torch.equal(logits(auto), ways[str(folder)])
    save_file({"ids": IDS}, tmp_path / "ids.safetensors")
    subprocess.run(
        [sys.executable, "-W", "error::UserWarning", "-c", _WITHOUT_PACKAGE]
        + [str(tmp_path / "ids.safetensors"), str(tmp_path / "out.safetensors")]
        + [str(folder) for folder in folders],
        check=True,
        cwd=tmp_path,
    )
    for folder, value in load_file(tmp_path / "out.safetensors").items():
        assert torch.equal(value, ways[folder]), folder


@pytest.mark.parametrize("variant", EVERY_FAMILY_SLOWLY)
def test_saved_again_it_is_the_same_and_carries_its_class(
    variant: str, pruned: Any, tmp_path: Path
) -> None:
    model = secateur.load(pruned(variant))
    model.save_pretrained(tmp_path / "again")
    own = type(model).__name__.startswith("Secateur")
    assert own == (tmp_path / "again" / "modeling_secateur.py").is_file()
    assert torch.equal(logits(secateur.load(tmp_path / "again")), logits(model))


@pytest.mark.parametrize("variant", EVERY_FAMILY_SLOWLY)
def test_generation_is_the_same_with_every_cache_and_with_left_padding(
    variant: str, pruned: Any
) -> None:
    model = secateur.load(pruned(variant))
    mask = torch.ones_like(IDS)
    mask[0, :4] = 0
    plain: dict[str, Any] = {"do_sample": False, "max_new_tokens": 12, "eos_token_id": None}
    inputs = {"input_ids": IDS * mask, "attention_mask": mask}
    expected = model.generate(**inputs, use_cache=False, **plain)
    # offloaded caches move layers between GPU and CPU, so they need a GPU
    caches = ["dynamic", "static"] + ["offloaded", "offloaded_static"] * torch.cuda.is_available()
    for cache in caches:
        if "static" in cache and variant in NO_STATIC_CACHE:
            continue
        got = model.generate(**inputs, cache_implementation=cache, **plain)
        assert torch.equal(got, expected), cache
    alone = model.generate(IDS[:1, 4:], **plain)
    assert torch.equal(alone[0, 5:], expected[0, 9:])


def test_gradient_checkpointing_gives_the_same_gradients(pruned: Any) -> None:
    model = secateur.load(pruned("llama-gqa")).train()
    gradients = []
    for checkpointing in (False, True):
        if checkpointing:
            model.activation_checkpointing_enable()
        model.zero_grad()
        model(IDS, labels=IDS).loss.backward()
        gradients.append({name: p.grad.clone() for name, p in model.named_parameters()})
    for name, gradient in gradients[0].items():
        assert torch.allclose(gradients[1][name], gradient, atol=1e-6), name


@pytest.mark.parametrize("variant", ["llama-gqa", "qwen3-biased"])
def test_lora_trains_and_merges(variant: str, pruned: Any) -> None:
    model = secateur.load(pruned(variant))
    lora = peft.get_peft_model(
        model, peft.LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM")
    )
    optimizer = torch.optim.AdamW(lora.parameters(), lr=1e-2)
    losses = []
    for _ in range(5):
        loss = lora(IDS, labels=IDS).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    unmerged = logits(lora.eval())
    assert torch.allclose(logits(lora.merge_and_unload()), unmerged, atol=1e-5)


@pytest.mark.parametrize(
    ("variant", "settings"),
    [
        # 6 query heads on width 48, 3 KV heads: 4 and 2 are left, which the class accepts
        ("llama-gqa", {"method": "magnitude"}),
        # o and down get a bias; Llama can only have it on all, so zeros are filled in
        ("llama-gqa", {"method": "flap", "search": "uniform"}),
        ("qwen3-gqa", {"method": "wanda-sp"}),
    ],
)
def test_a_uniform_plan_is_a_plain_stock_checkpoint(
    variant: str, settings: dict[str, Any], pruned: Any
) -> None:
    folder = pruned(variant, **settings)
    config = json.loads((folder / "config.json").read_text())
    assert "auto_map" not in config
    assert not (folder / "modeling_secateur.py").exists()
    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    assert type(model).__module__.startswith("transformers.models")
    opened = secateur.open_model(folder)
    assert opened.structure.axes[0].units == 2
    has_bias = settings["method"] == "flap"
    assert any(name.endswith("o_proj.bias") for name in opened.weights.specs) == has_bias


def test_what_the_stock_class_cannot_hold_is_not_written_as_stock(pruned: Any) -> None:
    # Mistral has no biases, and 4 heads of 5 do not divide Llama's width of 40
    config = json.loads((pruned("mistral-gqa", search="uniform") / "config.json").read_text())
    assert config["model_type"] == "secateur_mistral"


@pytest.mark.parametrize("variant", EVERY_FAMILY_SLOWLY)
def test_a_pruned_folder_can_be_pruned_again(
    variant: str, pruned: Any, text_file: Path, tmp_path: Path
) -> None:
    once = pruned(variant, ratio=0.2)
    result = secateur.prune(
        once, out=tmp_path / "twice", ratio=0.4, calibration=str(text_file), length=32, samples=8,
        align=1,
    )  # fmt: skip
    twice = secateur.load(tmp_path / "twice")
    assert sum(p.numel() for p in twice.parameters()) == result.numbers["parameters"]["after"]
    assert torch.isfinite(logits(twice)).all()
    assert "auto_map" in json.loads((tmp_path / "twice" / "config.json").read_text())


def test_a_live_module_gives_a_model_in_memory(text_file: Path) -> None:
    from conftest import tiny_tokenizer

    result = secateur.prune(
        tiny_model(), tokenizer=tiny_tokenizer(), ratio=0.3, calibration=str(text_file),
        length=32, samples=8,
    )  # fmt: skip
    model = result.load()
    assert sum(p.numel() for p in model.parameters()) == result.numbers["parameters"]["after"]
    assert model.generate(IDS, max_new_tokens=3, do_sample=False).shape == (2, 12)


@pytest.mark.parametrize("rename", ["tied", "base"])
def test_weights_are_found_under_the_names_that_checkpoints_use(
    rename: str, tiny_folder: Any
) -> None:
    """Tied weights stored as the head's; a base model's, without the prefix."""
    folder = tiny_folder("llama-tied")
    expected = logits(transformers.AutoModelForCausalLM.from_pretrained(folder))
    tensors = load_file(folder / "model.safetensors")
    if rename == "tied":
        tensors["lm_head.weight"] = tensors.pop("model.embed_tokens.weight")
    else:
        tensors = {name.removeprefix("model."): tensor for name, tensor in tensors.items()}
    save_file(tensors, folder / "model.safetensors")
    source = secateur.open_model(folder).streamed(device="cpu")
    walk = Walk(source, IDS, batch=2)
    states = walk.embed()
    for step in walk.layers():
        step.run(states)
    with source.back() as head:
        assert torch.allclose(head(states.tensor), expected, atol=1e-5)


def test_code_in_a_model_folder_is_not_run(tiny_folder: Any, tmp_path: Path) -> None:
    """Neither the config's, nor the tokenizer's, nor the model's."""
    folder = tiny_folder()
    (folder / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    for name, keys in (
        ("config.json", ("AutoConfig", "AutoModelForCausalLM")),
        ("tokenizer_config.json", ("AutoTokenizer",)),
    ):
        raw = json.loads((folder / name).read_text())
        raw["auto_map"] = {
            key: ["evil.Evil", None] if key == "AutoTokenizer" else "evil.Evil" for key in keys
        }
        (folder / name).write_text(json.dumps(raw))
    opened = secateur.open_model(folder)
    assert opened.tokenizer("ab")["input_ids"] == [97, 98]
    assert torch.isfinite(logits(secateur.load(folder))).all()
    assert not (tmp_path / "ran").exists()


ROPES: dict[str, dict[str, Any]] = {
    "llama3": {
        "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 32,
    },
    "yarn": {"rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 32},
    "dynamic": {"rope_type": "dynamic", "factor": 2.0},
    "linear": {"rope_type": "linear", "factor": 2.0},
    "longrope": {
        "rope_type": "longrope", "factor": 2.0, "original_max_position_embeddings": 32,
        "short_factor": [1.0] * 5, "long_factor": [1.5, 2.0, 2.5, 3.0, 4.0],
    },
}  # fmt: skip


@pytest.mark.parametrize("rope", ROPES)
def test_positions_are_turned_as_in_the_dense_model(
    rope: str, tiny_folder: Any, tmp_path: Path
) -> None:
    """Within the context that the model was trained on, and at twice that."""
    settings = {"rope_theta": 500.0, **ROPES[rope]}
    context = 32 if rope == "dynamic" else 64
    folder = tiny_folder(rope_parameters=settings, max_position_embeddings=context)
    out = tmp_path / "small"
    cutting = {"method": "magnitude", "search": "global", "ratio": 0.3, "align": 1}
    result = secateur.prune(folder, out=out, evaluate="none", **cutting)
    small = transformers.AutoModelForCausalLM.from_pretrained(out)
    assert type(small).__name__ == "SecateurLlamaForCausalLM"
    dense = secateur.load(folder)
    mask(dense, result.structure, result.plan)
    ids = torch.randint(3, 128, (1, 64), generator=torch.Generator().manual_seed(0))
    found = []
    for length in (16, 64):
        with torch.no_grad():
            got, expected = (model(ids[:, :length]).logits for model in (small, dense))
        assert torch.allclose(got, expected, atol=1e-5)
        found.append(got[:, :16])
    looks_at_length = rope in ("dynamic", "longrope")
    assert torch.allclose(*found, atol=1e-4) != looks_at_length


def test_of_a_tied_model_one_tensor_is_written(pruned: Any) -> None:
    folder = pruned("llama-tied")
    assert not [name for name in load_file(folder / "model.safetensors") if "lm_head" in name]
    assert json.loads((folder / "config.json").read_text())["tie_word_embeddings"] is True
    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    assert model.lm_head.weight is model.model.embed_tokens.weight
