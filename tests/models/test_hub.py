"""Names of the hub: what is fetched, against a stand-in that speaks its language."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import secateur
from conftest import bound, write_shards
from secateur.errors import SecateurError
from secateur.models import open_config, open_model

SHA = "5" * 40


@pytest.fixture
def repository(tiny_folder: Any) -> Path:
    """As Mistral's are: shards and an index, and the same weights twice more; with code."""
    folder: Path = tiny_folder()
    held = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    write_shards(folder, held, 2)
    for name in ("consolidated.safetensors", "pytorch_model.bin", "model-old.safetensors"):
        (folder / name).write_bytes(b"weights")
    for name, text in {
        "LICENSE.txt": "free",
        "USE_POLICY.md": "be good",
        "README.md": "---\nlicense: mit\n---\n",
        "chat_template.jinja": "{{ messages }}",
        "odd [name]*.txt": "odd",
        "more.tiktoken": "IQ== 0",
        "additional_chat_templates/tool.jinja": "{{ tools }}",
        "modeling_evil.py": "raise SystemExit",
        "original/params.json": "{}",
        "onnx/model.onnx": "weights",
        "onnx/config.json": "{}",
        ".gitattributes": "x",
    }.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text)
    return folder


WANTED = {
    "LICENSE.txt",
    "README.md",
    "USE_POLICY.md",
    "additional_chat_templates/tool.jinja",
    "chat_template.jinja",
    "config.json",
    "generation_config.json",
    "model.safetensors.index.json",
    "more.tiktoken",
    "odd [name]*.txt",
    "pytorch_model-00001-of-00002.safetensors",
    "pytorch_model-00002-of-00002.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
}


def weights_of(opened: Any) -> dict[str, torch.Tensor]:
    return {name: opened.weights.tensor(name) for name in opened.weights.specs}


@pytest.mark.parametrize("name", ["org/name", "name-1.0"])
def test_the_files_that_are_read_are_fetched_and_those_that_travel(
    name: str, hub: Any, repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    hub.repositories[name] = repository
    opened = open_model(name)
    assert sorted(hub.asked) == sorted(WANTED), "each once, and nothing else"
    ours, theirs = weights_of(opened), weights_of(open_model(repository))
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)
    out = tmp_path / "out"
    secateur.prune(name, method="magnitude", ratio=0, evaluate="none", out=out)
    assert (out / "chat_template.jinja").read_text() == "{{ messages }}"
    assert (out / "LICENSE.txt").read_text() == "free"
    card = (out / "README.md").read_text()
    assert f"# {name}, pruned" in card
    hub.offline()
    again = weights_of(open_model(name))
    assert all(torch.equal(again[key], theirs[key]) for key in theirs)


def test_the_single_file_comes_without_the_shards(hub: Any, tiny_folder: Any) -> None:
    folder = tiny_folder()
    held = load_file(folder / "model.safetensors")
    write_shards(folder, held, 2)
    hub.repositories["org/name"] = folder
    open_model("org/name")
    fetched = [name for name in hub.asked if name.endswith(".safetensors")]
    assert fetched == ["model.safetensors"]


def test_a_file_that_the_config_names_is_fetched(hub: Any, tiny_folder: Any) -> None:
    folder = tiny_folder()
    shutil.copyfile(folder / "model.safetensors", folder / "other.safetensors")
    raw = json.loads((folder / "config.json").read_text())
    raw["transformers_weights"] = "other.safetensors"
    (folder / "config.json").write_text(json.dumps(raw))
    hub.repositories["org/name"] = folder
    open_model("org/name")
    assert [n for n in hub.asked if n.endswith(".safetensors")] == ["other.safetensors"]


def test_a_config_alone_is_fetched_alone(hub: Any, repository: Path) -> None:
    hub.repositories["org/name"] = repository
    open_config("org/name")
    assert hub.asked == ["config.json"]


def test_pickles_are_not_fetched(hub: Any, repository: Path) -> None:
    for path in repository.glob("*.safetensors*"):
        path.unlink()
    hub.repositories["org/name"] = repository
    with pytest.raises(SecateurError, match="org/name has its weights in pickle files"):
        open_model("org/name")
    assert "pytorch_model.bin" not in hub.asked


def test_an_index_of_the_hub_that_leads_outside_is_refused(hub: Any, repository: Path) -> None:
    index = {"weight_map": {"a": "../../../outside.safetensors"}}
    (repository / "model.safetensors.index.json").write_text(json.dumps(index))
    hub.repositories["org/name"] = repository
    with pytest.raises(SecateurError, match="outside of the model's folder"):
        open_model("org/name")


@pytest.mark.parametrize("name", ["nobody/nothing", "nothing", "no.thing-2"])
@pytest.mark.parametrize("offline", [False, True])
def test_a_name_that_is_nowhere_is_refused_by_both_readings(
    name: str, offline: bool, hub: Any, tmp_path: Path, assert_refused: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    if offline:
        hub.offline()
    says = [f"no folder {name}", f"hub does not give a model {name}", "Check the name"]
    assert_refused("prune", name, "--out", tmp_path / "small", says=says)


@pytest.mark.parametrize("name", ["./nothing", "a/b/c", "/nothing/x", "~/nothing-x", ".hidden"])
def test_a_path_is_not_asked_for_at_the_hub(name: str, hub: Any, assert_refused: Any) -> None:
    assert_refused("inspect", name, says=["No such model folder"])
    assert not hub.asked


@pytest.mark.parametrize("name", ["a" * 300, "~nouser-x/y", "/" + "b/" * 3000])
def test_a_name_that_no_system_takes_is_refused(name: str) -> None:
    with pytest.raises(SecateurError):
        open_model(name)


def test_a_folder_comes_before_the_hub(
    hub: Any, tiny_folder: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny_folder().rename(tmp_path / "gpt2")
    monkeypatch.chdir(tmp_path)
    assert open_model("gpt2").folder == Path("gpt2")
    assert not hub.asked


def test_a_cache_that_may_not_be_written_is_read(
    hub: Any, repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    hub.repositories["org/name"] = repository
    theirs = weights_of(open_model("org/name"))
    hub.offline()
    folders = [path for path in (tmp_path / "cache").rglob("*") if path.is_dir()]
    try:
        for folder in folders:
            folder.chmod(0o555)
        with bound():
            again = weights_of(open_model("org/name"))
    finally:
        for folder in folders:
            folder.chmod(0o755)
    assert all(torch.equal(again[key], theirs[key]) for key in theirs)
