"""`secateur discover`: what it shows, what it draws, what it refuses."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import torch
import transformers

from conftest import EVERY_FAMILY, EVERY_FAMILY_SLOWLY, cases, tiny_model
from secateur.models import open_config, open_model
from secateur.pipeline import discover
from secateur.report.plates import plates_of, removal_sentence
from secateur.report.structure_table import percent
from secateur.structure import GRANULARITIES

Said = Callable[..., str]
Refused = Callable[..., str]


@pytest.fixture
def config_only(model: Path) -> Path:
    """A folder with config.json and nothing else."""
    for file in model.iterdir():
        if file.name != "config.json":
            file.unlink()
    return model


def written(folder: Path, config: dict[str, Any]) -> Path:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def drawn(variant: str, layer: int = 1) -> ElementTree.Element:
    return ElementTree.fromstring(discover(tiny_model(variant)).picture(layer))


def texts(picture: ElementTree.Element) -> list[str]:
    return ["".join(e.itertext()) for e in picture.iter() if e.tag.endswith("}text")]


# --- the structures -------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", ["llama-tied", "gpt2", "gpt_oss"])
def test_a_config_alone_has_the_structures_of_the_whole_model(
    variant: str, tiny_folder: Callable[..., Path]
) -> None:
    folder = tiny_folder(variant)
    whole = open_model(folder).structures
    (folder / "model.safetensors").unlink()
    alone = open_config(folder).structures
    assert alone.weights == ""
    assert alone == dataclasses.replace(whole, weights="")


@pytest.mark.parametrize("variant", EVERY_FAMILY)
def test_rows_count_what_the_axes_count(variant: str) -> None:
    found = discover(tiny_model(variant))
    structure = found.structure
    for granularity in {axis.granularity for axis in structure.axes}:
        axes = [axis for axis in structure.axes if axis.granularity == granularity]
        rows = [row for row in found.rows if row.granularity == granularity]
        assert sum(row.share for row in rows) == pytest.approx(
            sum(axis.units * axis.cost for axis in axes) / structure.parameters
        )
        assert {(row.units, row.cost) for row in rows} == {(a.units, a.cost) for a in axes}
    default = {axis.granularity for axis in structure.select().axes}
    assert {row.granularity for row in found.rows if row.default} == default


def test_layers_that_are_not_alike_have_rows_of_their_own() -> None:
    rows = discover(tiny_model("qwen3_moe")).rows
    layers = {row.granularity: row.layers for row in rows}
    assert (layers["channel"], layers["expert_channel"]) == ("0", "1-2")


def test_what_a_unit_owns_is_readable() -> None:
    rows = {
        (variant, row.granularity): row.members
        for variant in ("llama-biased", "phi3", "gpt2", "mixtral", "gpt_oss", "llama-gqa")
        for row in discover(tiny_model(variant)).rows
    }
    biased = "rows of q_proj + bias, k_proj + bias, v_proj + bias"
    assert rows["llama-biased", "kv_group"] == (biased, "columns of o_proj")
    assert rows["phi3", "kv_group"][0] == "rows 16u.., 48+8u.., 72+8u.. of qkv_proj"
    assert rows["gpt2", "kv_group"][0] == "columns 8u.., 48+8u.., 96+8u.. of c_attn + bias"
    assert rows["mixtral", "expert_channel"][0] == "rows u, 24+u in an expert of gate_up_proj"
    assert rows["gpt_oss", "kv_group"][-1] == "columns of o_proj"
    assert rows["llama-gqa", "layer"] == ("all 9 tensors of it",)


def test_a_deep_model_is_proved_like_a_shallow_one(config_only: Path) -> None:
    """Values must not grow from layer to layer until they are infinite."""
    path = config_only / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "num_hidden_layers": 60}))
    assert discover(config_only).difference < 1e-9


# --- the command ----------------------------------------------------------------------------------


def test_the_table_names_every_granularity(config_only: Path, said: Said) -> None:
    out = said("discover", config_only)
    assert "Family llama: its layout is declared" in out
    found = discover(config_only)
    for row in found.rows:
        assert f"│ {row.granularity} " in out
        assert f"{row.cost:,}" in out
    assert len({row.granularity for row in found.rows}) > 5
    assert "u is a unit's number" not in out  # the table has no u


def test_what_u_means_is_said_where_the_table_has_one(
    tiny_folder: Callable[..., Path], said: Said
) -> None:
    assert "u is a unit's number" in said("discover", tiny_folder("gpt2"))


def test_json_is_one_object_that_gives_the_structure_back(
    config_only: Path,
    said: Said,
) -> None:
    out = said("discover", config_only, "--json")
    assert out.count("\n") == 1
    found = json.loads(out)
    assert (found["family"], found["layout"]) == ("llama", "declared")
    assert found["difference"] < 1e-6
    structure = open_config(config_only).structures
    assert found["structure"] == json.loads(structure.to_json())
    assert [row["granularity"] for row in found["rows"]] == [
        name for name in GRANULARITIES if any(a.granularity == name for a in structure.axes)
    ]


def test_a_traced_layout_is_said_to_be(tmp_path: Path, said: Said) -> None:
    config = transformers.HeliumConfig(
        hidden_size=48, num_attention_heads=6, num_key_value_heads=3, head_dim=8,
        num_hidden_layers=2, intermediate_size=56, vocab_size=128,
    )  # fmt: skip
    config.save_pretrained(tmp_path / "helium")
    assert "its layout was traced" in said("discover", tmp_path / "helium")


def test_a_picture_is_written_whole_and_replaced_only_with_force(
    config_only: Path,
    tmp_path: Path,
    said: Said,
) -> None:
    file = tmp_path / "layer.svg"
    said("discover", config_only, "--picture", file)
    first = file.read_text()
    assert "layer 0" in first
    said("discover", config_only, "--picture", file, "--layer", 2, "--force", "--json")
    assert "layer 2" in file.read_text()
    said("discover", config_only, "--picture", file, "--force")
    assert file.read_text() == first
    assert sorted(path.name for path in tmp_path.iterdir()) == [config_only.name, "layer.svg"]


# --- the picture ----------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", EVERY_FAMILY_SLOWLY)
def test_the_sentence_of_a_picture_adds_up_to_the_cost(variant: str) -> None:
    """Marked slices times the other side of their matrices, biases included: what a unit costs."""
    found = discover(tiny_model(variant))
    for axis in found.structure.select().axes:
        plates = plates_of(axis, found.shapes)
        total = 0
        for plate in plates:
            other = 1 if plate.flat else plate.size[1 if plate.rows else 0]
            total += plate.width_of(0) * (other + plate.biased)
            assert plate.pieces[0].start == 0
            assert plate.pieces[-1].end == plate.size[0 if plate.rows else 1]
            for one, two in zip(plate.pieces, plate.pieces[1:], strict=False):
                assert one.end == two.start
        assert total == axis.cost
        sentence = removal_sentence(axis, plates, found.structure, 0)
        assert f"{axis.cost:,} parameters" in sentence


def test_the_sentence_says_what_goes() -> None:
    said_of = {}
    for variant in ("llama-gqa", "gpt_oss", "gpt2"):
        found = discover(tiny_model(variant))
        for axis in found.structure.select().axes[:2]:
            plates = plates_of(axis, found.shapes)
            said_of[variant, axis.kind] = removal_sentence(axis, plates, found.structure, 1)
    assert said_of["llama-gqa", "attention"].startswith(
        "Removing this KV group takes 20 rows of q_proj, 10 of k_proj, 10 of v_proj and 20 columns"
        " of o_proj: 2,880 parameters ("
    )
    assert (
        "2 columns of gate_up_proj with their biases and 1 row of down_proj in one of the 4"
        in (said_of["gpt_oss", "mlp"])
    )
    assert (
        "24 columns of c_attn with their biases and 8 rows of c_proj"
        in (said_of["gpt2", "attention"])
    )


@pytest.mark.parametrize("variant", EVERY_FAMILY_SLOWLY)
def test_every_family_is_drawn_inside_the_page(variant: str) -> None:
    picture = drawn(variant)
    width, height = (float(picture.attrib[side]) for side in ("width", "height"))
    for element in picture.iter():
        tag = element.tag.rpartition("}")[2]
        if tag == "rect" and "x" in element.attrib:
            x, y, w, h = (float(element.attrib[name]) for name in ("x", "y", "width", "height"))
            assert 0 <= x <= x + w <= width
            assert 0 <= y <= y + h <= height
        if tag == "text":
            assert 0 <= float(element.attrib["x"]) <= width
            assert 0 <= float(element.attrib["y"]) <= height
            assert float(element.attrib["font-size"]) >= 12
    words = texts(picture)
    assert any("Removing this" in text for text in words)
    assert any(text.startswith("residual stream, 48") for text in words)


def test_marked_slices_of_fused_and_interleaved_matrices() -> None:
    assert {"rows 16–31", "rows 56–63", "rows 80–87"} <= set(texts(drawn("phi3")))  # noqa: RUF001
    assert "rows 24–47" in texts(drawn("gpt_neox"))  # noqa: RUF001
    assert {"row 1", "row 25", "column 1"} <= set(texts(drawn("mixtral")))
    assert any("shared by all" in text for text in texts(drawn("falcon-mqa")))
    assert any(text.endswith("4 experts") for text in texts(drawn("gpt_oss")))


def test_shares_have_two_digits_that_say_something() -> None:
    shares = {0.5: "50%", 0.042: "4.2%", 0.02: "2%", 0.000314: "0.031%", 1.0: "100%", 0.0: "0%"}
    assert {share: percent(share) for share in shares} == shares


# --- what is refused ------------------------------------------------------------------------------

LLAMA = {"model_type": "llama", "hidden_size": 48, "num_attention_heads": 6, "num_hidden_layers": 2}
BAD: dict[str, tuple[dict[str, Any], list[str]]] = {
    "encoder": (
        {"model_type": "bert", "architectures": ["BertForMaskedLM"]},
        ["BertForMaskedLM", "ForCausalLM"],
    ),
    "encoder-unnamed": ({"model_type": "bert"}, ["'bert' is an encoder", "causal"]),
    "sequence-to-sequence": ({"model_type": "t5"}, ["not a decoder", "t5", "ForCausalLM"]),
    "sequence-to-sequence-with-a-causal-class": ({"model_type": "bart"}, ["not a decoder", "bart"]),
    "of-images": ({"model_type": "vit"}, ["not a decoder", "vit"]),
    "without-heads": (
        {"model_type": "mamba", "num_hidden_layers": 1, "hidden_size": 16},
        ["'mamba'", "recurrence", "no attention heads"],
    ),
    "of-another-type": (LLAMA | {"hidden_size": "wide"}, ["does not make sense", "wide"]),
    "unknown-family": ({"model_type": "nope"}, ["does not know", "'nope'", "newer"]),
    "no-family": ({}, ["model_type|model family"]),
    "shared-keys": (
        {"model_type": "gemma3n_text", "num_hidden_layers": 4, "num_kv_shared_layers": 2},
        ["'gemma3n_text'", "keys and values of earlier ones"],
    ),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("config", "words"), cases(BAD))
def test_a_config_of_no_decoder_is_refused(
    config: dict[str, Any], words: list[str], tmp_path: Path, assert_refused: Refused
) -> None:
    folder = written(tmp_path / "model", config)
    transformers.logging.set_verbosity_error()
    assert_refused("discover", folder, says=words)


def test_a_model_that_is_not_there_is_refused(tmp_path: Path, assert_refused: Refused) -> None:
    assert_refused("discover", tmp_path / "gone", says=["No such model folder"])
    assert_refused("discover", "nobody/nothing", says=["no folder nobody/nothing", "hub"])


def test_a_place_where_no_picture_can_be_is_refused(
    config_only: Path, tmp_path: Path, assert_refused: Refused
) -> None:
    (tmp_path / "there.svg").write_text("of someone else")
    (tmp_path / "folder.svg").mkdir()
    bad: dict[str, list[str]] = {
        "layer.png": ["ends in .svg"],
        "there.svg": ["exists", "--force"],
        "folder.svg": ["no place for a file"],
        "gone/layer.svg": ["no place for a file"],
    }
    for name, words in bad.items():
        assert_refused("discover", config_only, "--picture", tmp_path / name, says=words)
    assert_refused(
        "discover", config_only, "--picture", tmp_path / "new.svg", "--layer", "3",
        says=["Layer 3 has no units", "0-2"],
    )  # fmt: skip


def test_a_layout_that_does_not_hold_is_refused(
    config_only: Path, assert_refused: Refused, monkeypatch: pytest.MonkeyPatch
) -> None:
    from secateur.export import proof

    monkeypatch.setattr(proof, "_difference", lambda *_: (0.5, torch.float64))
    assert_refused("discover", config_only, says=["do not hold", "5.0e-01"])
