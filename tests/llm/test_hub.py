# SPDX-License-Identifier: Apache-2.0
"""Reading from a hub, against a stand-in on loopback: requests, bytes sent, and the handling of every response."""

import io
import json
import socket
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save_file

from monai_llmboost.llm import read_layers
from monai_llmboost.llm.donor import hub
from monai_llmboost.llm.donor.hub import HubRepository, LocalFolder

COMMIT, LATER = "a" * 40, "b" * 40
WEIGHTS = "model.safetensors"


class StandIn(BaseHTTPRequestHandler):
    """The hub, as far as `huggingface_hub` and range requests need it, or (``storage``) what it redirects to.

    What it does wrong is taken from the server's ``answers``: one entry for each GET of a weight file, in their order.
    """

    protocol_version = "HTTP/1.1"

    def do_HEAD(self):
        self.answer()

    def do_GET(self):
        self.answer()

    def answer(self):
        if self.server.lists and self.path.startswith("/api/models/lab/tiny/revision/"):
            names = [path.relative_to(self.server.folder) for path in self.server.folder.rglob("*") if path.is_file()]
            listing = {"id": "lab/tiny", "siblings": [{"rfilename": str(name)} for name in names]}
            return self.send(200, {"Content-Type": "application/json"}, json.dumps(listing).encode())
        owner, repo, _, revision, name = self.path.partition("?")[0].strip("/").split("/", 4)
        asked = SimpleNamespace(method=self.command, name=name, revision=revision, headers={})
        asked.headers = {key.lower(): value for key, value in self.headers.items()}
        self.server.asked.append(asked)
        weights = self.command == "GET" and name.endswith(".safetensors")
        wrong = self.server.answers.pop(0) if weights and self.server.answers else {}
        if owner == "gated":
            return self.send(403, {"X-Error-Code": "GatedRepo"})
        if (owner, repo) != ("lab", "tiny"):
            return self.send(401, {"X-Error-Code": "RepoNotFound"})
        if revision not in ("main", COMMIT, LATER):
            return self.send(404, {"X-Error-Code": "RevisionNotFound"})
        if self.headers.get("Authorization") == "Bearer hf_old":
            return self.send(401, {"X-Error-Message": "Invalid credentials in Authorization header"})
        commit = self.server.commit if revision == "main" else revision
        file = self.server.folder / name
        if not file.is_file():
            return self.send(404, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": commit})
        if "status" in wrong:
            return self.send(wrong["status"], wrong.get("headers", {}))
        content = file.read_bytes()
        headers = {} if self.server.storage else {"X-Repo-Commit": wrong.get("commit", commit)}
        if self.server.redirect_to and name.endswith((".safetensors", ".bin")):
            linked = {"X-Linked-ETag": f'"{wrong.get("etag", "content")}"', "X-Linked-Size": str(len(content))}
            return self.send(302, {**headers, **linked, "Location": f"{self.server.redirect_to}{self.path}?signed=yes"})
        headers["ETag"] = f'"{wrong.get("etag", name)}"'
        if self.server.storage:
            headers["ETag"] = f'"{len(self.server.asked)}"'  # storage may name its copies as it likes
        return self.send_part(content, headers, wrong)

    def send_part(self, content, headers, wrong):
        status, span = 200, self.headers.get("Range")
        if span and not wrong.get("ignores"):
            first, last = (int(word) for word in span.removeprefix("bytes=").split("-"))
            if first >= len(content):
                return self.send(416, {"Content-Range": f"bytes */{len(content)}"})
            last = min(last, len(content) - 1) + wrong.get("late", 0)
            first += wrong.get("late", 0)
            status = 206
            headers["Content-Range"] = f"bytes {first}-{last}/{len(content) + wrong.get('grown', 0)}"
            content = content[first : last + 1]
        headers |= wrong.get("headers", {})
        return self.send(status, headers, content, wrong.get("breaks", len(content)))

    def send(self, status, headers, body=b"", breaks=None):
        try:
            self.send_response(status)
            for key, value in ({"Content-Length": str(len(body))} | headers).items():
                self.send_header(key, value)
            self.end_headers()
            if self.command == "GET":
                # Counted first: the other side may have read all and looked before this thread goes on.
                self.server.sent += len(body[:breaks]) if status == 206 else 0
                self.wfile.write(body[:breaks])
            if "Endless" in headers:
                while True:
                    self.wfile.write(bytes(2**16))
                    self.server.endless += 2**16
            if breaks is not None and breaks < len(body):
                self.wfile.flush()
                self.close_connection = True
                self.connection.shutdown(socket.SHUT_RDWR)
        except OSError:  # the other side has hung up
            self.close_connection = True

    def log_message(self, *args):
        pass


def serve(folder, **traits):
    server = ThreadingHTTPServer(("127.0.0.1", 0), StandIn)
    server.folder, server.commit, server.asked, server.answers = folder, COMMIT, [], []
    server.redirect_to, server.storage, server.sent, server.endless = "", False, 0, 0
    server.lists = False  # as a mirror without this service
    vars(server).update(traits)
    server.address = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    return server


def stop(server):
    server.shutdown()
    server.server_close()


@pytest.fixture
def tensors():
    return {name: torch.randn(64, 128, generator=torch.Generator().manual_seed(ord(name))) for name in "abcde"}


@pytest.fixture
def folder(tensors, tmp_path):
    """A model of five tensors of 32 KiB, as safetensors and as pickle."""
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"model_type": "llama"}))
    (folder / "README.md").write_text("---\nlicense: apache-2.0\n---\n# Tiny\n")
    save_file(tensors, folder / WEIGHTS)
    torch.save(tensors, folder / "pytorch_model.bin")
    return folder


