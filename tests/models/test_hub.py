"""The hub, through huggingface-hub's own code, against a small server on this machine that answers like it."""

import base64
import hashlib
import json
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import constants

import anchored
from anchored.cli.main import main
from anchored.errors import UserError
from anchored.models import folder as model
from anchored.models import hub
from anchored.models.folder import ModelConfig
from anchored.store.layout import Run

CONFIG = ModelConfig("small", "ram", 0.25, 1, 28, (0.3,), (0.35,), ("coat", "bag", "shoe"), "", references=1)


class Hub(BaseHTTPRequestHandler):
    """The few addresses that creating, uploading to and downloading from a repository use."""

    repositories: dict[str, dict[str, dict[str, bytes]]]  # name -> commit -> path -> content
    private: dict[str, bool]
    asked: list[str]

    def log_message(self, *_: Any) -> None:
        """Silence."""

    def _send(self, status: int, content: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def _json(self, value: Any, status: int = 200) -> None:
        self._send(status, json.dumps(value).encode(), Content_Type="application/json")

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"] or 0))
        words = self.path.partition("?")[0].strip("/").split("/")
        if self.path == "/api/repos/create":
            wanted = json.loads(body)
            name = f"{wanted.get('organization') or 'me'}/{wanted['name']}"
            self.repositories.setdefault(name, {})
            self.private[name] = wanted.get("private", wanted.get("visibility") != "public")
            return self._json({"url": f"http://{self.headers['Host']}/{name}"})
        if self.path == "/api/validate-yaml":  # of the card
            return self._json({"errors": [], "warnings": []})
        name = "/".join(words[2:4])
        if words[4] == "preupload":
            files = [
                {"path": each["path"], "uploadMode": "regular", "shouldIgnore": False}
                for each in json.loads(body)["files"]
            ]
            return self._json({"files": files})
        lines = [json.loads(line) for line in body.splitlines()]
        found = {
            each["value"]["path"]: base64.b64decode(each["value"]["content"]) for each in lines if each["key"] == "file"
        }
        commit = hashlib.sha1(body).hexdigest()
        self.repositories[name][commit] = found
        return self._json(
            {"commitUrl": f"http://{self.headers['Host']}/{name}/commit/{commit}", "commitOid": commit, "success": True}
        )

    def do_GET(self) -> None:
        self.asked.append(self.path)
        words = self.path.partition("?")[0].strip("/").split("/")
        api = words[0] == "api"
        name, rest = "/".join(words[2:4] if api else words[:2]), words[4:] if api else words[3:]
        commits = self.repositories.get(name)
        if not commits:
            return self._send(404, X_Error_Code="RepoNotFound", X_Error_Message="Repository not found")
        revision = rest[1] if api and rest else rest[0] if rest else "main"
        commit = list(commits)[-1] if revision == "main" else revision
        if commit not in commits:
            return self._send(404, X_Error_Code="RevisionNotFound", X_Error_Message="Revision not found")
        files = commits[commit]
        if rest[:1] == ["tree"]:
            oids = {path: hashlib.sha1(content).hexdigest() for path, content in files.items()}
            return self._json([{"type": "file", "path": p, "size": len(c), "oid": oids[p]} for p, c in files.items()])
        if api:
            siblings = [{"rfilename": path} for path in files]
            return self._json({"id": name, "sha": commit, "siblings": siblings, "private": False, "tags": []})
        content = files["/".join(rest[1:])]
        etag = hashlib.sha1(content).hexdigest()
        return self._send(200, content, ETag=f'"{etag}"', X_Repo_Commit=commit)

    do_HEAD = do_GET


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Hub]]:
    """A hub on this machine, and a cache of its own."""
    Hub.repositories, Hub.private, Hub.asked = {}, {}, []
    listening = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=listening.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{listening.server_address[1]}"
    places = {
        "ENDPOINT": address, "HF_HUB_CACHE": str(tmp_path / "cache"), "HF_HUB_OFFLINE": False,
        "HUGGINGFACE_CO_URL_TEMPLATE": address + "/{repo_id}/resolve/{revision}/{filename}",
    }  # fmt: skip
    assert all(hasattr(constants, name) for name in places)
    for module in [each for name, each in sys.modules.items() if name.startswith("huggingface_hub.")]:
        for name in places.keys() & vars(module).keys():  # before 1.0, modules had copies of what constants say
            monkeypatch.setattr(module, name, places[name])
    monkeypatch.setenv("HF_TOKEN", "hf_test")
    yield Hub
    listening.shutdown()
    listening.server_close()


