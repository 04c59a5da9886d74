# SPDX-License-Identifier: Apache-2.0
"""Fetching from a hub, against a stand-in on loopback that serves one repository."""

import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

COMMIT = "a" * 40


class StandIn(BaseHTTPRequestHandler):
    """Answers what `hf_hub_download` asks: HEAD for etag and commit, GET for the bytes, 401 for a gated repository."""

    def do_HEAD(self):
        self.answer(body=False)

    def do_GET(self):
        self.answer(body=True)

    def answer(self, body):
        owner, repo, _, _, name = self.path.strip("/").split("/", 4)
        self.server.asked.append((self.command, name))
        file = self.server.folder / name
        if owner == "gated":
            return self.fail(403, "GatedRepo")
        if (owner, repo) != ("lab", "tiny"):
            return self.fail(401, "RepoNotFound")
        if not file.is_file():
            return self.fail(404, "EntryNotFound")
        content = file.read_bytes()
        self.send_response(200)
        self.send_header("ETag", f'"{name}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if body:
            self.wfile.write(content)

    def fail(self, status, code):
        self.send_response(status)
        self.send_header("X-Error-Code", code)
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *args):
        pass


@pytest.fixture
def hub(llama_folder):
    server = ThreadingHTTPServer(("127.0.0.1", 0), StandIn)
    server.folder, server.asked = llama_folder, []
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def extract(hub_port, tmp_path, model, *options):
    """The command in a process of its own, because the hub's address is read from the environment once."""
    environment = {
        "HF_ENDPOINT": f"http://127.0.0.1:{hub_port}",
        "HF_HOME": str(tmp_path / "cache"),
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "PATH": "",
        "HOME": str(tmp_path),
    }
    command = [sys.executable, "-m", "monai_llmboost", "extract", model, "--out", str(tmp_path / "out.safetensors")]
    return subprocess.run([*command, *options], capture_output=True, text=True, env=environment, cwd=tmp_path)


def test_fetches_only_the_files_of_the_layer(hub, llama_folder, tmp_path):
    done = extract(hub.server_port, tmp_path, "lab/tiny", "--layer", "0")
    assert done.returncode == 0, done.stderr
    assert "layer 0 of 3 of lab/tiny" in done.stdout
    fetched = {name for command, name in hub.asked if command == "GET" and name.endswith(".safetensors")}
    assert 0 < len(fetched) < len(list(llama_folder.glob("*.safetensors")))
    from monai_llmboost.llm import read_header

    assert read_header(tmp_path / "out.safetensors")["revision"] == COMMIT


@pytest.mark.parametrize(
    ("model", "message"),
    [("gated/tiny", "is gated: accept its licence"), ("lab/nothing", "the hub has no model 'lab/nothing'")],
)
def test_what_the_hub_refuses(hub, tmp_path, model, message):
    done = extract(hub.server_port, tmp_path, model)
    assert done.returncode == 1
    assert message in done.stderr.strip().splitlines()[-1]


def test_no_network(tmp_path):
    done = extract(1, tmp_path, "lab/tiny")
    assert done.returncode == 1
    assert "the hub cannot be reached" in done.stderr.strip().splitlines()[-1]
    assert not (tmp_path / "out.safetensors").exists()