@pytest.fixture
def use(monkeypatch, tmp_path):
    """Point `huggingface_hub`, which reads the environment once, to an address, with a cache of this test's own."""
    from huggingface_hub import close_session, constants

    cache, waits = tmp_path / "cache", []
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setattr("time.sleep", waits.append)

    def use(address):
        close_session()
        monkeypatch.setattr(constants, "ENDPOINT", address)
        monkeypatch.setattr(
            constants, "HUGGINGFACE_CO_URL_TEMPLATE", address + "/{repo_id}/resolve/{revision}/{filename}"
        )
        return waits

    yield use
    close_session()


@pytest.fixture
def server(folder, use):
    server = serve(folder)
    server.waits = use(server.address)
    yield server
    stop(server)


def offline(monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)


def header_bytes(folder):
    return 8 + int.from_bytes((folder / WEIGHTS).read_bytes()[:8], "little")


def ranges(server):
    return [one.headers["range"] for one in server.asked if one.method == "GET" and one.name == WEIGHTS]


# What is downloaded


def test_only_the_bytes_of_the_tensors_are_sent(server, folder, tensors):
    repository = HubRepository("lab/tiny")
    assert (repository.donor, repository.revision) == ("lab/tiny", COMMIT)
    assert repository.has(WEIGHTS)
    assert repository.list_tensors(WEIGHTS) == list("abcde")
    header = header_bytes(folder)
    assert server.sent == header
    found = repository.read_tensors(WEIGHTS, ["b", "c", "e"])
    assert list(found) == ["b", "c", "e"]
    assert all(torch.equal(found[name], tensors[name]) for name in found)
    assert server.sent == header + 3 * 2**15, "and the header once"
    one, b, d, e = 2**15, header + 2**15, header + 3 * 2**15, header + 4 * 2**15
    wanted = [(0, 7), (8, header - 1), (b, d - 1), (e, e + one - 1)]
    assert ranges(server) == [f"bytes={first}-{last}" for first, last in wanted]
    assert {one.headers["accept-encoding"] for one in server.asked if "range" in one.headers} == {"identity"}
    assert not server.waits


def test_all_files_are_of_one_commit(server):
    repository = HubRepository("lab/tiny")
    server.commit = LATER  # the branch moves on
    repository.find_licence(), repository.read_json("model.safetensors.index.json"), repository.has("pytorch_model.bin")
    assert repository.read_tensors(WEIGHTS, ["a"])
    assert [one.revision for one in server.asked if one.revision != COMMIT] == ["main"] * 2, "HEAD and GET of config"
    assert HubRepository("lab/tiny").revision == LATER
    assert HubRepository("lab/tiny", COMMIT).revision == COMMIT


