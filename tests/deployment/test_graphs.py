"""ONNX Runtime and OpenVINO compute what torch does, with the cache of each layer."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import secateur
from conftest import logits
from documentation import ROOT, blocks
from secateur.data.sources import embedded_folder

pytestmark = pytest.mark.deploy
onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

TOKENS = torch.randint(3, 128, (2, 14), generator=torch.Generator().manual_seed(0))
CUT = 11


class Graph:
    """A session, from tokens and a cache to logits and a cache."""

    def __init__(self, file: Path) -> None:
        self.session = onnxruntime.InferenceSession(str(file))
        self.names = [one.name for one in self.session.get_inputs()]
        self.shapes = {one.name: one.shape for one in self.session.get_inputs()}

    def empty(self, batch: int) -> list[Any]:
        return [
            torch.zeros(batch, self.shapes[name][1], 0, self.shapes[name][3]).numpy()
            for name in self.names[2:]
        ]

    def __call__(self, ids: torch.Tensor, mask: torch.Tensor, past: list[Any]) -> list[Any]:
        given = [ids.numpy(), mask.numpy(), *past]
        found: list[Any] = self.session.run(None, dict(zip(self.names, given, strict=True)))
        return found


@pytest.fixture
def small(pruned: Callable[..., Path]) -> Callable[[str], Path]:
    return lambda variant: pruned(variant, method="flap")


@pytest.mark.parametrize(
    "variant",
    ["llama-gqa", "mistral-gqa", "qwen2-gqa", "qwen3-gqa", "gemma3", "phi3", "gpt2", "gpt_neox"],
)
def test_onnx_runtime_is_torch(variant: str, small: Callable[[str], Path], tmp_path: Path) -> None:
    folder = small(variant)
    done = secateur.export_model(folder, to="onnx", out=tmp_path / "out", no_tokenizer=True)
    graph, model = Graph(tmp_path / "out" / done.file), secateur.load(folder).eval()
    wanted = logits(model, TOKENS)
    ones = torch.ones_like(TOKENS)
    first, *past = graph(TOKENS[:, :CUT], ones[:, :CUT], graph.empty(2))
    assert (torch.tensor(first) - wanted[:, :CUT]).abs().max() < 1e-4
    for at in range(CUT, TOKENS.shape[1]):
        now, *past = graph(TOKENS[:, at : at + 1], ones[:, : at + 1], past)
        assert (torch.tensor(now) - wanted[:, at : at + 1]).abs().max() < 1e-4
    whole, *_ = graph(TOKENS[:1], ones[:1], graph.empty(1))
    assert (torch.tensor(whole) - wanted[:1]).abs().max() < 1e-4


def test_heads_of_the_cache_are_those_of_each_layer(
    small: Callable[[str], Path], tmp_path: Path
) -> None:
    folder = small("llama-gqa")
    done = secateur.export_model(folder, to="onnx", out=tmp_path / "out", no_tokenizer=True)
    graph = Graph(tmp_path / "out" / done.file)
    layers = secateur.load(folder).model.layers
    for number, layer in enumerate(layers):
        heads = layer.self_attn.k_proj.out_features // layer.self_attn.head_dim
        for part in ("key", "value"):
            assert graph.shapes[f"past_key_values.{number}.{part}"][1] == heads


def test_padding_on_the_left_changes_nothing(small: Callable[[str], Path], tmp_path: Path) -> None:
    folder = small("llama-gqa")
    done = secateur.export_model(folder, to="onnx", out=tmp_path / "out", no_tokenizer=True)
    graph = Graph(tmp_path / "out" / done.file)
    alone, *_ = graph(TOKENS[:1, :6], torch.ones(1, 6, dtype=torch.long), graph.empty(1))
    padded = torch.cat([torch.zeros(1, 3, dtype=torch.long), TOKENS[:1, :6]], dim=1)
    mask = (torch.arange(9) >= 3).long()[None]
    beside, *_ = graph(padded, mask, graph.empty(1))
    assert (torch.tensor(beside[:, 3:]) - torch.tensor(alone)).abs().max() < 1e-4


def test_openvino_is_torch(small: Callable[[str], Path], tmp_path: Path) -> None:
    openvino = pytest.importorskip("openvino")
    folder = small("llama-gqa")
    done = secateur.export_model(
        folder, to="openvino", type="f32", out=tmp_path / "out", no_tokenizer=True
    )
    assert not list((tmp_path / "out").glob("*.onnx*"))
    exact = {"INFERENCE_PRECISION_HINT": "f32"}
    model = openvino.compile_model(tmp_path / "out" / done.file, "CPU", exact)
    past = [
        torch.zeros(2, one.partial_shape[1].get_length(), 0, one.partial_shape[3].get_length())
        for one in model.inputs[2:]
    ]
    given = [TOKENS, torch.ones_like(TOKENS), *past]
    found = model([one.numpy() for one in given])[0]
    assert (torch.tensor(found) - logits(secateur.load(folder), TOKENS)).abs().max() < 1e-4


def test_the_python_of_the_page_writes_what_torch_writes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (code,) = (one for one in blocks(ROOT / "docs/deploy.md", "python") if "onnxruntime" in one)
    secateur.export_model(embedded_folder(), to="onnx", out=tmp_path / "onnx")
    monkeypatch.chdir(tmp_path)
    found: dict[str, Any] = {}
    exec(compile(code, "a page", "exec"), found)
    ids = torch.tensor(found["ids"])
    model = secateur.load(embedded_folder()).float().eval()
    wanted = model.generate(
        ids[:, :-20], max_new_tokens=20, do_sample=False, eos_token_id=None, pad_token_id=0,
        attention_mask=torch.ones_like(ids[:, :-20]),
    )  # fmt: skip
    assert torch.equal(ids, wanted)


def test_what_torch_cannot_export_is_refused_in_two_lines(
    tiny_folder: Callable[..., Path],
    tmp_path: Path,
    assert_refused: Callable[..., str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def breaks(*args: Any, **options: Any) -> None:
        print("a whole graph\n" * 100)
        raise RuntimeError("\x1b[96mThis is step 1/3\x1b[0m")

    monkeypatch.setattr(torch.onnx, "export", breaks)
    command = ["export", tiny_folder(), "--to", "onnx", "--no-tokenizer", "--out", tmp_path / "out"]
    said = assert_refused(*command, says=["a LlamaForCausalLM", "Run it in transformers"])
    assert "whole graph" not in said
    assert not (tmp_path / "out").exists()
