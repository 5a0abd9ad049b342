"""Packages that quantise or train what transformers loads take what was pruned."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

import secateur
from conftest import logits

# torchao tells of kernels that this machine lacks, bitsandbytes of casts that it makes.
pytestmark = [pytest.mark.deploy, pytest.mark.filterwarnings("default")]
TOKENS = torch.randint(3, 128, (2, 12), generator=torch.Generator().manual_seed(0))


@pytest.fixture
def wide(tiny_folder: Callable[..., Path], text_file: Path, tmp_path: Path) -> Path:
    """A folder whose MLPs have 128 to 320 channels, multiples of the blocks of bitsandbytes."""
    sizes = {"hidden_size": 128, "head_dim": 64, "num_attention_heads": 4, "num_key_value_heads": 2}
    folder = tiny_folder(**sizes, intermediate_size=320)
    out = tmp_path / "small"
    how: dict[str, Any] = {"method": "flap", "repair": "refit", "ratio": 0.3, "align": 64}
    how |= {"samples": 6, "length": 16, "evaluate": "none"}
    secateur.prune(folder, calibration=str(text_file), out=out, **how)
    return out


def _asked(name: str) -> Any:
    from transformers import BitsAndBytesConfig, TorchAoConfig

    if name == "nf4":
        four: dict[str, Any] = {"bnb_4bit_quant_type": "nf4"}
        return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_compute_dtype=torch.float32, **four)
    if name == "int8":
        return BitsAndBytesConfig(load_in_8bit=True)
    from torchao.quantization import Int8WeightOnlyConfig, IntxWeightOnlyConfig, PerGroup

    if name == "torchao-int8":
        return TorchAoConfig(Int8WeightOnlyConfig())
    four = {"weight_dtype": torch.int4, "granularity": PerGroup(32)}
    return TorchAoConfig(IntxWeightOnlyConfig(**four))


@pytest.mark.parametrize(
    ("name", "package", "most"),
    [
        ("nf4", "bitsandbytes", 0.2),
        ("int8", "bitsandbytes", 0.03),
        ("torchao-int8", "torchao", 0.02),
        ("torchao-int4", "torchao", 0.2),
    ],
)
def test_every_linear_is_quantised_and_computes_nearly_the_same(
    name: str, package: str, most: float, wide: Path
) -> None:
    pytest.importorskip(package)
    dense = secateur.load(wide)
    quantised = AutoModelForCausalLM.from_pretrained(
        wide, quantization_config=_asked(name), dtype=torch.float32
    )
    linears = {
        path: module
        for path, module in quantised.named_modules()
        if isinstance(module, torch.nn.Linear) and path != "lm_head"
    }
    assert len({module.in_features for module in linears.values()}) > 2, "widths differ"
    for path, module in linears.items():
        own = dense.get_submodule(path)
        assert type(module.weight) is not type(own.weight) or type(module) is not type(own)
        inputs = torch.randn(5, own.in_features, generator=torch.Generator().manual_seed(1))
        wanted = own(inputs)
        with torch.no_grad():
            found = module(inputs).float()
        assert (found - wanted).norm() < most * wanted.norm(), path
    assert logits(quantised, TOKENS).isfinite().all()


@pytest.mark.parametrize("adapted", [False, True])
def test_trl_trains_it(
    adapted: bool, pruned: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trl = pytest.importorskip("trl")
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import AutoTokenizer

    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    folder = pruned("llama-gqa", method="flap")
    model = AutoModelForCausalLM.from_pretrained(folder)
    before = copy.deepcopy(model.state_dict())
    how = trl.SFTConfig(
        output_dir=str(tmp_path / "run"), max_steps=6, per_device_train_batch_size=2,
        learning_rate=1e-2, max_length=24, logging_steps=1, save_strategy="no", report_to=[],
        use_cpu=True, bf16=False, disable_tqdm=True,
    )  # fmt: skip
    trainer = trl.SFTTrainer(
        model=model,
        args=how,
        train_dataset=Dataset.from_list([{"text": "what the small model reads"}] * 12),
        processing_class=AutoTokenizer.from_pretrained(folder),
        peft_config=LoraConfig(target_modules="all-linear") if adapted else None,
    )
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert float(losses[-1]) < float(losses[0])
    trained = trainer.model.merge_and_unload() if adapted else trainer.model
    assert any(
        not torch.equal(tensor, before[name]) for name, tensor in trained.state_dict().items()
    )
    trained.save_pretrained(tmp_path / "saved")
    back = AutoModelForCausalLM.from_pretrained(tmp_path / "saved", trust_remote_code=True)
    assert torch.allclose(logits(back, TOKENS), logits(trained, TOKENS), atol=1e-5)
