"""What is kept is read again as it was: by us, by safetensors, or not at all."""

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from secateur.checkpoint import Kept, Store, checksum
from secateur.checkpoint.kept import write_tensors
from secateur.errors import SecateurError

TENSORS = {
    "bf16": torch.randn(3, 5, generator=torch.Generator().manual_seed(0)).bfloat16(),
    "fp32": torch.arange(7.0).flip(0)[1:],
    "none": torch.zeros(0, 4),
    "scalar": torch.tensor(3),
    "turned": torch.arange(12).view(3, 4).T,
    "double": torch.tensor([1e300, -0.0, float("inf")], dtype=torch.float64),
    "half": torch.tensor([[[1.5]]]).half(),
}


@pytest.mark.parametrize("piece", [1, 16, 2**28])
def test_files_are_what_safetensors_reads(
    piece: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Written in pieces of so many bytes."""
    monkeypatch.setattr("secateur.checkpoint.kept._PIECE", piece)
    write_tensors(tmp_path / "some.safetensors", TENSORS, {"one": [1, "two"]})
    with safe_open(tmp_path / "some.safetensors", framework="pt") as file:
        assert set(file.keys()) == set(TENSORS)
        for name, tensor in TENSORS.items():
            assert torch.equal(file.get_tensor(name), tensor), name
            assert file.get_tensor(name).dtype == tensor.dtype
    assert [entry.name for entry in tmp_path.iterdir()] == ["some.safetensors"]


def test_a_pass_is_read_as_it_was_kept(tmp_path: Path) -> None:
    kept = Kept(tmp_path)
    kept.layer(0, {"a": TENSORS["bf16"]}, {"x": 0.1}, {"hidden": TENSORS["fp32"]})
    kept.layer(4, {"b": TENSORS["turned"]}, None, {"hidden": TENSORS["fp32"] + 1})
    again = Kept(tmp_path)
    assert (again.done, again.whole, again.layers) == ((0, 4), False, [0, 4])
    assert torch.equal(again.found(4)["b"], TENSORS["turned"])
    assert again.value(0) == {"x": 0.1}
    hidden = again.state("hidden")
    assert hidden is not None
    assert torch.equal(hidden, TENSORS["fp32"] + 1)
    again.end({"c": TENSORS["double"]}, [1.1])
    whole = Kept(tmp_path)
    assert whole.whole
    assert torch.equal(whole.ended[0]["c"], TENSORS["double"])
    assert whole.ended[1] == [1.1]
    assert not (tmp_path / "states.safetensors").exists()


def test_in_memory_it_is_the_same() -> None:
    kept = Kept()
    kept.layer(2, {"a": TENSORS["bf16"]}, 3, {"hidden": TENSORS["fp32"]})
    kept.end(value="over")
    assert kept.found(2)["a"] is TENSORS["bf16"]
    assert (kept.value(2), kept.ended[1], kept.whole) == (3, "over", True)


@pytest.mark.parametrize("byte", [-1, -40, 200, 3])
def test_a_bit_that_tips_is_seen(byte: int, tmp_path: Path) -> None:
    """Whichever it is: nothing that was kept is believed, or the file is none."""
    kept = Kept(tmp_path)
    kept.layer(0, {"a": torch.arange(64.0)}, None, {"hidden": torch.arange(64.0)})
    for name in ("states", "layer-0"):
        file = tmp_path / f"{name}.safetensors"
        data = bytearray(file.read_bytes())
        data[byte] ^= 16
        file.write_bytes(bytes(data))
    again = Kept(tmp_path)
    assert again.done == ()


def test_a_checksum_sees_zeros_and_cuts() -> None:
    tensor = torch.randn(1000)
    cut = tensor.clone()
    cut[512:] = 0
    assert checksum(tensor) != checksum(cut)
    assert checksum(torch.arange(13)[1:]) == checksum(torch.arange(1, 13))


def test_what_is_no_pass_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "about.json").write_text(json.dumps([1]))
    (tmp_path / "statistics-x-y").mkdir()
    (tmp_path / "file").write_text("mine")
    with Store(tmp_path, gib=0) as store:
        assert store.passes() == []
        assert store.earlier("statistics", {}) == []
        kept = store.kept("statistics", {"model": "m"}, {"needs": []})
        kept.end()
        assert [one.kind for one in store.passes()] == ["statistics"]
    assert sorted(entry.name for entry in tmp_path.iterdir()) == [
        "file",
        "folder",
        "statistics-x-y",
    ]


def test_a_tensor_that_is_damaged_is_told(tmp_path: Path) -> None:
    kept = Kept(tmp_path)
    kept.layer(0, {"a": torch.arange(64.0)}, None, {})
    kept.end()
    file = tmp_path / "layer-0.safetensors"
    file.write_bytes(file.read_bytes()[:-8] + bytes(8))
    with pytest.raises(SecateurError, match=r"is damaged.\nAdd --fresh"):
        Kept(tmp_path).found(0)["a"]


def test_links_and_foreign_files_are_not_touched(tmp_path: Path) -> None:
    """Whatever lies in a store or in a pass: only what a pass kept goes."""
    with Store(tmp_path / "store") as store:
        store.kept("statistics", {}, {"needs": []}).end()
        own = store.passes()[0].folder
    elsewhere = tmp_path / "elsewhere"
    own.rename(elsewhere)
    (elsewhere / "thesis.txt").write_text("years")
    own.symlink_to(elsewhere)
    with Store(tmp_path / "store", fresh=True) as store:
        assert store.passes() == []
        store.kept("statistics", {}, {"needs": []}).end()
    assert Store(tmp_path / "store").clean() == 0
    assert {file.name for file in elsewhere.iterdir()} >= {"thesis.txt", "end.safetensors"}
    own.unlink()
    elsewhere.rename(own)
    Store(tmp_path / "store").clean()
    assert [file.name for file in own.iterdir()] == ["thesis.txt"]


def test_a_pass_that_says_it_was_asked_for_something_else_is_none(tmp_path: Path) -> None:
    with Store(tmp_path) as store:
        store.kept("statistics", {"model": "m"}, {"needs": ["moments"]}).end()
        about = store.passes()[0].folder / "about.json"
        about.write_text(about.read_text().replace("moments", "norm"))
        assert store.earlier("statistics", {"model": "m"}) == []


@pytest.mark.parametrize("damage", ["value", "order", "layer"])
def test_of_a_whole_pass_nothing_that_changed_is_believed(damage: str, tmp_path: Path) -> None:
    kept = Kept(tmp_path)
    kept.layer(0, {"a": torch.arange(64.0)}, {"loss": 12345.0}, {})
    kept.layer(1, {"a": torch.arange(64.0)}, None, {})
    kept.end(value=1.5)
    file = tmp_path / "layer-0.safetensors"
    data = file.read_bytes()
    if damage == "value":
        file.write_bytes(data.replace(b"12345.0", b"12346.0"))
    elif damage == "order":
        file.write_bytes(data[:-256] + data[-128:] + data[-256:-128])
    else:
        file.unlink()
    with pytest.raises(SecateurError, match="is damaged"):
        Kept(tmp_path).found(0)["a"]
