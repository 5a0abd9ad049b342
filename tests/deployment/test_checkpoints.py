"""What is exported as a checkpoint loads without us, and computes the same."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import secateur
from conftest import logits, tiny_tokenizer

TOKENS = torch.randint(3, 128, (1, 12), generator=torch.Generator().manual_seed(0))


def test_a_uniform_folder_is_a_stock_checkpoint(
    pruned: Callable[..., Path], tmp_path: Path
) -> None:
    folder = pruned("llama-gqa", method="magnitude", stock=True, search="uniform")
    done = secateur.export_model(folder, to="uniform", out=tmp_path / "out")
    assert done.facts["class"] == "LlamaForCausalLM"
    assert not list((tmp_path / "out").glob("*.py"))
    assert (tmp_path / "out" / "tokenizer.json").is_file()
    script = (
        "import sys, torch, transformers\n"
        "model = transformers.AutoModelForCausalLM.from_pretrained(sys.argv[1])\n"
        "torch.save(model(torch.load(sys.argv[2])).logits.detach(), sys.argv[3])\n"
        "assert 'secateur' not in sys.modules\n"
    )
    torch.save(TOKENS, tmp_path / "ids.pt")
    paths = [str(tmp_path / name) for name in ("out", "ids.pt", "logits.pt")]
    subprocess.run([sys.executable, "-c", script, *paths], check=True, capture_output=True)
    found = torch.load(tmp_path / "logits.pt")
    assert torch.equal(found, logits(secateur.load(folder), TOKENS))


def test_layers_that_differ_are_no_stock_checkpoint(
    pruned: Callable[..., Path], tmp_path: Path, assert_refused: Callable[..., str]
) -> None:
    folder = pruned("llama-gqa", method="flap")
    says = ["layers differ in", "--profile uniform"]
    assert_refused("export", folder, "--to", "uniform", "--out", tmp_path / "out", says=says)
    assert not (tmp_path / "out").exists()


def test_any_folder_is_written_as_it_loads(pruned: Callable[..., Path], tmp_path: Path) -> None:
    folder = pruned("llama-gqa", method="flap")
    secateur.export_model(folder, to="safetensors", out=tmp_path / "out")
    back = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert torch.equal(logits(back, TOKENS), logits(secateur.load(folder), TOKENS))
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config == json.loads((folder / "config.json").read_text())


@pytest.mark.parametrize("package", ["gguf", "onnxscript"])
def test_a_package_that_is_missing_is_named(
    package: str,
    tiny_folder: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    assert_refused: Callable[..., str],
) -> None:
    monkeypatch.setattr(
        "secateur.deployment.destinations.find_spec", lambda name: None if name == package else True
    )
    target = {"gguf": "gguf", "onnxscript": "onnx"}[package]
    extra = {"gguf": "gguf", "onnxscript": "deploy"}[package]
    says = [f"needs the package {package}", rf"secateur\[{extra}\]"]
    assert_refused("export", tiny_folder(), "--to", target, "--out", tmp_path / "out", says=says)


def test_the_tokenizer_is_left_out_or_replaced(
    tiny_folder: Callable[..., Path], tmp_path: Path
) -> None:
    folder = tiny_folder()
    secateur.export_model(folder, to="safetensors", out=tmp_path / "none", no_tokenizer=True)
    assert not list((tmp_path / "none").glob("tokenizer*"))
    own = tiny_tokenizer()
    own.add_tokens(["<mine>"])
    secateur.export_model(folder, to="uniform", out=tmp_path / "mine", tokenizer=own)
    assert "<mine>" in AutoTokenizer.from_pretrained(tmp_path / "mine").get_vocab()
    for file in folder.glob("tokenizer*"):
        file.unlink()
    secateur.export_model(folder, to="safetensors", out=tmp_path / "bare")
    with pytest.raises(secateur.SecateurError, match="--no-tokenizer"):
        secateur.export_model(folder, to="gguf", out=tmp_path / "gguf")
