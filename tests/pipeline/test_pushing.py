"""A folder goes to the hub when it is whole, against a stand-in that speaks the hub's language."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import ModelCard, constants

import secateur
from conftest import tiny_model
from hub_here import TOKEN
from secateur.cli.main import run

# huggingface_hub 2.4 hands a large file to httpx by the old name
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")

NAME = "me/small"
CUT = {"method": "magnitude", "ratio": 0.3, "align": 1, "evaluate": "none"}
FLAGS = [word for key, value in CUT.items() for word in (f"--{key}", str(value))]


@pytest.fixture
def login(hub: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The hub, and a login there."""
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    return hub


def files(folder: Path) -> dict[str, bytes]:
    return {
        file.relative_to(folder).as_posix(): file.read_bytes()
        for file in folder.rglob("*")
        if file.is_file()
    }


def test_what_is_pushed_is_the_folder_and_loads_by_its_name(
    login: Any, tiny_folder: Any, tmp_path: Path
) -> None:
    result = secateur.prune(
        tiny_folder(), out=tmp_path / "out", push_to_hub=NAME, private=True, **CUT
    )
    assert files(login.repositories[NAME]) == files(tmp_path / "out")
    assert login.private == {NAME}
    card = ModelCard.load(NAME)
    assert card.data.tags[:3] == ["pruned", "structured-pruning", "secateur"]
    ids = torch.arange(3, 11)[None]
    pushed = secateur.load(secateur.open_model(NAME).folder)
    assert torch.equal(pushed(ids).logits, result.load()(ids).logits)


def test_weights_of_an_upload_before_go(login: Any, tiny_folder: Any, tmp_path: Path) -> None:
    """They would be read in the place of the new ones."""
    old = login.made / NAME
    old.mkdir(parents=True)
    login.repositories[NAME] = old
    stale = ("model-00001-of-00002.safetensors", "model.safetensors.index.json", "recovery.toml")
    for name in (*stale, "notes.txt", "lora/model.safetensors"):
        (old / name).parent.mkdir(exist_ok=True)
        (old / name).write_text("{}")
    secateur.prune(tiny_folder(), out=tmp_path / "out", push_to_hub=NAME, **CUT)
    assert files(old).keys() == {*files(tmp_path / "out"), "notes.txt", "lora/model.safetensors"}


def test_nothing_of_others_is_replaced_and_nothing_private_made_public(
    login: Any, tiny_folder: Any, tmp_path: Path, assert_refused: Any
) -> None:
    old = login.made / NAME
    old.mkdir(parents=True)
    login.repositories[NAME] = old
    command = ["prune", tiny_folder(), *FLAGS, "--out", tmp_path / "out", "--push-to-hub", NAME]
    assert_refused(*command, "--private", says=[f"{NAME} is public", "another name"])
    (old / "pytorch_model.bin").write_text("theirs")
    assert_refused(*command, says=["did not write", "pytorch_model.bin", "another name"])
    assert files(old) == {"pytorch_model.bin": b"theirs"}
    assert not (tmp_path / "out").exists()


def test_every_command_that_writes_a_model_pushes(
    login: Any, tiny_folder: Any, baichuan: Any, text_file: Path, tmp_path: Path, capsys: Any
) -> None:
    dense, text = str(tiny_folder()), str(text_file)
    few = ["--data", text, "--steps", "1", "--samples", "4", "--length", "16"]
    assert run(["prune", dense, *FLAGS, "--dry-run", "--out", str(tmp_path / "plan")]) == 0
    short = ["--calibration", text, "--samples", "4", "--length", "16"]
    commands: dict[str, list[str]] = {
        "pruned": ["prune", dense, *FLAGS],
        "applied": ["apply", str(tmp_path / "plan"), dense, "--evaluate", "none"],
        "trained": ["recover", str(tmp_path / "pruned"), "--recipe", "lora", *few],
        "converted": ["convert", str(baichuan()[1])],
        "both": ["prune", dense, *FLAGS, *short, "--recover", "lora"],
    }
    for name, words in commands.items():
        out = tmp_path / name
        code = run([*words, "--out", str(out), "--push-to-hub", f"me/{name}"])
        said = capsys.readouterr().err
        assert code == 0, said
        assert f"/me/{name}" in said
        assert "go to the hub with paths of this machine" in said
        assert files(login.repositories[f"me/{name}"]) == files(out)


