"""The same results on CUDA as on the CPU, within rounding; skipped without a CUDA device."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import secateur
from conftest import ALL, tiny_model
from secateur.models import open_model
from secateur.stats import GRADIENTS, Walk, collect, collect_gradients

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
NEEDS = ("input_mean", "input_var", "input_norm", "input_gram")


@pytest.mark.parametrize("variant", ALL)
def test_statistics_are_the_same(variant: str, tokens: Tensor) -> None:
    opened = open_model(tiny_model(variant))
    axes = opened.structure.axes
    here, there = (
        collect(Walk(opened.streamed(device=device), tokens, batch=4), axes, NEEDS)
        for device in ("cpu", "cuda")
    )
    for axis in axes:
        for name in NEEDS:
            got, expected = there[axis.name][name], here[axis.name][name]
            assert torch.allclose(got, expected, rtol=1e-3, atol=1e-4), (axis.name, name)


@pytest.mark.parametrize("variant", ALL)
def test_gradient_terms_are_the_same(variant: str, tokens: Tensor) -> None:
    opened = open_model(tiny_model(variant))
    axes = opened.structure.axes
    here, there = (
        collect_gradients(Walk(opened.streamed(device=device), tokens, batch=4), axes, GRADIENTS)
        for device in ("cpu", "cuda")
    )
    for axis in axes:
        for name in GRADIENTS:
            got, expected = there[axis.name][name], here[axis.name][name]
            near = 1e-3 * expected.abs().max().item()
            assert torch.allclose(got, expected, rtol=1e-3, atol=near), (axis.name, name)


@pytest.mark.parametrize("tolerance", [None, 0.0])
@pytest.mark.parametrize(
    ("repair", "target"), [("refit", "residual"), ("refit", "one_shot"), ("mask-tuning", None)]
)
@pytest.mark.parametrize("variant", ALL)
def test_repaired_weights_are_the_same(
    variant: str,
    repair: str,
    target: str | None,
    tolerance: float | None,
    tokens: Tensor,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Of sums in fp32, and in fp64 where those of fp32 are doubted."""
    if tolerance is not None:
        monkeypatch.setattr("secateur.surgery.surgeon.TOLERANCE", tolerance)
    dense = tiny_model(variant)
    plan = secateur.prune(dense, method="random", ratio=0.3, align=1, evaluate="none").plan
    own: dict[str, Any] = {"repair": repair, "calibration": tokens, "evaluate": "none"}
    own |= {} if target is None else {"target": target, "damping": 0.1}
    here, there = (
        secateur.apply(plan, dense, device=device, **own).load().state_dict()
        for device in ("cpu", "cuda")
    )
    for name, tensor in here.items():
        near = 1e-3 * tensor.abs().max().item()
        assert torch.allclose(there[name].cpu(), tensor, rtol=1e-2, atol=near), name


def test_a_run_is_the_same(tiny_folder: Any, text_file: Path, tmp_path: Path) -> None:
    folder = tiny_folder()
    results = [
        secateur.prune(
            folder, out=tmp_path / device, device=device, calibration=str(text_file), length=32,
            samples=12, ratio=0.3,
        )
        for device in ("cpu", "cuda")
    ]  # fmt: skip
    assert results[0].plan.keep == results[1].plan.keep
    cpu, cuda = (result.numbers["perplexity"][0]["after"] for result in results)
    assert abs(cpu / cuda - 1) < 1e-3


def test_a_run_is_the_same_wherever_weights_and_states_are(
    tiny_folder: Any, text_file: Path, tmp_path: Path
) -> None:
    folder = tiny_folder()
    places: list[dict[str, Any]] = [
        {"resident": "yes"},
        {"resident": "no", "device_gib": 0.0},
        {"resident": "no", "device_gib": 0.0, "hidden_gib": 0.0},
    ]
    results = [
        secateur.prune(
            folder, out=tmp_path / str(number), device="cuda", calibration=str(text_file),
            method="hywia", length=32, samples=12, ratio=0.3, **place,
        )
        for number, place in enumerate(places)
    ]  # fmt: skip
    assert results[0].plan.keep == results[1].plan.keep == results[2].plan.keep
    assert len({result.numbers["perplexity"][0]["after"] for result in results}) == 1
