"""Traced structures equal the declared ones, and slicing by them equals masking."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

import secateur
from conftest import EVERY_FAMILY, EVERY_FAMILY_SLOWLY, tiny_model
from secateur.cli.main import run
from secateur.errors import SecateurError
from secateur.export import prove, proved
from secateur.models import FAMILIES, Family, OpenModel, open_model, opening
from secateur.models.discovery import layer_kinds, traced
from secateur.models.families import declared
from secateur.models.structures import layer_axes
from secateur.structure import Axis, Coupling
from secateur.structure.size import ONE, E, I, K, Size, d, r


def axes_by(family: Family, opened: OpenModel, layer: int) -> list[Axis]:
    skeleton = opened.skeleton
    shapes = {n: tuple(p.shape) for n, p in skeleton.named_parameters(remove_duplicate=False)}
    return list(layer_axes(family, shapes, opened.config, layer))


def traced_like(opened: OpenModel, layer: int) -> list[Axis]:
    couplings = traced(opened.config, layer, opened.family).couplings
    return axes_by(dataclasses.replace(opened.family, couplings=couplings), opened, layer)


@pytest.mark.parametrize("variant", EVERY_FAMILY)
def test_traced_structure_equals_the_declared_one(variant: str) -> None:
    """For the real (odd) sizes of the model, which are not those of the traced small ones."""
    opened = open_model(tiny_model(variant))
    for layer in layer_kinds(opened.skeleton, opened.family.layers).values():
        assert traced_like(opened, layer) == axes_by(opened.family, opened, layer)


@pytest.mark.parametrize("variant", ["llama-gqa", "phi3", "falcon-gqa", "gpt_oss", "olmo2"])
def test_a_wrong_declared_layout_is_caught(variant: str) -> None:
    """One offset of one slice is one too many."""
    opened = open_model(tiny_model(variant))
    coupling = opened.family.couplings[0]
    names = dict(opened.skeleton.get_submodule(f"{opened.family.layers}.0").named_parameters())
    found = traced_like(opened, 0)
    caught = 0
    for number, piece in enumerate(coupling.slices):
        if f"{piece.module}.{piece.parameter}" not in names:
            continue
        wrong = dataclasses.replace(piece, offset=piece.offset + ONE)
        slices = (*coupling.slices[:number], wrong, *coupling.slices[number + 1 :])
        edited = dataclasses.replace(coupling, slices=slices)
        couplings = (edited, *opened.family.couplings[1:])
        try:
            declared = axes_by(dataclasses.replace(opened.family, couplings=couplings), opened, 0)
        except SecateurError as error:  # it does not even fit into the tensor
            assert "the layout needs" in str(error)  # noqa: PT017
            continue
        assert declared != found
        caught += 1
    assert caught or variant in ("llama-gqa", "gpt_oss", "olmo2")


@pytest.mark.parametrize("variant", EVERY_FAMILY_SLOWLY)
def test_the_proof_holds_for_every_declared_family(variant: str) -> None:
    assert prove(open_model(tiny_model(variant))) < 1e-6


def test_the_proof_refuses_a_wrong_layout() -> None:
    """Rows of k and v exchanged between KV groups: the tensors fit, the function does not."""
    opened = open_model(tiny_model("gpt_neox"))
    attention = opened.family.couplings[0]
    first, *rest = attention.slices
    wrong = dataclasses.replace(first, offset=d, width=2 * d)
    edited: Coupling = dataclasses.replace(attention, slices=(wrong, *rest))
    family = dataclasses.replace(opened.family, couplings=(edited, *opened.family.couplings[1:]))
    with pytest.raises(SecateurError, match=r"do not hold|does not describe"):
        prove(dataclasses.replace(opened, family=family))


@pytest.fixture
def nobody_declared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(opening, "layout_for", lambda *_: None)


@pytest.mark.usefixtures("nobody_declared")
@pytest.mark.parametrize("variant", ["qwen3-gqa", "phi3", "falcon-mqa", "gptj", "opt", "qwen3_moe"])
def test_a_family_found_by_tracing_alone_has_the_same_structure(
    variant: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Place of the layers, KV heads and what follows from them included: the proof cuts by it."""
    model = tiny_model(variant)
    found = open_model(model)
    assert not found.declared
    assert prove(found) < 1e-6
    monkeypatch.undo()
    assert found.structures == open_model(model).structures


