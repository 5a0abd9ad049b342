"""The pruned sizes are the base model's: AutoModel, classifiers, PEFT, and who reads the config."""

import inspect
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers
from peft.utils.constants import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING as TARGETS

import secateur
from conftest import EVERY_FAMILY_SLOWLY
from secateur import modeling_secateur

IDS = torch.randint(3, 128, (2, 9), generator=torch.Generator().manual_seed(3))
NO_CLASSIFIER = ("granite", "cohere", "olmoe")


def hidden(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(IDS).last_hidden_state


@pytest.mark.parametrize("variant", EVERY_FAMILY_SLOWLY)
def test_the_base_model_and_a_classifier_have_the_pruned_sizes(variant: str, pruned: Any) -> None:
    folder = pruned(variant, method="magnitude", search="global")
    config = json.loads((folder / "config.json").read_text())
    assert "auto_map" in config
    causal = secateur.load(folder)
    inner = getattr(causal, causal.base_model_prefix)
    base = transformers.AutoModel.from_pretrained(folder)
    assert type(base) is type(inner)
    assert type(base).__name__.startswith("Secateur")
    assert torch.equal(hidden(base), hidden(inner))
    empty = transformers.AutoModel.from_config(transformers.AutoConfig.from_pretrained(folder))
    assert {n: p.shape for n, p in empty.named_parameters()} == {
        n: p.shape for n, p in inner.named_parameters()
    }
    if variant in NO_CLASSIFIER:
        assert "AutoModelForSequenceClassification" not in config["auto_map"]
        return
    classifier = transformers.AutoModelForSequenceClassification.from_pretrained(
        folder, num_labels=3
    )
    assert classifier(IDS[:1]).logits.shape == (1, 3)
    assert torch.equal(hidden(getattr(classifier, causal.base_model_prefix)), hidden(inner))


@pytest.mark.parametrize("variant", ["llama-gqa", "gpt2", "opt"])
def test_a_classifier_on_a_narrower_hidden_stream(
    variant: str, pruned: Any, tmp_path: Path
) -> None:
    """Its head is new: nothing in the folder says how wide it is."""
    folder = pruned(
        variant, method="magnitude", search="AL-AM", granularity="hidden,channel", ratio=0.3
    )
    classifier = transformers.AutoModelForSequenceClassification.from_pretrained(
        folder, num_labels=3
    )
    head = getattr(classifier, "score", None)
    assert head.in_features == head.weight.shape[1] < 48
    assert classifier(IDS[:1]).logits.shape == (1, 3)


_WITHOUT_PACKAGE = """
import sys
sys.modules["secateur"] = None  # importing it is an error
import torch, transformers
from safetensors.torch import load_file
ids = load_file(sys.argv[1])["ids"]
kind = {"trust_remote_code": True}
folder = sys.argv[2]
# a classifier first: what it wraps has to be found without the others
classifier = transformers.AutoModelForSequenceClassification.from_pretrained(folder, **kind)
base = transformers.AutoModel.from_pretrained(folder, **kind)
causal = transformers.AutoModelForCausalLM.from_pretrained(folder, **kind)
config = transformers.AutoConfig.from_pretrained(folder, **kind)
empty = transformers.AutoModel.from_config(config, **kind)
shapes = [{n: p.shape for n, p in m.named_parameters()} for m in (empty, base, causal.model)]
assert shapes[0] == shapes[1] == shapes[2]
with torch.no_grad():
    states = [m(ids).last_hidden_state for m in (base, causal.model, classifier.model)]
assert torch.equal(states[0], states[1]) and torch.equal(states[0], states[2])
base.save_pretrained(folder + "-base")
again = transformers.AutoModel.from_pretrained(folder + "-base", **kind)
with torch.no_grad():
    assert torch.equal(again(ids).last_hidden_state, states[0])
import peft  # after the model
lora = peft.get_peft_model(causal, peft.LoraConfig(task_type="CAUSAL_LM"))
assert any("q_proj.lora_A" in name for name, _ in lora.named_parameters())
"""


@pytest.mark.slow
def test_all_of_it_without_the_package(pruned: Any, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    save_file({"ids": IDS}, tmp_path / "ids.safetensors")
    subprocess.run(
        [sys.executable, "-c", _WITHOUT_PACKAGE, str(tmp_path / "ids.safetensors"),
         str(pruned("llama-gqa"))],
        check=True,
        cwd=tmp_path,
        env={"HF_MODULES_CACHE": str(tmp_path / "modules"), "HF_HUB_OFFLINE": "1",
             "OMP_NUM_THREADS": "1"},
    )  # fmt: skip


@pytest.mark.parametrize("variant", ["llama-gqa", "smollm3"])
def test_peft_finds_its_own_targets(variant: str, pruned: Any) -> None:
    """Those of the stock type; all linears where PEFT does not know that."""
    model = secateur.load(pruned(variant))
    stock = model.config.model_type.removeprefix("secateur_")
    assert model.config.model_type != stock
    if stock in TARGETS:
        other = peft.get_peft_model(model, peft.IA3Config(task_type="CAUSAL_LM"))
        assert other.get_nb_trainable_parameters()[0] > 0
        model = other.unload()
    lora = peft.get_peft_model(model, peft.LoraConfig(task_type="CAUSAL_LM"))
    paths = {name.split(".lora_")[0] for name, _ in lora.named_parameters() if ".lora_" in name}
    found = {path.rpartition(".")[2] for path in paths}
    assert found == set(TARGETS["llama"]) if stock in TARGETS else found > {"q_proj", "down_proj"}
    lora(IDS, labels=IDS).loss.backward()


def test_who_reads_one_number_for_all_layers_gets_the_largest(pruned: Any) -> None:
    """A cache of that size is enough for every layer, and each layer's own is there too."""
    folder = pruned("llama-gqa", method="magnitude", search="global", ratio=0.5)
    config = transformers.AutoConfig.from_pretrained(folder)
    layers = [config.per_layer_config[layer] for layer in range(config.num_hidden_layers)]
    for name in ("num_key_value_heads", "num_attention_heads", "intermediate_size"):
        own = [getattr(layer, name) for layer in layers]
        assert getattr(config, name) == max(own)
    built = secateur.load(folder).model.layers
    own = [layer.self_attn.k_proj.out_features // 10 for layer in built]
    assert own == [layer.num_key_value_heads for layer in layers]
    assert "no layer exceeds" in (folder / "README.md").read_text()


@pytest.mark.parametrize(
    ("version", "runs"), [("4.56.2", False), ("4.57.0", True), ("5.99.0", True), ("6.0.0", False)]
)
def test_on_other_versions_of_transformers_it_says_which_it_runs_on(
    version: str, runs: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = Path(modeling_secateur.__file__).read_text()
    code = compile(source, "modeling_secateur.py", "exec")
    monkeypatch.setattr(transformers, "__version__", version)
    names: dict[str, Any] = {"__name__": "travelled"}
    if runs:
        exec(code, names)
        assert f"transformers {version}" in names["RUNS_ON"]
    else:
        with pytest.raises(ImportError, match=rf"runs on transformers 4.57 to 5.x.* {version}"):
            exec(code, names)


def test_the_version_here_was_measured() -> None:
    assert transformers.__version__ in modeling_secateur.MEASURED


def test_a_module_that_is_not_there_is_named_with_the_versions() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(2, 2))
    with pytest.raises(ValueError, match=r"pruned_modules: 1: .* runs on transformers"):
        modeling_secateur.resize(model, {"1": {"shapes": {"weight": [1, 1]}}})


def test_few_bits_are_in_the_base_model_and_peft_says_that_it_cannot_adapt_them(
    pruned: Any,
) -> None:
    folder = pruned("llama-gqa")
    raw = json.loads((folder / "config.json").read_text())
    causal = secateur.load(folder)
    inputs = {
        path: module.in_features
        for path, module in causal.named_modules()
        if isinstance(module, torch.nn.Linear) and path.startswith("model.")
    }
    raw["packed"] = {"bits": 4, "group": 16, "modules": inputs}
    config = type(causal.config).from_dict(raw)
    base = transformers.AutoModel.from_config(config)
    small = transformers.AutoModelForCausalLM.from_config(config)
    for model, prefix in ((base, ""), (small, "model.")):
        linear = model.get_submodule(f"{prefix}layers.0.mlp.down_proj")
        assert isinstance(linear, modeling_secateur.PackedLinear)
        assert linear.in_features == inputs["model.layers.0.mlp.down_proj"]
    with pytest.raises(ValueError, match=r"PackedLinear.* is not supported"):
        peft.get_peft_model(small, peft.LoraConfig(task_type="CAUSAL_LM"))


def test_no_parameter_that_vllm_asks_about_is_any(pruned: Any) -> None:
    """It asks isinstance of what stands in the signature, beginning with `self`."""
    folder = pruned()
    for auto in (transformers.AutoModel, transformers.AutoModelForCausalLM):
        model = auto.from_pretrained(folder)
        first = list(inspect.signature(type(model).__init__).parameters.values())[:2]
        assert all(isinstance(model.config, one.annotation) for one in first)
