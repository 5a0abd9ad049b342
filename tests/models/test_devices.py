"""What a model computes in: what its weights are stored in, where the machine is fast at that."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import secateur
from secateur.cli.main import run
from secateur.config import make_sweep, read_toml
from secateur.models import OpenModel, computing_dtype, devices
from secateur.pipeline import calibration
from secateur.pipeline.cells import cells_of

CPU, GPU = torch.device("cpu"), torch.device("cuda")
HALF = [torch.bfloat16, torch.float16]


@pytest.mark.parametrize("fast", [True, False])
def test_auto_is_the_stored_dtype_where_a_cpu_is_fast_at_it(
    monkeypatch: pytest.MonkeyPatch, fast: bool
) -> None:
    flags = {"avx512_bf16": fast, "avx2": True}
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: flags, raising=False)
    found = {stored: computing_dtype("auto", stored, CPU) for stored in (*HALF, torch.float32)}
    assert found == {
        torch.bfloat16: torch.bfloat16 if fast else torch.float32,
        torch.float16: torch.float32,
        torch.float32: torch.float32,
    }


@pytest.mark.parametrize("stored", HALF)
def test_a_gpu_computes_in_what_is_stored_and_a_name_is_taken_at_its_word(
    stored: torch.dtype,
) -> None:
    assert computing_dtype("auto", stored, GPU) == stored
    assert computing_dtype("bfloat16", stored, CPU) == torch.bfloat16


def test_a_slow_cpu_prunes_a_half_precision_model_as_in_fp32(
    tmp_path: Path, tiny_folder: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tiny_folder(dtype=torch.bfloat16)
    monkeypatch.setattr(devices, "multiplies_bfloat16", lambda device: False)
    for name in ("auto", "float32", "bfloat16"):
        secateur.prune(folder, out=tmp_path / name, ratio=0.3, method="flap", dtype=name)
    auto, fp32, bf16 = (
        load_file(tmp_path / name / "model.safetensors") for name in ("auto", "float32", "bfloat16")
    )
    assert {tensor.dtype for tensor in auto.values()} == {torch.bfloat16}
    assert all(torch.equal(auto[name], fp32[name]) for name in fp32)
    assert any(not torch.equal(auto[name], bf16.get(name, fp32[name])) for name in auto)


@pytest.mark.parametrize(
    ("fast", "asked", "dtype"),
    [
        (False, "auto", torch.float32),
        (True, "auto", torch.bfloat16),
        (False, "bfloat16", torch.bfloat16),
    ],
)
def test_a_model_writes_its_own_text_in_the_dtype_of_its_passes(
    tmp_path: Path,
    tiny_folder: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
    fast: bool,
    asked: str,
    dtype: torch.dtype,
) -> None:
    folder, dtypes, load = tiny_folder(dtype=torch.bfloat16), [], calibration.loaded

    def watched(opened: OpenModel, *, dtype: torch.dtype) -> torch.nn.Module:
        dtypes.append(dtype)
        return load(opened, dtype=dtype)

    monkeypatch.setattr(devices, "multiplies_bfloat16", lambda device: fast)
    monkeypatch.setattr(calibration, "loaded", watched)
    common = {"calibration": "self", "samples": 4, "length": 16, "method": "flap"}
    secateur.prune(folder, evaluate="none", dtype=asked, dry_run=True, **common)
    assert dtypes == [dtype]


@pytest.mark.parametrize("fast", [True, False])
def test_a_record_repeats_a_run_on_a_cpu_of_another_kind(
    tmp_path: Path,
    tiny_folder: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
    fast: bool,
) -> None:
    folder, one, two = tiny_folder(dtype=torch.bfloat16), tmp_path / "one", tmp_path / "two"
    monkeypatch.setattr(devices, "multiplies_bfloat16", lambda device: fast)
    secateur.prune(folder, out=one, ratio=0.3, method="flap", evaluate="none")
    assert read_toml(one / "run.toml")["dtype"] == ("bfloat16" if fast else "float32")
    monkeypatch.setattr(devices, "multiplies_bfloat16", lambda device: not fast)
    assert run(["prune", "--config", str(one / "run.toml"), "--out", str(two)]) == 0
    assert (one / "model.safetensors").read_bytes() == (two / "model.safetensors").read_bytes()


def test_cells_of_a_sweep_are_others_where_auto_is_another_dtype(
    tiny_folder: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def key(fast: bool, **settings: str) -> str:
        flags = {"avx512_bf16": fast}
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: flags, raising=False)
        (cell,) = cells_of(make_sweep({**asked, "settings": settings}))
        return cell.key

    asked = {"models": [str(tiny_folder())], "methods": ["flap"], "ratios": [0.3]}
    assert key(True, device="cpu") != key(False, device="cpu")
    assert key(True, dtype="float32") == key(False, dtype="float32")
