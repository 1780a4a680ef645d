"""Addresses, tokens, and what a local Ray lets others reach."""

import json
import os
import re
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import grpc
import pytest

import search.cluster.connect
from cellseg.errors import UserError
from search.cluster.address import asks_for_token, find_cluster, split_address
from search.cluster.connect import ray_cluster
from search.cluster.token import make_token, read_token, token_file

TOKEN = "the right one"


@pytest.fixture(autouse=True)
def _home(tmp_path, monkeypatch):
    """A home without a token, and none in the environment."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "RAY_ADDRESS"):
        monkeypatch.delenv(name, raising=False)


class Head(grpc.GenericRpcHandler):
    """Answers the first call of a Ray client as the head of a cluster does, and remembers the tokens it was shown."""

    def __init__(self, token: str | None):
        self.token, self.shown = token, []

    def service(self, call):
        shown = dict(call.invocation_metadata).get("authorization")
        self.shown.append(shown)

        def answer(request, context):
            if self.token is not None and shown != f"Bearer {self.token}":
                context.abort(grpc.StatusCode.UNAUTHENTICATED, "InvalidAuthToken")
            return b""

        return grpc.unary_unary_rpc_method_handler(answer)


@contextmanager
def listening(token: str | None, host: str = "127.0.0.1") -> Iterator[tuple[str, Head]]:
    server, head = grpc.server(ThreadPoolExecutor(1)), Head(token)
    server.add_generic_rpc_handlers([head])
    port = server.add_insecure_port(f"{host}:0")
    server.start()
    try:
        yield f"{host}:{port}", head
    finally:
        server.stop(None).wait()


@pytest.mark.parametrize(
    ("address", "parts"),
    [
        ("head:6379", ("head", 6379)),
        ("10.0.0.1:1", ("10.0.0.1", 1)),
        ("[::1]:6379", ("::1", 6379)),
        ("[fe80::1%eth0]:65535", ("fe80::1%eth0", 65535)),
    ],
)
def test_addresses_are_split_into_host_and_port(address, parts):
    assert split_address(address) == parts


@pytest.mark.parametrize("address", ["head", "head:", ":6379", "::1:6379", "head:0", "head:65536", "head:1/x", "a b:1"])
def test_other_forms_of_an_address_are_refused(address):
    with pytest.raises(UserError, match=r"--address: must be HOST:PORT, \[IPv6\]:PORT or auto, but got '") as caught:
        find_cluster(address)
    assert len(caught.value.problems) == 1


@pytest.mark.parametrize("address", ["ray://head:10001", "http://head:8265"])
def test_ray_client_is_refused_with_what_to_do_instead(address):
    with pytest.raises(UserError, match=f"got '{address}'. Ray Client .* --address auto.*search.commands.submit`"):
        find_cluster(address)


def test_an_open_cluster_is_never_shown_a_token():
    make_token()
    with listening(None) as (address, head):
        assert not asks_for_token(address)
    assert head.shown == [None]


@pytest.mark.skipif(not socket.has_dualstack_ipv6(), reason="no IPv6 here")
def test_a_cluster_is_found_at_its_ipv6_address():
    with listening(None, "[::1]") as (address, _):
        assert not asks_for_token(find_cluster(address))


def test_a_cluster_that_asks_for_a_token_gets_this_machines(monkeypatch):
    monkeypatch.setenv("RAY_AUTH_TOKEN", TOKEN)
    with listening(TOKEN) as (address, head):
        assert asks_for_token(address)
    assert head.shown == [None, f"Bearer {TOKEN}"]


@pytest.mark.parametrize(("mine", "got"), [(None, "no token on this machine"), ("wrong", "another token")])
def test_a_token_that_is_missing_or_wrong_is_said_at_once(monkeypatch, mine, got):
    if mine is not None:
        monkeypatch.setenv("RAY_AUTH_TOKEN", mine)
    with (
        listening(TOKEN) as (address, _),
        pytest.raises(UserError, match=rf"asks for its token, but got {got}\. Copy ~/\.ray/auth_token"),
    ):
        asks_for_token(address)


def test_a_port_on_which_something_else_listens_is_named():
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.listen()
        address = f"127.0.0.1:{server.getsockname()[1]}"
    with pytest.raises(UserError, match=f"must answer at '{address}', but got '.*refused'"):
        asks_for_token(address)


def test_a_token_is_private_from_the_start_and_stays():
    make_token()
    assert stat.S_IMODE(token_file().stat().st_mode) == 0o600
    token = read_token()
    assert token is not None and re.fullmatch("[0-9a-f]{64}", token)
    make_token()
    assert read_token() == token
    assert [path.name for path in token_file().parent.iterdir()] == ["auth_token"]


def test_a_token_that_others_could_read_becomes_private():
    token_file().parent.mkdir(parents=True)
    token_file().write_text(TOKEN)
    token_file().chmod(0o644)
    make_token()
    assert stat.S_IMODE(token_file().stat().st_mode) == 0o600
    assert read_token() == TOKEN


def test_an_empty_token_file_is_filled():
    token_file().parent.mkdir(parents=True)
    token_file().touch(0o644)
    make_token()
    assert read_token()
    assert stat.S_IMODE(token_file().stat().st_mode) == 0o600


def test_without_a_home_the_token_is_in_the_environment(tmp_path, monkeypatch):
    (tmp_path / "home").write_text("not a folder")
    monkeypatch.setenv("RAY_AUTH_TOKEN", "")
    make_token()
    assert len(os.environ["RAY_AUTH_TOKEN"]) == 64


@pytest.mark.parametrize("error", [Exception("The node timed out.\nSee logs."), RuntimeError("a"), ValueError("b")])
def test_a_local_ray_that_does_not_start_is_one_line(monkeypatch, error):
    def init(**_):
        raise error

    monkeypatch.setattr(search.cluster.connect.ray, "init", init)
    monkeypatch.setattr(search.cluster.connect.ray, "shutdown", lambda: None)
    text = " ".join(str(error).split())
    with (
        pytest.raises(UserError, match=f"Ray: must start on this machine, but got '{text}'") as caught,
        ray_cluster(None),
    ):
        pass
    assert "\n" not in str(caught.value)


def test_every_failure_to_join_is_one_line(monkeypatch):
    def init(**_):
        raise RuntimeError("Version mismatch: The cluster was started with:\n    Ray: 2.52.0\n    Python: 3.12.1")

    monkeypatch.setattr(search.cluster.connect.ray, "init", init)
    monkeypatch.setattr(search.cluster.connect.ray, "shutdown", lambda: None)
    with (
        listening(None) as (address, _),
        pytest.raises(UserError, match=r"started with: Ray: 2\.52\.0 Python: 3\.12\.1'") as caught,
        ray_cluster(address),
    ):
        pass
    assert "\n" not in str(caught.value)


SOCKETS = """
import json, os, sys
from pathlib import Path
import ray
from search.cluster.connect import ray_cluster

