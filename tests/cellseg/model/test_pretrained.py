"""Published weights, with torchvision's and timm's own networks and a server of the test's own."""

import hashlib
import http.server
import io
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import huggingface_hub
import pytest
import timm
import torch
import torchvision
from safetensors.torch import save as to_safetensors

from cellseg.config import BACKBONES, ModelConfig
from cellseg.errors import UserError
from cellseg.model import pretrained
from cellseg.model.backbones import build_body
from cellseg.model.pretrained import (
    Published,
    copy_to,
    damage,
    fetch,
    find_published,
    obtain,
    published_weights,
)


class Server:
    """Answers with what is put into ``answers``: path -> (status, headers, body)."""

    def __init__(self) -> None:
        self.answers: dict[str, tuple[int, dict[str, str], bytes]] = {}
        self.asked: Counter[str] = Counter()
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                outer.asked[self.path] += 1
                status, headers, body = outer.answers.get(self.path, (404, {}, b""))
                self.send_response(status)
                for name, value in ({"Content-Length": str(len(body))} | headers).items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_) -> None:
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def put(self, path: str, body: bytes, **headers: str) -> str:
        self.answers[path] = (200, headers, body)
        return self.url + path

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def server():
    server = Server()
    yield server
    server.close()


@pytest.fixture(autouse=True)
def caches(monkeypatch, tmp_path):
    """Empty caches; the folder of torch's is returned."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub-cache"))
    return tmp_path / "torch"


def digits(body: bytes) -> str:
    return hashlib.sha256(body).hexdigest()


def plain(server: Server, body: bytes, name: str | None = None) -> Published:
    """A file as torchvision publishes it."""
    name = name or f"net-{digits(body)[:8]}.pth"
    return Published("weights of net", name, (server.put(f"/{name}", body),))


def in_repository(server: Server, body: bytes, name="model.safetensors", sha256: str | None = None) -> Published:
    """A file as the hub gives it: by a redirect that states its hash."""
    server.put("/store", body)
    stated = {"Location": "/store", "X-Linked-Etag": f'"{sha256 or digits(body)}"'}
    server.answers[f"/me/net/resolve/main/{name}"] = (302, stated, b"")
    files = pretrained.HUB_FILES
    urls = tuple(f"{server.url}/me/net/resolve/main/{each}" for each in files)
    return Published("weights of net", "me--net", urls, "me/net", files)


def left_in(folder) -> list[str]:
    return sorted(path.name for path in folder.rglob("*") if path.is_file() and not path.name.endswith(".lock"))


def test_a_file_is_fetched_once_and_then_found(server, caches):
    file = plain(server, b"weights")
    assert find_published(file) is None
    path = obtain(file)
    assert path == caches / "hub" / "checkpoints" / file.name
    assert (path.read_bytes(), damage(path)) == (b"weights", None)
    assert obtain(file) == path
    assert sum(server.asked.values()) == 1


def test_progress_is_told_in_bytes(server, tmp_path):
    seen = []
    fetch(plain(server, bytes(3_000_000)), tmp_path, lambda done, total: seen.append((done, total)))
    assert seen[-1] == (3_000_000, 3_000_000) and len(seen) >= 3


def test_processes_that_want_the_same_file_wait_for_the_first(server, tmp_path):
    file = plain(server, bytes(5_000_000))
    with ThreadPoolExecutor(4) as pool:
        paths = list(pool.map(lambda _: fetch(file, tmp_path), range(4)))
    assert len(set(paths)) == 1
    assert sum(server.asked.values()) == 1


@pytest.mark.parametrize(
    ("status", "headers", "body", "message"),
    [
        (200, {}, b"other", "its SHA-256 should begin with .*, but is "),
        (200, {"Content-Length": "900"}, b"weights", "the transfer broke off after 7 of 900 bytes"),
        (404, {}, b"", "the server answers 404 Not Found"),
        (403, {}, b"no", "the server answers 403 Forbidden"),
    ],
)
def test_what_is_not_the_whole_file_is_not_kept(server, tmp_path, status, headers, body, message):
    file = plain(server, b"weights")
    server.answers[f"/{file.name}"] = (status, headers, body)
    with pytest.raises(OSError, match=message):
        fetch(file, tmp_path)
    assert left_in(tmp_path) == []


def test_a_damaged_file_is_fetched_again(server, caches):
    file = plain(server, b"weights")
    path = obtain(file)
    path.write_bytes(b"wei")
    assert damage(path) == f"its SHA-256 begins with {digits(b'wei')[:8]}"
    assert fetch(file, caches).read_bytes() == b"weights"


def test_the_hubs_file_is_named_by_its_hash_and_checked_by_what_the_hub_says(server, tmp_path):
    path = fetch(in_repository(server, b"tensors"), tmp_path)
    assert path.name == f"me--net-{digits(b'tensors')[:8]}.safetensors"
    with pytest.raises(OSError, match="its SHA-256 should be 0000"):
        fetch(in_repository(server, b"tensors", sha256="0" * 64), tmp_path / "other")
    assert left_in(tmp_path / "other") == []


def test_a_repository_may_have_the_older_form_only(server, tmp_path):
    path = fetch(in_repository(server, b"pickle", name="pytorch_model.bin"), tmp_path)
    assert path.suffix == ".bin"


def test_hugging_faces_own_switch_keeps_its_files_from_being_fetched(server, tmp_path, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(OSError, match="HF_HUB_OFFLINE is set"):
        fetch(in_repository(server, b"tensors"), tmp_path)
    assert not server.asked


def test_the_hubs_cache_is_read_and_checked(tmp_path, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    folder = tmp_path / "models--me--net"
    blob, link = folder / "blobs" / digits(b"tensors"), folder / "snapshots" / "abc" / "model.safetensors"
    for path, content in ((blob, b"tensors"), (folder / "refs" / "main", b"abc")):
        path.parent.mkdir(parents=True)
        path.write_bytes(content)
    link.parent.mkdir(parents=True)
    link.symlink_to(blob)
    file = Published("weights of net", "me--net", ("http://x/",), "me/net", pretrained.HUB_FILES)
    assert find_published(file) == link
    assert damage(link) is None
    copy = copy_to(file, link, tmp_path / "to")
    assert copy.name == f"me--net-{digits(b'tensors')[:8]}.safetensors"
    assert find_published(file, tmp_path / "to") == copy
    blob.write_bytes(b"tens")
    assert damage(link) is not None


def test_a_folder_that_is_named_comes_before_the_cache(server, tmp_path):
    file = plain(server, b"weights")
    cached = obtain(file)
    copy = copy_to(file, cached, tmp_path / "mine")
    assert find_published(file, tmp_path / "mine") == copy != cached
    assert find_published(file, tmp_path / "empty") == cached
    copy.write_bytes(b"spoilt")
    assert copy_to(file, cached, tmp_path / "mine").read_bytes() == b"weights"


def test_a_copy_of_a_damaged_file_is_refused(server, tmp_path):
    file = plain(server, b"weights")
    cached = obtain(file)
    cached.write_bytes(b"spoilt")
    with pytest.raises(OSError, match="its SHA-256 should begin with"):
        copy_to(file, cached, tmp_path / "mine")
    assert left_in(tmp_path / "mine") == []


@pytest.mark.parametrize("backbone", [*BACKBONES, "timm:regnety_004", "timm:resnet50.a1_in1k"])
def test_every_backbone_has_a_file_with_a_hash(backbone):
    file = published_weights("imagenet", backbone, "v1")
    assert file is not None and backbone in file.of
    assert file.repository or pretrained._digits(file.name)


def test_only_published_weights_have_a_file():
    assert published_weights("none", "resnet18", "v1") is None
    assert published_weights("my/weights.pt", "resnet18", "v1") is None
    names = [published_weights("coco", "resnet50", detector).name for detector in ("v1", "v2")]
    assert names == ["maskrcnn_resnet50_fpn_coco-bf2d0c1e.pth", "maskrcnn_resnet50_fpn_v2_coco-73cbd019.pth"]
    with pytest.raises(UserError, match="timm must have ImageNet weights of the backbone, but got none for darknet17"):
        published_weights("imagenet", "timm:darknet17", "v1")


def test_torchvisions_network_starts_from_the_file_that_was_fetched(server, monkeypatch):
    torch.manual_seed(3)
    state = torchvision.models.resnet18(weights=None).state_dict()
    buffer = io.BytesIO()
    torch.save(state, buffer)
    file = plain(server, buffer.getvalue())
    entry = SimpleNamespace(url=file.urls[0], meta={})
    monkeypatch.setattr(torchvision.models, "get_model_weights", lambda name: {"IMAGENET1K_V1": entry})
    body = build_body(ModelConfig(backbone="resnet18"), pretrained=True, norm="frozen").module.state_dict()
    assert len(body) > 50 and all(torch.equal(value, state[name]) for name, value in body.items())


def test_timms_network_starts_from_a_folder_without_a_network(server, monkeypatch, tmp_path):
    torch.manual_seed(3)
    state = timm.create_model("resnet10t").state_dict()
    answer = in_repository(server, to_safetensors(state))

    def address(repository, name, revision=None):
        assert repository == "timm/resnet10t.c3_in1k"
        return f"{server.url}/me/net/resolve/main/{name}"

    monkeypatch.setattr(huggingface_hub, "hf_hub_url", address)
    file = published_weights("imagenet", "resnet10t", "v1")
    assert file.urls == answer.urls
    fetch(file, tmp_path / "to")
    server.close()
    config = ModelConfig(backbone="resnet10t", weights_folder=str(tmp_path / "to"))
    body = build_body(config, pretrained=True, norm="frozen").module.state_dict()
    assert len(body) > 50 and all(torch.equal(value, state[name]) for name, value in body.items())


def test_code_in_a_file_of_weights_is_not_run(server, monkeypatch, caches, tmp_path):
    class Evil:
        def __reduce__(self):
            return (open, (str(tmp_path / "ran"), "w"))

    buffer = io.BytesIO()
    torch.save({"conv1.weight": Evil()}, buffer)
    entry = SimpleNamespace(url=plain(server, buffer.getvalue()).urls[0], meta={})
    monkeypatch.setattr(torchvision.models, "get_model_weights", lambda name: {"IMAGENET1K_V1": entry})
    with pytest.raises(UserError, match=r"the ImageNet weights of resnet18 must be a whole file, but got .*Delete it"):
        build_body(ModelConfig(backbone="resnet18"), pretrained=True, norm="frozen")
    assert not (tmp_path / "ran").exists()