def test_a_cached_file_is_read_from_the_cache(server, tensors, monkeypatch):
    from huggingface_hub import hf_hub_download

    hf_hub_download("lab/tiny", WEIGHTS)
    hf_hub_download("lab/tiny", "config.json")
    before = len(server.asked)
    offline(monkeypatch)
    repository = HubRepository("lab/tiny")
    assert repository.read_json("model.safetensors.index.json") is None, "with the weights there, that is all there is"
    assert repository.has(WEIGHTS)
    assert not repository.has("pytorch_model.bin")
    assert repository.find_licence() == ""
    assert torch.equal(repository.read_tensors(WEIGHTS, ["d"])["d"], tensors["d"])
    assert repository.list_tensors(WEIGHTS) == list("abcde")
    assert len(server.asked) == before


def test_pickles_are_downloaded_whole(server, tensors):
    repository = HubRepository("lab/tiny")
    assert repository.has("pytorch_model.bin")
    assert set(repository.list_tensors("pytorch_model.bin")) == set("abcde")
    assert torch.equal(repository.read_tensors("pytorch_model.bin", ["b"])["b"], tensors["b"])
    assert sum(one.method == "GET" and one.name == "pytorch_model.bin" for one in server.asked) == 1


def test_missing_files(server, folder):
    (folder / "README.md").unlink()
    repository = HubRepository("lab/tiny")
    assert repository.read_json("nothing.json") is None
    assert repository.read_json("nothing.json") is None
    assert sum(one.name == "nothing.json" for one in server.asked) == 1, "the cache remembers that"
    assert repository.find_licence() == ""
    assert not repository.has("model-1.safetensors")
    assert not repository.has("pytorch_model-1.bin")
    for name in ("model-1.safetensors", "pytorch_model-1.bin"):
        with pytest.raises(FileNotFoundError, match=rf"lab/tiny lacks the weight file {name}"):
            repository.read_tensors(name, ["a"])
    with pytest.raises(ValueError, match=rf"{WEIGHTS} lacks the tensors \['z'\]: index and weights"):
        repository.read_tensors(WEIGHTS, ["z"])


def test_a_repository_without_configuration(server, folder):
    (folder / "config.json").unlink()
    repository = HubRepository("lab/tiny")
    assert repository.revision == COMMIT
    assert repository.read_json("config.json") is None


# Redirects and tokens