@pytest.fixture
def run(tmp_path: Path) -> Run:
    made = Run(tmp_path / "runs" / "ram")
    network: Any = model.build_model(CONFIG, seed=1)
    network.set_references(torch.randn(1, 1, 28, 28, generator=torch.Generator().manual_seed(0)))
    model.save_model(made, network, CONFIG)
    (made.path / "rows.private.csv").write_text("not for others")
    return made


def test_pushed_and_pulled_it_answers_alike(run: Run, server: type[Hub], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", str(run.path), "hub:owner/ram"]) == 0
    (commit,) = server.repositories["owner/ram"]
    assert f"Written: hub:owner/ram@{commit}" in capsys.readouterr().out
    assert server.private["owner/ram"] is True
    assert sorted(server.repositories["owner/ram"][commit]) == ["README.md", "model.json", "weights.safetensors"]
    assert b'anchored.load("hub:owner/ram")' in server.repositories["owner/ram"][commit]["README.md"]
    images = torch.randn(3, 1, 28, 28)
    here = anchored.load(run.path)(images)
    assert torch.equal(anchored.load(f"hub:owner/ram@{commit}")(images), here)
    with pytest.warns(UserWarning, match=f"hub:owner/ram names no revision, .*: this is hub:owner/ram@{commit}$"):
        assert torch.equal(anchored.load("hub:owner/ram")(images), here)


def test_a_decision_goes_to_the_hub_and_back(run: Run, server: type[Hub]) -> None:
    images = torch.randint(256, (60, 1, 28, 28), dtype=torch.uint8)
    rule = anchored.calibrate(run.path, images, torch.arange(60) % 3)
    rule.save(run.decision_file)
    assert main(["export", str(run.path), "hub:owner/ram"]) == 0
    (commit,) = server.repositories["owner/ram"]
    there = anchored.load(f"hub:owner/ram@{commit}").decide(images)  # type: ignore[operator]
    assert there.names == anchored.load(run.path).decide(images).names  # type: ignore[operator]


def test_only_the_files_of_a_model_folder_are_downloaded(run: Run, server: type[Hub]) -> None:
    pinned = hub.upload_folder(run.path, "hub:owner/ram", public=True)
    assert server.private["owner/ram"] is False
    (files,) = server.repositories["owner/ram"].values()
    assert sorted(files) == ["model.json", "weights.safetensors"]
    files |= {"model.py": b"import os", "weights.bin": b"\x80\x04", "sub/model.json": b"{}"}
    folder = hub.download_folder(pinned)
    assert folder.name == pinned.rpartition("@")[2]
    assert sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()) == [
        "model.json",
        "weights.safetensors",
    ]
    assert not [path for path in server.asked if "model.py" in path or "weights.bin" in path]


def test_code_named_by_a_downloaded_model_is_not_imported(run: Run, server: type[Hub]) -> None:
    run.model_file.write_text(run.model_file.read_text().replace('"small"', '"python:antigravity:fly"'))
    pinned = hub.upload_folder(run.path, "hub:owner/ram")
    with pytest.raises(UserError, match="is code to be imported"):
        anchored.load(pinned)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("hub:owner", "is not a place on the hub: give hub:owner/name"),
        ("hub:owner/a b", "is not a place on the hub"),
        ("hub:../../etc", "is not a place on the hub"),
        ("hub:owner/nothing", "logged in"),
        ("hub:owner/ram@0000", "logged in"),
    ],
)
def test_what_is_not_there_is_one_line(run: Run, server: type[Hub], name: str, said: str) -> None:
    hub.upload_folder(run.path, "hub:owner/ram")
    with pytest.raises(UserError, match=said) as raised:
        anchored.load(name)
    assert "\n" not in str(raised.value)
