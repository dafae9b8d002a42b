"""An upload, to a stand-in for the hub's endpoints on this machine."""

import base64
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import huggingface_hub.constants
import pytest
from huggingface_hub import HfApi

from safetydpo.errors import SafetyDPOError
from safetydpo.export.push import push, refuse_push

TOKEN = "hf_of-a-test"


class Hub(BaseHTTPRequestHandler):
    """Repositories, regular files in a commit, large ones by LFS: what `upload_folder` asks for."""

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        hub = self.server
        hub.asked.append((self.path, self.headers["Authorization"]))
        if hub.status != 200:
            return self._answer({"error": "no"}, hub.status)
        if self.path == "/api/repos/create":
            hub.made = json.loads(body)
            return self._answer({"url": f"{hub.url}/me/mine"})
        if self.path.endswith("/preupload/main"):
            files = [
                {"path": f["path"], "uploadMode": "lfs" if f["path"].endswith(".safetensors") else "regular"}
                for f in json.loads(body)["files"]
            ]
            return self._answer({"files": [f | {"shouldIgnore": False, "oid": None} for f in files]})
        if self.path.endswith("/info/lfs/objects/batch"):
            objects = [
                o | {"actions": {"upload": {"href": f"{hub.url}/lfs/{o['oid']}"}}} for o in json.loads(body)["objects"]
            ]
            return self._answer({"transfer": "basic", "objects": objects}, kind="application/vnd.git-lfs+json")
        if "/commit/main" in self.path:
            for line in map(json.loads, body.splitlines()):
                value = line["value"]
                if line["key"] == "file":
                    hub.files[value["path"]] = base64.b64decode(value["content"])
                elif line["key"] == "lfsFile":
                    hub.files[value["path"]] = hub.large[value["oid"]]
            return self._answer({"commitUrl": f"{hub.url}/me/mine/commit/1", "commitOid": "1" * 40, "success": True})
        return self._answer({"errors": [], "warnings": []})  # /api/validate-yaml

    def do_PUT(self):
        self.server.large[self.path.rpartition("/")[2]] = self.rfile.read(int(self.headers["Content-Length"]))
        self._answer({})

    def do_GET(self):
        self._answer({"error": "none"}, 404)

    def _answer(self, values, status=200, kind="application/json"):
        data = json.dumps(values).encode()
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *args):
        pass


@pytest.fixture
def hub(monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", True)
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.url = f"http://127.0.0.1:{server.server_port}"
    server.asked, server.files, server.large, server.made, server.status = [], {}, {}, {}, 200
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()


def folder_of(tmp_path):
    (tmp_path / "unet").mkdir()
    files = {"README.md": b"---\nlicense: mit\n---\n", "unet/model.safetensors": b"weights", "export.json": b"{}"}
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    (tmp_path / ".snakemake_timestamp").touch()
    return files


def test_the_whole_folder_is_uploaded_to_a_private_repository(hub, tmp_path):
    files = folder_of(tmp_path)
    said = push(tmp_path, "me/mine", HfApi(endpoint=hub.url, token=TOKEN))
    assert hub.files == files
    assert (hub.made["name"], hub.made["organization"], hub.made["visibility"]) == ("mine", "me", "private")
    assert {token for _, token in hub.asked if token} == {f"Bearer {TOKEN}"}
    assert said == f"{hub.url}/me/mine"


def test_what_the_hub_refuses_is_one_sentence_without_the_token(hub, tmp_path):
    folder_of(tmp_path)
    hub.status = 403
    with pytest.raises(SafetyDPOError, match=r"was not uploaded to me/mine \(.*403.*hf upload me/mine") as error:
        push(tmp_path, "me/mine", HfApi(endpoint=hub.url, token=TOKEN))
    assert TOKEN not in str(error.value)
    assert "\n" not in str(error.value)


def test_without_a_token_or_a_name_nothing_is_begun(monkeypatch):
    monkeypatch.setattr("safetydpo.export.push.get_token", lambda: None)
    with pytest.raises(SafetyDPOError, match="--push needs a token of the hub: set HF_TOKEN"):
        refuse_push("me/mine")
    with pytest.raises(SafetyDPOError, match="--push a/b/c is no name of a repository"):
        refuse_push("a/b/c")