def test_a_redirect_drops_the_token(server, folder, tensors, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    storage = serve(folder, storage=True)
    server.redirect_to = storage.address
    repository = HubRepository("lab/tiny")
    assert torch.equal(repository.read_tensors(WEIGHTS, ["b"])["b"], tensors["b"])
    assert torch.equal(repository.read_tensors("pytorch_model.bin", ["b"])["b"], tensors["b"])
    stop(storage)
    assert {one.headers.get("authorization") for one in server.asked} == {"Bearer hf_secret"}
    assert not any("authorization" in one.headers for one in storage.asked)
    assert not any("secret" in str(one.headers) for one in storage.asked)
    assert ranges(storage) == ranges(server)
    assert server.sent == 0
    assert storage.sent == header_bytes(folder) + 2**15


def test_the_etag_before_a_redirect_counts(server, folder):
    storage = serve(folder, storage=True)
    server.redirect_to = storage.address
    server.answers = [{}, {}, {"etag": "other"}]
    with pytest.raises(ConnectionError, match=rf"{WEIGHTS} of lab/tiny changed while it was read: try again"):
        HubRepository("lab/tiny").read_tensors(WEIGHTS, ["a"])
    stop(storage)


# Servers and networks that fail


@pytest.mark.parametrize("breaks", [[1000, 0, 0, 20_000, 5000, 0, 0], [2**15 - 1], [0, 0, 0, 0, 0]])
def test_a_broken_download_is_resumed_at_the_next_byte(server, folder, tensors, breaks):
    server.answers = [{}, {}, *({"breaks": number} for number in breaks)]
    assert torch.equal(HubRepository("lab/tiny").read_tensors(WEIGHTS, ["b"])["b"], tensors["b"])
    begin = header_bytes(folder) + 2**15
    reached = [begin + sum(breaks[:number]) for number in range(len(breaks) + 1)]
    assert ranges(server)[2:] == [f"bytes={first}-{begin + 2**15 - 1}" for first in reached]
    assert server.sent == header_bytes(folder) + 2**15, "no byte twice"
    assert len(server.waits) == len(breaks)


def test_a_connection_that_breaks_for_good(server, folder):
    server.answers = [{}, {}, {"breaks": 10}, *[{"breaks": 0}] * 20]
    at = header_bytes(folder) + 10
    message = rf"connection to the hub for {WEIGHTS} of lab/tiny broke 6 times at byte {at} \(.+\): check the network"
    with pytest.raises(ConnectionError, match=message):
        HubRepository("lab/tiny").read_tensors(WEIGHTS, ["a"])
    assert server.waits == [1, 2, 4, 8, 8]


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_busy_server_is_retried(server, tensors, status):
    busy = {"status": status}
    later = {"status": status, "headers": {"Retry-After": "7"}}
    server.answers = [busy, {}, busy, {}, {"breaks": 100}, busy, later]
    assert torch.equal(HubRepository("lab/tiny").read_tensors(WEIGHTS, ["a"])["a"], tensors["a"])
    assert len(server.waits) == 5
    assert max(server.waits) >= 7


def test_a_server_that_stays_busy(server):
    server.answers = [{"status": 503}] * 50
    message = rf"cannot reach the hub for {WEIGHTS} of lab/tiny \(status 503\): check the network"
    with pytest.raises(ConnectionError, match=message):
        HubRepository("lab/tiny").read_tensors(WEIGHTS, ["a"])
    assert len(server.answers) == 44


def test_a_server_that_ignores_ranges_is_refused(server):
    """Its body, announced with 13 GB, is not read but for what is under way already."""
    whole = {"ignores": True, "headers": {"Content-Length": str(13 * 10**9), "Endless": "yes"}}
    server.answers = [{}, {}, whole]
    message = rf"127\.0\.0\.1 did not send bytes \d+ to \d+ of {WEIGHTS} as requested \(status 200\): run `hf down"
    with pytest.raises(ConnectionError, match=message):
        HubRepository("lab/tiny").read_tensors(WEIGHTS, ["a"])
    assert server.endless < 50 * 2**20
    assert len(ranges(server)) == 3


@pytest.mark.parametrize(
    "answer",
    [
        {"late": 1},
        {"headers": {"Content-Range": "bytes */*"}},
        {"headers": {"Content-Encoding": "gzip"}},
        {"status": 204},
        {"headers": {"Content-Length": str(2**20), "Endless": "yes"}},
    ],
)
@pytest.mark.parametrize("good", [0, 2])
def test_a_response_with_other_bytes_is_refused(server, answer, good):
    server.answers = [*[{}] * good, answer]
    with pytest.raises(ConnectionError, match=r"did not send bytes .* as requested"):
        HubRepository("lab/tiny").read_tensors(WEIGHTS, ["a"])
    assert not server.waits


@pytest.mark.parametrize("answer", [{"etag": "other"}, {"commit": LATER}, {"grown": 8}])
def test_a_file_that_changes_is_refused(server, answer):
    server.answers = [{}, {}, answer]
    with pytest.raises(ConnectionError, match=rf"{WEIGHTS} of lab/tiny changed while it was read: try again"):
        HubRepository("lab/tiny").read_tensors(WEIGHTS, ["a"])


@pytest.mark.parametrize("length", [0, 5, 50])
def test_a_truncated_file_on_the_hub_is_refused(server, folder, length):
    (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:length])
    with pytest.raises(ValueError, match=rf"cannot read {WEIGHTS}: it is truncated.* Download it again"):
        HubRepository("lab/tiny").read_tensors(WEIGHTS, ["a"])


# Errors of the hub, and no hub


@pytest.mark.parametrize(
    ("model", "revision", "message"),
    [
        ("gated/tiny", None, "gated/tiny is gated: accept its licence on its hub page, then run `hf auth login`"),
        ("lab/nothing", None, "no model 'lab/nothing' on the hub that you have access to: check the spelling"),
        ("lab/tiny", "v9", "lab/tiny has no revision 'v9': give a branch, tag or commit of it"),
    ],
)
def test_models_that_the_hub_refuses(server, model, revision, message):
    with pytest.raises(ConnectionError, match=message):
        HubRepository(model, revision)


