# SPDX-License-Identifier: Apache-2.0
"""Trained networks on the hub, against a stand-in on loopback: what is uploaded, and that a download is only data."""

import base64
import json
import shutil
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import torch
from conftest import BUNDLE, SMALL

from monai_llmboost.bundle import bundle_path, copy_bundle, run_bundle
from monai_llmboost.bundle.published import check_only_data, public_record
from monai_llmboost.bundle.trained import TrainedFolder
from monai_llmboost.inference import load_from_hub, load_network, push_to_hub
from monai_llmboost.llm import BlockGeometry, random_layer, write_block

pytestmark = [
    pytest.mark.filterwarnings("ignore::UserWarning:monai"),
    pytest.mark.filterwarnings("ignore:(parsing|executing).*config:UserWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning:monai"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:monai"),
]
COMMIT = "a" * 40
NETWORK = {**{key: value for key, value in SMALL.items() if key != "batch_size"}, "size": 8, "patch_size": 4}


class StandIn(BaseHTTPRequestHandler):
    """The hub, as far as `huggingface_hub` uploads a folder of small files, and downloads single ones."""

    protocol_version = "HTTP/1.1"

    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.server.asked.append(self.path)
        if self.path == "/api/repos/create":
            self.server.created = json.loads(body)
            self.reply({"url": f"{self.server.address}/lab/adrenal"})
        elif self.path.endswith("/preupload/main"):
            names = [file["path"] for file in json.loads(body)["files"]]
            self.reply({"files": [{"path": name, "uploadMode": "regular", "shouldIgnore": False} for name in names]})
        elif self.path.endswith("/commit/main"):
            lines = [json.loads(line) for line in body.splitlines()]
            files = [line["value"] for line in lines if line["key"] == "file"]
            self.server.files = {file["path"]: base64.b64decode(file["content"]) for file in files}
            self.reply({"commitUrl": f"{self.server.address}/lab/adrenal/commit/{COMMIT}", "commitOid": COMMIT})
        else:
            self.reply({})

    def do_GET(self):
        self.server.asked.append(self.path)
        name = self.path.partition("?")[0].partition(f"/resolve/{COMMIT}/")[2]
        name = name or self.path.partition("?")[0].partition("/resolve/main/")[2]
        if name in self.server.files:
            self.reply(self.server.files[name])
        elif name:
            self.reply(b"", 404, {"X-Error-Code": "EntryNotFound"})
        else:
            self.reply({"id": "lab/adrenal", "sha": COMMIT})

    do_HEAD = do_GET

    def reply(self, content, status=200, headers=None):
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Content-Type", "application/json")
        self.send_header("ETag", f'"{len(body)}"')
        self.send_header("X-Repo-Commit", COMMIT)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *args):
        pass


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """The stand-in, which `huggingface_hub` takes for the hub, with a cache of this test's own."""
    from huggingface_hub import close_session, constants

    server = ThreadingHTTPServer(("127.0.0.1", 0), StandIn)
    server.files, server.asked, server.created = {}, [], None
    server.address = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", server.address)
    template = server.address + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    close_session()
    yield server
    close_session()
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A bundle in which a network with a block file was trained, and the block file."""
    place = tmp_path_factory.mktemp("trained")
    block = place / "secret-place" / "block.safetensors"
    block.parent.mkdir()
    write_block(random_layer(BlockGeometry(width=8, mlp_width=16, num_heads=2, num_kv_heads=2, head_size=4), 1), block)
    copy_bundle(BUNDLE, place / "mine")
    with pytest.MonkeyPatch.context() as patch:
        cases = {"train": 24, "val": 12, "test": 12}
        patch.setattr("monai_llmboost.data.datasets.phantoms.PHANTOM_CASES", cases)
        options = {**NETWORK, "block": str(block), "network_def#dropout_rate": 0.1}
        run_bundle(str(place / "mine"), "train", "pretrained", False, epochs=1, batch_size=12, **options)
    return place / "mine", block


@pytest.fixture
def mine(trained, tmp_path):
    shutil.copytree(trained[0], tmp_path / "mine")
    return tmp_path / "mine"


def test_what_was_uploaded_is_loaded_again(hub, trained):
    folder, block = trained
    assert push_to_hub(folder, "lab/adrenal", token="hf_any").endswith(COMMIT)
    assert hub.created["visibility"] == "private"
    names = {"models/model.pt", "models/model.json", "configs/metadata.json", "LICENSE", "README.md"}
    assert set(hub.files) == names
    assert hub.files["models/model.pt"] == (folder / "models" / "model.pt").read_bytes()
    text = hub.files["models/model.json"].decode()
    assert "secret-place" not in text and "dataset_dir" not in text and '"block": "block.safetensors"' in text
    with pytest.raises(FileNotFoundError, match=r"no longer at block\.safetensors: give its new place with --block"):
        load_from_hub("lab/adrenal")
    theirs, own = load_from_hub("lab/adrenal", block=str(block)), load_network(folder)
    image = torch.rand(1, 1, 8, 8, 8)
    with torch.no_grad():
        assert torch.equal(theirs.network(image), own.network(image))
    assert theirs.class_names == ["shell", "ring"]


def change(folder, **keys):
    file = folder / "models" / "model.json"
    content = json.loads(file.read_text())
    for key, value in keys.items():
        content[key] = {**content[key], **value} if isinstance(value, dict) and key in content else value
    file.write_text(json.dumps(content))
    return TrainedFolder.read(file.parent)


@pytest.mark.parametrize(
    ("keys", "place"),
    [
        ({"size": "$__import__('os').system('true')"}, "size"),
        ({"network_def": {"_target_": "os.system"}}, "network_def#_target_"),
        ({"network_def": {"pool": {"_target_": "os.getcwd"}}}, "network_def#pool#_target_"),
        ({"network_def": {"pool": ["$print()"]}}, "network_def#pool#0"),
        ({"imports": ["$import antigravity"]}, "imports#0"),
        ({"network_def#_target_": "os.system"}, "network_def#_target_"),
        ({"+imports": []}, r"\+imports"),
        ({"class_names": "%other.json#run"}, "class_names"),
    ],
)
def test_a_record_from_others_brings_no_code(hub, mine, keys, place):
    bundle = bundle_path(BUNDLE)
    check_only_data(TrainedFolder.read(mine / "models"), bundle)
    with pytest.raises(ValueError, match=f"is not used, because {place} is code that the bundle .* does not have"):
        check_only_data(change(mine, **keys), bundle)
    hub.files = {f"models/{name}": (mine / "models" / name).read_bytes() for name in ("model.pt", "model.json")}
    with pytest.raises(ValueError, match="is code that the bundle"):
        load_from_hub("lab/adrenal")


def test_paths_and_folders_without_a_network_are_not_published(mine, tmp_path):
    record = change(mine, network_def={"weights": "$torch.load('/home/me/a.pt')"})
    with pytest.raises(ValueError, match=r"has a path of this machine in network_def#weights .*would be published"):
        public_record(record)
    (mine / "models" / "model.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"has no trained network with its model\.json"):
        push_to_hub(mine, "lab/adrenal")


def test_a_repository_without_a_record(hub):
    hub.files = {"models/model.pt": b""}
    with pytest.raises(FileNotFoundError, match=r"lab/adrenal has no trained network that push_to_hub"):
        load_from_hub("lab/adrenal")