def kin():
    parents = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parents[int(folder.name)] = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
        except OSError:
            pass
    found = {os.getpid()}
    while more := {pid for pid, parent in parents.items() if parent in found} - found:
        found |= more
    return found

def inodes(pids):
    for pid in pids:
        try:
            for link in (Path("/proc") / str(pid) / "fd").iterdir():
                target = os.readlink(link)
                if target.startswith("socket:["):
                    yield target[8:-1]
        except OSError:
            pass

with ray_cluster(None) as dashboard:
    @ray.remote
    def mode():
        return os.environ["RAY_AUTH_MODE"], os.environ["RAY_USAGE_STATS_ENABLED"]
    told = ray.get(mode.remote())
    own, hosts = set(inodes(kin())), []
    for name in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{name}").read_text().splitlines()[1:]:
            words = line.split()
            if words[3] == "0A" and words[9] in own:
                hosts.append(words[1].split(":")[0])
    print(json.dumps([told, hosts, dashboard]))
"""
LOOPBACK = {"0100007F", "0000000000000000FFFF00000100007F", "00000000000000000000000001000000"}
"""127.0.0.1 and its two forms of IPv6, as the kernel writes them."""


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.skipif(not Path("/proc/net/tcp").exists(), reason="reads Linux's list of sockets")
def test_a_local_ray_listens_on_this_machine_only_and_asks_for_a_token():
    done = subprocess.run([sys.executable, "-c", SOCKETS], capture_output=True, text=True, timeout=250)
    assert done.returncode == 0, done.stderr
    told, hosts, dashboard = json.loads(done.stdout.splitlines()[-1])
    assert told == ["token", "0"]
    assert len(hosts) >= 8, "the parts of a Ray"
    assert set(hosts) <= LOOPBACK
    assert dashboard.startswith("127.0.0.1:")
    assert stat.S_IMODE(token_file().stat().st_mode) == 0o600