def test_the_weights_alone_may_be_gated(server):
    gated = {"status": 401, "headers": {"X-Error-Code": "GatedRepo"}}
    server.answers = [gated]
    repository = HubRepository("lab/tiny")
    with pytest.raises(ConnectionError, match="lab/tiny is gated: accept its licence"):
        repository.has(WEIGHTS)
    server.answers = [{}, {}, gated]
    with pytest.raises(ConnectionError, match="lab/tiny is gated: accept its licence"):
        repository.read_tensors(WEIGHTS, ["a"])


def test_a_token_that_has_expired(server, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_old")
    with pytest.raises(
        ConnectionError, match=r"the hub refuses .* \(status 401 Invalid credentials.* renew your token"
    ):
        HubRepository("lab/tiny")


def test_an_unreachable_hub(server, folder, use):
    repository = HubRepository("lab/tiny")
    repository.read_json("model.safetensors.index.json")
    use("http://127.0.0.1:1")
    message = (
        r"cannot get tokenizer\.json of lab/tiny: the hub cannot be reached \(.*refused.*\) and the file is not in the"
    )
    with pytest.raises(ConnectionError, match=message):
        repository.read_json("tokenizer.json")
    server.waits.clear()
    assert repository.find_licence() == "", "unknown"
    assert repository.read_json("config.json") == {"model_type": "llama"}
    assert repository.read_json("model.safetensors.index.json") is None, "the cache knows"
    for method in (repository.has, repository.list_tensors):
        with pytest.raises(ConnectionError, match=rf"cannot get {WEIGHTS} of lab/tiny: the hub cannot be reached"):
            method(WEIGHTS)
    assert not server.waits, "it was not asked again and again"
    assert HubRepository("lab/tiny").revision == COMMIT, "from the cache"
    with pytest.raises(ConnectionError, match=r"cannot get config\.json of lab/other: the hub cannot be reached"):
        HubRepository("lab/other")


def test_the_hub_becomes_unreachable_before_the_weights_are_read(server, use):
    repository = HubRepository("lab/tiny")
    use("http://127.0.0.1:1")
    with pytest.raises(
        ConnectionError, match=rf"connection to the hub for {WEIGHTS} of lab/tiny broke 6 times at byte 0"
    ):
        repository.read_tensors(WEIGHTS, ["a"])


def test_offline_mode(server, monkeypatch):
    HubRepository("lab/tiny").read_json("model.safetensors.index.json")
    before = len(server.asked)
    offline(monkeypatch)
    repository = HubRepository("lab/tiny")
    assert repository.read_json("model.safetensors.index.json") is None
    for method in (repository.has, repository.list_tensors, repository.read_json):
        for name in (WEIGHTS, "pytorch_model.bin"):
            with pytest.raises(
                ConnectionError, match=rf"cannot get {name} of lab/tiny: HF_HUB_OFFLINE is set and the file is no"
            ):
                method(name)
    with pytest.raises(ConnectionError, match=r"cannot get config\.json of lab/other: HF_HUB_OFFLINE is set"):
        HubRepository("lab/other")
    assert len(server.asked) == before


def test_a_full_disk_is_not_reported_as_a_network_error(server, monkeypatch):
    import huggingface_hub

    def full(*args, **options):
        raise OSError(28, "No space left on device")

    repository = HubRepository("lab/tiny")
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", full)
    with pytest.raises(OSError, match="No space left on device"):
        repository.read_tensors("pytorch_model.bin", ["a"])


# The same of both


def test_both_have_the_same_methods(server, folder, tensors):
    local, far = LocalFolder(folder), HubRepository("lab/tiny")
    public = {name for name in dir(far) if not name.startswith("_")}
    assert public == {name for name in dir(local) if not name.startswith("_")} - {"path"}
    assert (local.donor, local.revision) == ("model", "")
    assert local.read_json("config.json") == far.read_json("config.json") == {"model_type": "llama"}
    assert local.read_json("nothing.json") is None
    assert local.find_licence() == far.find_licence() == "apache-2.0"
    assert local.has(WEIGHTS)
    assert not local.has("nothing.bin")
    for name in (WEIGHTS, "pytorch_model.bin"):
        assert local.list_tensors(name) == far.list_tensors(name)
        assert torch.equal(local.read_tensors(name, ["c"])["c"], tensors["c"])
        with pytest.raises(ValueError, match=rf"{name} lacks the tensors \['z'\]"):
            local.read_tensors(name, ["z"])
    with pytest.raises(FileNotFoundError, match=r"lacks the weight file x\.bin: download it too"):
        local.list_tensors("x.bin")


@pytest.mark.parametrize("name", ["../secret", "a/b", "..", "", "a\\b", "/etc/passwd", "c:x", "a\0b"])
def test_file_names_with_paths_are_refused(server, folder, name):
    for files in (LocalFolder(folder), HubRepository("lab/tiny")):
        for method in (
            files.read_json,
            files.has,
            files.list_tensors,
            lambda name, files=files: files.read_tensors(name, ["a"]),
        ):
            with pytest.raises(ValueError, match=r"(model|lab/tiny) names a file .*: do not trust"):
                method(name)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{", r"x\.json is not JSON"),
        (b"\xff", r"x\.json is not JSON"),
        (b"[" * 100_000, r"x\.json is not JSON"),
        (b"[]", r"x\.json holds a list, not a JSON object"),
    ],
)
def test_invalid_json_is_refused(server, folder, content, message):
    (folder / "x.json").write_bytes(content)
    for files in (LocalFolder(folder), HubRepository("lab/tiny")):
        with pytest.raises(ValueError, match=message):
            files.read_json("x.json")