def refused(hub: Any, capsys: Any, out: Path, words: list[str]) -> str:
    """What is said of a run that writes nothing anywhere."""
    capsys.readouterr()  # transformers' own bars
    assert run(words) == 2
    said = capsys.readouterr().err
    assert 1 <= said.count("\n") <= 2
    assert "Traceback" not in said
    assert not out.exists()
    assert not hub.repositories
    return str(said)


@pytest.mark.parametrize("name", ["small", "a/b/c", "me/", "me/a b", "/x/y", "me/a--b", ""])
def test_a_name_that_is_none_is_refused_before_the_work(
    name: str, login: Any, tiny_folder: Any, tmp_path: Path, capsys: Any
) -> None:
    out = tmp_path / "out"
    words = ["prune", str(tiny_folder()), "--out", str(out), "--push-to-hub", name]
    said = refused(login, capsys, out, words)
    assert "no name on the hub: expected OWNER/NAME" in said
    assert "Type: --push-to-hub OWNER/NAME" in said


def no_login(hub: Any, patch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    patch.delenv("HF_TOKEN")
    patch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "none"))


def of_another(hub: Any, patch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    patch.setenv("HF_TOKEN", "hf_old")


def reads_only(hub: Any, patch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    hub.role = "read"


def no_answer(hub: Any, patch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    patch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")


@pytest.mark.parametrize(
    ("broken", "says"),
    [
        (no_login, "needs a login"),
        (of_another, "does not take the login"),
        (reads_only, "may read and not write"),
        (no_answer, "cannot be reached"),
        (lambda hub, patch, tmp_path: hub.offline(), "HF_HUB_OFFLINE is set"),
    ],
)
def test_what_keeps_it_from_the_hub_is_told_before_the_work(
    broken: Callable[..., None],
    says: str,
    login: Any,
    tiny_folder: Any,
    tmp_path: Path,
    capsys: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    broken(login, monkeypatch, tmp_path)
    out = tmp_path / "out"
    words = ["prune", str(tiny_folder()), *FLAGS, "--out", str(out), "--push-to-hub", NAME]
    said = refused(login, capsys, out, words)
    assert says in said
    assert "hf auth login" in said or f"hf upload {NAME} DIR" in said


def test_flags_that_ask_for_nothing_are_refused(
    login: Any, tiny_folder: Any, tmp_path: Path, capsys: Any
) -> None:
    out = tmp_path / "out"
    start = ["prune", str(tiny_folder()), *FLAGS, "--out", str(out)]
    assert "Add --push-to-hub" in refused(login, capsys, out, [*start, "--private"])
    dry = [*start, "--push-to-hub", NAME, "--dry-run"]
    assert "leave --dry-run away" in refused(login, capsys, out, dry)
    with pytest.raises(secateur.SecateurError, match="Add --out"):
        secateur.prune(tiny_model(), push_to_hub=NAME, **CUT)


@pytest.mark.parametrize("where", ["repos/create", "preupload", "lfs", "commit"])
def test_the_folder_is_whole_whatever_the_hub_says(
    where: str, login: Any, tiny_folder: Any, tmp_path: Path, capsys: Any
) -> None:
    login.refuses, out = where, tmp_path / "an out"
    words = ["prune", str(tiny_folder()), *FLAGS, "--out", str(out), "--push-to-hub", NAME]
    assert run([*words, "--private"]) == 2
    said = capsys.readouterr().err
    assert f"{out} is whole, but was not uploaded to {NAME}" in said
    assert "403" in said
    assert f"Type: hf upload {NAME} '{out}' --private" in said
    assert json.loads((out / "config.json").read_text())
    assert secateur.load(out)
    assert not files(login.made)
