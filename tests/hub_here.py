"""A stand-in for the hub: downloads and uploads in its language, on this machine."""

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import huggingface_hub
import pytest
from huggingface_hub import constants

SHA = "5" * 40
TOKEN = "hf_good"


class Hub(BaseHTTPRequestHandler):
    """What a download asks: which commit, which files, this file. What an upload asks: who am I,
    make a repository, how and where shall files go, take this commit.
    """

    protocol_version = "HTTP/1.1"
    repositories: dict[str, Path]
    private: set[str]
    asked: list[str]
    stored: dict[str, bytes]  # large files by SHA-256
    made: Path  # where repositories are made
    role: str  # of the login: what it may do
    refuses: str  # a part of the addresses at which it says no

    def log_message(self, *args: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def _answer(self, *, body: bool) -> None:
        path = unquote(urlsplit(self.path).path).strip("/")
        if path == "api/whoami-v2":
            known = self.headers["Authorization"] == f"Bearer {TOKEN}"
            login = {"name": "me", "auth": {"accessToken": {"role": self.role}}}
            return self._json(login, body) if known else self._send(b"", body, 401, {})
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
                about = {"id": name, "sha": SHA, "siblings": [], "private": name in self.private}
                return self._json(about, body)
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

    def do_POST(self) -> None:
        path = unquote(urlsplit(self.path).path).strip("/")
        content = self.rfile.read(int(self.headers["Content-Length"]))
        if self.headers["Authorization"] != f"Bearer {TOKEN}" or self.refuses in path:
            return self._send(b"{}", True, 403, {"Content-Type": "application/json"})
        if path.endswith("/commit/main"):
            name = path.removeprefix("api/models/").removesuffix("/commit/main")
            self._commit(self.repositories[name], [json.loads(x) for x in content.splitlines()])
            address = self._here(f"{name}/commit/{SHA}")
            return self._json({"commitUrl": address, "commitOid": SHA}, True)
        given = json.loads(content)
        if path == "api/repos/create":
            return self._create(given)
        if path == "api/validate-yaml":
            return self._json({"errors": [], "warnings": []}, True)
        if path.endswith("/preupload/main"):
            modes = [
                ("lfs" if f["path"].endswith(".safetensors") else "regular") for f in given["files"]
            ]
            files = [
                {"path": f["path"], "uploadMode": mode, "shouldIgnore": False}
                for f, mode in zip(given["files"], modes, strict=True)
            ]
            return self._json({"files": files}, True)
        assert path.endswith(".git/info/lfs/objects/batch"), path
        objects = [
            {**one, "actions": {"upload": {"href": self._here(f"large/{one['oid']}")}}}
            for one in given["objects"]
        ]
        return self._json({"transfer": "basic", "objects": objects}, True)

    def do_PUT(self) -> None:
        content = self.rfile.read(int(self.headers["Content-Length"]))
        sha = hashlib.sha256(content).hexdigest()
        assert self.path == f"/large/{sha}"
        self.stored[sha] = content
        self._send(b"", True, 200, {})

    def _create(self, given: dict[str, Any]) -> None:
        name = f"{given['organization']}/{given['name']}"
        there = name in self.repositories
        if not there:
            self.repositories[name] = self.made / name
            self.repositories[name].mkdir(parents=True)
            if given.get("visibility") == "private":
                self.private.add(name)
        answer = json.dumps({"url": self._here(name)}).encode()
        self._send(answer, True, 409 if there else 200, {"Content-Type": "application/json"})

    def _commit(self, folder: Path, lines: list[dict[str, Any]]) -> None:
        for line in lines:
            value = line["value"]
            if line["key"] == "deletedFile":
                (folder / value["path"]).unlink()
            elif line["key"] != "header":
                file = folder / value["path"]
                file.parent.mkdir(parents=True, exist_ok=True)
                large = line["key"] == "lfsFile"
                data = self.stored[value["oid"]] if large else base64.b64decode(value["content"])
                file.write_bytes(data)

    def _here(self, path: str) -> str:
        return f"http://{self.headers['Host']}/{path}"

    def _json(self, value: Any, body: bool) -> None:
        self._send(json.dumps(value).encode(), body, 200, {"Content-Type": "application/json"})

    def _send(self, data: bytes, body: bool, status: int, headers: dict[str, str]) -> None:
        self.send_response(status)
        for key, value in {**headers, "Content-Length": str(len(data))}.items():
            self.send_header(key, value)
        self.end_headers()
        if body:
            self.wfile.write(data)


@contextmanager
def hub_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A hub on this machine with a cache of its own; `offline()` takes it away."""
    fresh: dict[str, Any] = {
        "repositories": {},
        "private": set(),
        "asked": [],
        "stored": {},
        "made": tmp_path / "made",
        "role": "write",
        "refuses": "\0",
    }
    handler: Any = type("Here", (Hub,), fresh)
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
    try:
        yield handler
    finally:
        _close(server, thread)


def _close(server: ThreadingHTTPServer, thread: threading.Thread) -> None:
    huggingface_hub.close_session()
    server.shutdown()
    server.server_close()
    thread.join()