@pytest.mark.parametrize(
    ("card", "licence"),
    [
        ("---\nlicense: llama3.1\nlicense_name: x\n---\n", "llama3.1"),
        ("---\nlicense: other\nlicense_name: deepseek\n---\n", "other (deepseek)"),
        ("---\nlicense: other\n---\n", "other"),
        ("---\nlicense:\n- mit\n- apache-2.0\n---\n", "mit, apache-2.0"),
        ("---\nlicense: no\n---\n", ""),
        ("---\ntags: []\n---\n", ""),
        ("---\n---\n", ""),
        ("# A model\n", ""),
        ("---\n- license\n---\n", ""),
        ("---\nlicense: [mit\n---\n", ""),
        ("---\nlicense: !!python/object/apply:os.system [exit]\n---\n", ""),
        (b"\xff\xfe---", ""),
        (None, ""),
    ],
)
def test_the_licence_of_a_model(folder, card, licence):
    (folder / "README.md").unlink()
    if card is not None:
        (folder / "README.md").write_bytes(card if isinstance(card, bytes) else card.encode())
    assert LocalFolder(folder).find_licence() == licence


@pytest.mark.parametrize(
    ("terminal", "large", "shown"), [(True, True, True), (True, False, False), (False, True, False)]
)
def test_a_progress_bar_for_what_is_large(server, monkeypatch, terminal, large, shown):
    written = io.StringIO()
    written.isatty = lambda: terminal
    monkeypatch.setattr(hub, "BAR_BYTES", 0 if large else 2**20)
    repository = HubRepository("lab/tiny")
    repository.has(WEIGHTS)
    monkeypatch.setattr(sys, "stderr", written)
    repository.read_tensors(WEIGHTS, ["a", "c"])
    assert (f"{WEIGHTS}: 100%" in written.getvalue()) == shown
    assert ("65.5k/65.5k" in written.getvalue()) == shown


# A hub that lists the files of a model


@pytest.fixture
def listed(server):
    server.lists = True
    return server


def test_names_of_files(listed, folder):
    (folder / "original").mkdir()
    (folder / "original" / "consolidated.00.pth").write_bytes(b"")
    assert HubRepository("lab/tiny").list_files() == sorted(path.name for path in folder.iterdir() if path.is_file())
    listed.lists = False
    assert HubRepository("lab/tiny").list_files() is None


