"""The dashboard of a cluster, whose HTTP port serves the Jobs API: where it is, and whether it asks for a token."""

import json
import socket
import urllib.error
import urllib.request
from contextlib import suppress
from dataclasses import dataclass, field
from http.client import HTTPException
from ipaddress import ip_address
from urllib.parse import urlsplit

from ray._private import ray_constants
from ray._raylet import GcsClient  # type: ignore[attr-defined]

from cellseg.errors import Problem, UserError, first_line
from search.cluster.address import ANSWER_SECONDS, asks_for_token, find_cluster, split_address, wrong_token
from search.cluster.token import read_token, use_token
from search.views.addresses import tunnel

PORT_OF_DASHBOARD = 8265
TOKEN_WANTED = b"authentication token"
"""Words of a dashboard that asks for a token, missing or invalid. Another server is not shown one."""


@dataclass(frozen=True, slots=True)
class Dashboard:
    """A dashboard that answers."""

    url: str
    """Such as ``http://127.0.0.1:8265``."""
    headers: dict[str, str] = field(default_factory=dict, repr=False)
    """What every request must carry: the token, if it asks for one."""


def find_dashboard(address: str) -> Dashboard:
    """Find the dashboard of a cluster. This machine's token is sent to one that asks for a token, and to no other.

    Args:
        address: as given on the command line: the dashboard's own (``http://HOST:8265``), that of the cluster's head
            (``HOST:6379``), or ``auto`` for the cluster that this machine is part of.

    Raises:
        UserError: another form, nothing that answers, or a token that does not fit.
    """
    scheme, separator, _ = address.partition("://")
    if not separator:
        address = _url_of(address)
    elif scheme not in ("http", "https"):
        raise _wrong_form(address)
    url = address.rstrip("/")
    if _lets_in(url, {}):
        return Dashboard(url)
    token = read_token()
    if token is None:
        raise wrong_token(f"the dashboard at {url} asks for its cluster's token", "no token on this machine")
    headers = {"Authorization": f"Bearer {token}"}
    if not _lets_in(url, headers):
        raise wrong_token(f"the dashboard at {url} asks for its cluster's token", "another token")
    return Dashboard(url, headers)


def no_dashboard(url: str, evidence: str) -> UserError:
    """Make the error of an address at which no dashboard can be used."""
    return UserError(
        Problem(
            "--address",
            f"the dashboard of a Ray cluster must answer at {url}",
            evidence,
            "Check host and port. A dashboard needs ray[default] on the head, and listens on the head's 127.0.0.1 "
            f"unless it is told otherwise: run this command there, or forward its port with `{_tunnel('HEAD')}` and "
            f"give --address http://127.0.0.1:{PORT_OF_DASHBOARD}.",
        )
    )


def _url_of(address: str) -> str:
    """The URL of the dashboard of the cluster at ``HOST:PORT`` or ``auto``, as its head tells."""
    if address != "auto":
        try:
            split_address(address)
        except UserError:
            raise _wrong_form(address) from None
        with suppress(UserError):  # a dashboard without its scheme
            _lets_in(f"http://{address}", {})
            return f"http://{address}"
    head = find_cluster(address)
    if asks_for_token(head):
        use_token()
    try:
        # Ray's own way to ask waits a minute for a dashboard that is not there.
        told = GcsClient(address=head).internal_kv_get(
            ray_constants.DASHBOARD_ADDRESS.encode(), ray_constants.KV_NAMESPACE_DASHBOARD, timeout=ANSWER_SECONDS
        )
    except Exception as error:  # Ray raises whatever it likes
        raise no_dashboard(f"the head {head}", f"'{first_line(error)}'") from error
    if not told:
        raise UserError(
            Problem(
                "--address",
                f"the cluster at '{head}' must have a dashboard, whose port serves the Jobs API",
                "none",
                "Install ray[default] on its head, and start that with `ray start --head --include-dashboard=true`.",
            )
        )
    url = f"http://{told.decode()}"
    host, own = urlsplit(url).hostname or "", split_address(head)[0]
    if _is_loopback(host) and not _is_here(own):  # what listens at that address here is another one
        raise UserError(
            Problem(
                "--address",
                "the cluster's dashboard must be reachable from this machine",
                f"one that listens on {url} of the head only",
                f"Run this command on the head, or forward the port with `{_tunnel(own)}` and give "
                f"--address http://127.0.0.1:{PORT_OF_DASHBOARD}.",
            )
        )
    return url


def _wrong_form(address: str) -> UserError:
    return UserError(
        Problem(
            "--address",
            "must be http://HOST:PORT of the dashboard, HOST:PORT of the head, or auto",
            f"'{address}'",
            f"A dashboard listens on port {PORT_OF_DASHBOARD} of the head.",
        )
    )


def _tunnel(head: str) -> str:
    return tunnel(PORT_OF_DASHBOARD, head)


def _lets_in(url: str, headers: dict[str, str]) -> bool:
    """Ask for the version of the Jobs API; False if a dashboard asks for a token, or for another one.

    Raises:
        UserError: no answer, or that of something else.
    """
    try:
        request = urllib.request.Request(f"{url}/api/version", headers=headers)
        with urllib.request.urlopen(request, timeout=ANSWER_SECONDS) as answer:
            if "ray_version" in json.load(answer):
                return True
        raise no_dashboard(url, "something else")
    except urllib.error.HTTPError as error:
        if error.code in (401, 403) and TOKEN_WANTED in error.read(1000):
            return False
        raise no_dashboard(url, f"something else (status {error.code})") from error
    except urllib.error.URLError as error:
        reason = error.reason
        text = first_line(reason) if isinstance(reason, BaseException) else str(reason)
        raise no_dashboard(url, f"'{text}'") from error
    except UserError:
        raise
    except (OSError, ValueError) as error:  # it broke off, speaks another language, or is no URL
        raise no_dashboard(url, f"'{first_line(error)}'") from error
    except HTTPException as error:
        raise no_dashboard(url, f"something that does not speak HTTP ('{first_line(error)}')") from error


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _is_here(host: str) -> bool:
    """Whether a name or address is one of this machine's: only those can be listened on."""
    try:
        family, kind, _, _, place = socket.getaddrinfo(host, 0, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind) as listener:
            listener.bind(place)
    except OSError:
        return False
    return True
