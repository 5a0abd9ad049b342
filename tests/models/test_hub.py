"""Names of the hub: what is fetched, against a stand-in that speaks its language."""

import hashlib
import json
import shutil
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import huggingface_hub
import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import load_file

import secateur
from conftest import bound, write_shards
from secateur.errors import SecateurError
from secateur.models import open_config, open_model

SHA = "5" * 40


class Hub(BaseHTTPRequestHandler):
    """The three questions that a download asks: which commit, which files, this file."""

    repositories: dict[str, Path]
    asked: list[str]

    def log_message(self, *args: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def _answer(self, *, body: bool) -> None:
        path = unquote(urlsplit(self.path).path).strip("/")
        for name, folder in self.repositories.items():
            if path.startswith(f"{name}/resolve/"):
                file = folder / path.split("/", name.count("/") + 3)[-1]
                if not file.is_file():
                    return self._send(b"", body, 404, {"X-Error-Code": "EntryNotFound"})
                if body:
                    self.asked.append(file.relative_to(folder).as_posix())
                data = file.read_bytes()
                etag = f'"{hashlib.sha1(data).hexdigest()}"'
                return self._send(data, body, 200, {"ETag": etag, "X-Repo-Commit": SHA})
            if path == f"api/models/{name}" or path.startswith(f"api/models/{name}/revision/"):
                return self._json({"id": name, "sha": SHA, "siblings": []}, body)
            if path.startswith(f"api/models/{name}/tree/"):
                files = (p for p in sorted(folder.rglob("*")) if p.is_file())
                tree = [
                    {
                        "type": "file",
                        "oid": "0" * 40,
                        "size": p.stat().st_size,
                        "path": p.relative_to(folder).as_posix(),
                    }
                    for p in files
                ]
                return self._json(tree, body)
        return self._send(b"", body, 404, {"X-Error-Code": "RepoNotFound"})

    def _json(self, value: Any, body: bool) -> None:
        self._send(json.dumps(value).encode(), body, 200, {"Content-Type": "application/json"})

    def _send(self, data: bytes, body: bool, status: int, headers: dict[str, str]) -> None:
        self.send_response(status)
        for key, value in {**headers, "Content-Length": str(len(data))}.items():
            self.send_header(key, value)
        self.end_headers()
        if body:
            self.wfile.write(data)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A hub on this machine with a cache of its own; `offline()` takes it away."""
    handler = type("Here", (Hub,), {"repositories": {}, "asked": []})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    address = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr(constants, "ENDPOINT", address)
    template = address + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(huggingface_hub.hf_api.api, "endpoint", address)
    huggingface_hub.close_session()

    def offline() -> None:
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
        huggingface_hub.close_session()

    handler.offline = staticmethod(offline)
    yield handler
    huggingface_hub.close_session()
    server.shutdown()
    server.server_close()
    thread.join()


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