def test_names_in_the_cache(listed, monkeypatch):
    from huggingface_hub import hf_hub_download

    hf_hub_download("lab/tiny", WEIGHTS)
    HubRepository("lab/tiny")
    offline(monkeypatch)
    assert HubRepository("lab/tiny").list_files() == ["config.json", WEIGHTS]


def hub_model(folder, seed, **options):
    from conftest import llama_config
    from transformers import LlamaConfig, LlamaForCausalLM

    from monai_llmboost.llm import BlockGeometry

    geometry = BlockGeometry(width=32, mlp_width=64, num_heads=4, num_kv_heads=2, head_size=8, norm_eps=1e-5)
    torch.manual_seed(seed)
    model = LlamaForCausalLM(LlamaConfig(**llama_config(geometry, pad_token_id=0)))
    model.save_pretrained(folder, **options)
    return model


@pytest.mark.parametrize("lists", [True, False])
def test_safetensors_and_pickles_of_one_repository(server, folder, lists):
    """The usual hub has both: the pickles would come whole, so they are neither read nor compared."""
    server.lists = lists
    model = hub_model(folder, 1)
    torch.save({name: tensor + 1 for name, tensor in model.state_dict().items()}, folder / "pytorch_model.bin")
    found = read_layers("lab/tiny").layers[0].tensors["query.weight"]
    assert torch.equal(found, model.model.layers[2].self_attn.q_proj.weight)
    assert not any(one.name == "pytorch_model.bin" and one.method == "GET" for one in server.asked)


def test_two_sets_of_safetensors_of_one_repository(listed, folder):
    (folder / WEIGHTS).unlink()
    hub_model(folder, 0, max_shard_size="9KB")
    index = (folder / "model.safetensors.index.json").read_text()
    parts = {path.name: path.read_bytes() for path in folder.glob("model-*")}
    model = hub_model(folder, 1)
    (folder / "model.safetensors.index.json").write_text(index)
    assert torch.equal(
        read_layers("lab/tiny").layers[0].tensors["query.weight"], model.model.layers[2].self_attn.q_proj.weight
    ), "an index that names no file there"
    for name, content in parts.items():
        (folder / name).write_bytes(content)
    with pytest.raises(ValueError, match=r"lab/tiny holds two sets of weights that differ, model\.safetensors\.index"):
        read_layers("lab/tiny")


def gguf_repository(folder, *names):
    from gguf_models import write_gguf

    for path in list(folder.iterdir()):
        path.unlink()
    model = hub_model(folder.parent / "made", 1)
    for name in names:
        write_gguf(model, folder / name, "Q8_0")
    return model


def test_a_gguf_file_on_the_hub(listed, folder, tmp_path):
    gguf_repository(folder, "tiny-Q8_0.gguf", "mmproj-tiny.gguf")
    donor = read_layers("lab/tiny", 0)
    assert (donor.donor, donor.revision, donor.quantised) == ("lab/tiny", COMMIT, "Q8_0")
    assert donor.fingerprint == read_layers(folder / "tiny-Q8_0.gguf", 0).fingerprint


@pytest.mark.parametrize("lists", [True, False])
def test_one_of_several_gguf_files_on_the_hub(server, folder, lists):
    server.lists = lists
    gguf_repository(folder, "tiny-Q8_0.gguf", "tiny-F16.gguf")
    donor = read_layers("lab/tiny/tiny-F16.gguf")
    assert donor.donor == "lab/tiny/tiny-F16.gguf"
    if lists:
        with pytest.raises(ValueError, match=r"lab/tiny has several GGUF files: .* as lab/tiny/tiny-F16\.gguf"):
            read_layers("lab/tiny")


