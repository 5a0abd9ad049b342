"""`benchmarks/gpu.py`: its model loads, and a forward needs the operations that torch counts."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
import transformers
from torch.utils.flop_counter import FlopCounterMode

import secateur

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def gpu() -> ModuleType:
    """The script as a module, with its neighbours."""
    sys.path.insert(0, str(BENCHMARKS))
    try:
        spec = importlib.util.spec_from_file_location("gpu", BENCHMARKS / "gpu.py")
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules["gpu"] = module
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(BENCHMARKS))
    return module


def test_the_model_has_the_shape_and_a_forward_the_operations(
    gpu: ModuleType, tmp_path: Path
) -> None:
    shape = gpu.Shape(layers=2, hidden=64, vocabulary=300).filled()
    gpu.write_model(tmp_path / "model", shape, CPU)
    model = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "model", attn_implementation="eager", dtype=torch.bfloat16
    )
    names = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    linears = sum(m.weight.numel() for n, m in model.named_modules() if n.endswith(names))
    assert linears == shape.linears
    tokens = torch.randint(0, 300, (3, 16))
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(input_ids=tokens, use_cache=False)
    # eager attention multiplies what a token does not see, too
    unseen = 2 * shape.layers * shape.hidden * tokens.shape[1] * tokens.numel()
    expected = shape.forward(tokens, head=True) + unseen
    assert counter.get_total_flops() == pytest.approx(expected, rel=1e-3)
    axes = secateur.models.open_model(tmp_path / "model").structure.axes
    assert {axis.units for axis in axes} == {shape.kv_heads, shape.mlp}


def test_the_shape_is_that_of_8b(gpu: ModuleType) -> None:
    shape = gpu.Shape().filled()
    assert (shape.mlp, shape.heads, shape.kv_heads) == (14336, 32, 8)
    assert 16.0e9 < shape.bytes < 16.1e9


def test_a_folder_with_another_model_is_not_used(gpu: ModuleType, tmp_path: Path) -> None:
    small, other = (gpu.Shape(layers=1, hidden=n, vocabulary=300).filled() for n in (64, 128))
    gpu.write_model(tmp_path / "model", small, CPU)
    gpu.write_model(tmp_path / "model", small, CPU)
    with pytest.raises(SystemExit, match="another model"):
        gpu.write_model(tmp_path / "model", other, CPU)


def test_peaks_are_those_of_the_card(gpu: ModuleType) -> None:
    cards = {
        "NVIDIA H100 80GB HBM3": 989,
        "NVIDIA H100 PCIe": 756,
        "NVIDIA A100-SXM4-80GB": 312,
        "NVIDIA A10": 125,
        "NVIDIA GeForce GTX 1080": None,
    }
    assert {card: gpu.peak_of(card) for card in cards} == cards