@pytest.mark.usefixtures("nobody_declared")
@pytest.mark.parametrize("variant", ["bloom", "mpt", "falcon"])
def test_slopes_that_nobody_declared_leave_attention_whole(variant: str) -> None:
    """ALiBi's slopes belong to the original heads, which only a declared layout says."""
    found = open_model(tiny_model(variant))
    with pytest.raises(SecateurError, match="needs a declared layout"):
        prove(found)
    kept, difference = proved(found)
    assert difference < 1e-6
    assert {axis.kind for axis in kept.structure.axes} == {"mlp"}
    (left,) = {some.module for some in kept.left}
    assert left in ("self_attention", "attn")


def test_norms_that_are_a_module_a_head_leave_attention_whole() -> None:
    """StableLM 2 12B: which of them stay, no index map of a tensor can say."""
    found = open_model(tiny_model("stablelm", qk_layernorm=True))
    assert not found.declared
    kept, _ = proved(found)
    assert {axis.kind for axis in kept.structure.axes} == {"mlp"}
    assert {some.module for some in kept.left} == {"self_attn"}


def test_a_line_declares_a_family_that_is_laid_out_as_llama_is(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Helium, which nobody declared: the line of CONTRIBUTING.md says what tracing finds."""
    config = transformers.HeliumConfig(
        hidden_size=48, intermediate_size=56, num_hidden_layers=3, num_attention_heads=6,
        num_key_value_heads=3, head_dim=8, vocab_size=128, pad_token_id=0,
    )  # fmt: skip
    model = transformers.HeliumForCausalLM(config)
    traced = open_model(model)
    monkeypatch.setitem(FAMILIES, "helium", (declared("Helium"),))
    opened = open_model(model)
    assert opened.declared
    assert not traced.declared
    assert opened.structures == traced.structures
    assert prove(opened) < 1e-6


UNDECLARED: dict[str, tuple[str, dict[str, Any]]] = {
    "arcee": ("Arcee", {}),
    "exaone4": ("Exaone4", {"sliding_window": 8, "sliding_window_pattern": 2}),
    "glm": ("Glm", {"pad_token_id": 0}),
    "seed_oss": ("SeedOss", {}),
    "helium": ("Helium", {}),
}


@pytest.mark.parametrize(
    "name",
    [
        name if name == "exaone4" else pytest.param(name, marks=pytest.mark.slow)
        for name in UNDECLARED
    ],
)
def test_a_family_that_nobody_declared_is_pruned_with_a_notice(
    name: str, tmp_path: Path, text_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from conftest import _COMMON, tiny_tokenizer

    stock, own = UNDECLARED[name]
    config = getattr(transformers, f"{stock}Config")(**{**_COMMON, "head_dim": 8, **own})
    torch.manual_seed(0)
    dense = getattr(transformers, f"{stock}ForCausalLM")(config)
    dense.save_pretrained(tmp_path / "dense")
    tiny_tokenizer().save_pretrained(tmp_path / "dense")
    arguments = ["prune", str(tmp_path / "dense"), "--ratio", "0.3", "--out", str(tmp_path / "s")]
    arguments += ["--calibration", str(text_file), "--samples", "4", "--length", "16"]
    assert run([*arguments, "--align", "1", "--json"]) == 0
    out, _ = capsys.readouterr()
    assert any("nobody declared" in note for note in json.loads(out)["notes"])
    ids = torch.tensor([[5, 6, 7, 8]])
    small = secateur.load(tmp_path / "s")
    again = secateur.prune(
        tmp_path / "s", out=tmp_path / "t", method="magnitude", ratio=0.3, evaluate="none"
    )
    assert again.numbers["parameters"]["after"] < sum(p.numel() for p in small.parameters())
    for model in (small, secateur.load(tmp_path / "t")):
        grown = model.generate(ids, max_new_tokens=4, do_sample=False, eos_token_id=None)
        plain = model.generate(
            ids, max_new_tokens=4, do_sample=False, eos_token_id=None, use_cache=False
        )
        assert torch.equal(grown, plain)


def test_sizes_are_polynomials() -> None:
    values = {"K": 3, "r": 2, "d": 8, "I": 21, "E": 5, "D": 30}
    cases: list[tuple[Size, int, str]] = [
        (K * r * d + 2 * d, 64, "K*d*r + 2*d"),
        (E * I + 1, 106, "1 + E*I"),
        (Size.of(0), 0, "0"),
    ]
    for size, number, text in cases:
        assert size.at(values) == number
        assert str(size) == text
    assert K * (r + 1) == K + r * K
    assert (K * d).letters == {"K", "d"}