def test_only_the_layer_of_a_gguf_file_is_downloaded(listed, folder):
    from gguf_models import write_gguf
    from transformers import LlamaConfig, LlamaForCausalLM

    gguf_repository(folder)
    sizes = {"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 12, "vocab_size": 32}
    model = LlamaForCausalLM(LlamaConfig(**sizes, num_attention_heads=4, pad_token_id=0))
    write_gguf(model, folder / "x.gguf", "F16")
    donor = read_layers("lab/tiny", 5)
    layer = 2 * donor.num_weights
    assert layer < listed.sent < layer + 2**18
    assert listed.sent < (folder / "x.gguf").stat().st_size / 4


def test_a_gguf_file_in_the_cache(listed, folder, monkeypatch):
    from huggingface_hub import hf_hub_download

    gguf_repository(folder, "x.gguf")
    hf_hub_download("lab/tiny", "x.gguf")
    offline(monkeypatch)
    assert read_layers("lab/tiny").donor == "lab/tiny"


def test_mistral_format_on_the_hub(listed, folder):
    from test_weight_sets import GEOMETRY, native

    from monai_llmboost.llm import random_layer

    for path in list(folder.iterdir()):
        path.unlink()
    native(folder, [random_layer(GEOMETRY, seed).layers[0].tensors for seed in (1, 2)])
    donor = read_layers("lab/tiny")
    assert (donor.donor, donor.revision) == ("lab/tiny", COMMIT)
    assert donor.fingerprint == random_layer(GEOMETRY, 2).fingerprint


def test_a_repository_without_supported_weights(listed, folder):
    for path in list(folder.iterdir()):
        path.unlink()
    (folder / "config.json").write_text(json.dumps({"model_type": "llama"}))
    (folder / "model.onnx").write_bytes(b"onnx")
    with pytest.raises(
        FileNotFoundError, match=r"lab/tiny has no .*, but an ONNX model \(model\.onnx\), which is not supported"
    ):
        read_layers("lab/tiny")


def test_the_licence_file_of_a_repository(listed, folder):
    (folder / "README.md").write_text("# Tiny\n")
    (folder / "LICENSE").write_text(
        "LLAMA 3.1 COMMUNITY LICENSE AGREEMENT\nLlama 3.1 Version Release Date: July 23, 2024"
    )
    assert HubRepository("lab/tiny").find_licence() == "llama3.1"


# The command `extract`, in a process of its own: the environment as a user sets it


@pytest.fixture
def llama_hub(llama_folder):
    server = serve(llama_folder)
    yield server
    stop(server)


def extract(hub_port, tmp_path, model, *options, **environment):
    """The command, without the waits between one try and the next."""
    environment = {
        "HF_ENDPOINT": f"http://127.0.0.1:{hub_port}",
        "HF_HOME": str(tmp_path / "cache"),
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "NO_PROXY": "127.0.0.1",
        "PATH": "",
        "HOME": str(tmp_path),
        **environment,
    }
    code = "import time; time.sleep = lambda seconds: None; from monai_llmboost.__main__ import main; main()"
    command = [sys.executable, "-c", code, "extract", model, "--out", str(tmp_path / "out.safetensors")]
    return subprocess.run([*command, *options], capture_output=True, text=True, env=environment, cwd=tmp_path)


def test_the_command_downloads_only_the_layer(llama_hub, llama_folder, tmp_path):
    done = extract(llama_hub.server_port, tmp_path, "lab/tiny", "--layer", "0", HF_TOKEN="hf_secret")
    assert done.returncode == 0, done.stderr
    assert "layer 0 of 3 of lab/tiny" in done.stdout
    assert "Traceback" not in done.stderr
    from monai_llmboost.llm import read_header

    assert read_header(tmp_path / "out.safetensors")["revision"] == COMMIT
    fetched = {one.name for one in llama_hub.asked if one.method == "GET" and one.name.endswith(".safetensors")}
    assert 0 < len(fetched) < len(list(llama_folder.glob("*.safetensors")))
    assert {one.headers.get("authorization") for one in llama_hub.asked} == {"Bearer hf_secret"}


@pytest.mark.parametrize(
    ("model", "message"),
    [("gated/tiny", "is gated: accept its licence"), ("lab/nothing", "no model 'lab/nothing' on the hub")],
)
def test_the_command_reports_what_the_hub_refuses(llama_hub, tmp_path, model, message):
    done = extract(llama_hub.server_port, tmp_path, model)
    assert done.returncode == 1
    assert message in done.stderr.strip().splitlines()[-1]


def test_the_command_without_network(tmp_path):
    done = extract(1, tmp_path, "lab/tiny")
    assert done.returncode == 1
    assert "the hub cannot be reached" in done.stderr.strip().splitlines()[-1]
    assert not (tmp_path / "out.safetensors").exists()
