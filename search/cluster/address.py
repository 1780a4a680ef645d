"""The address of a Ray cluster: its form, whether a Ray answers there, and whether that Ray asks for a token.

Ray itself tries a wrong address or token for 20 s or more, and names neither as the cause.
"""

import re
import socket

import grpc
from ray._private import services

from cellseg.errors import Problem, UserError, first_line
from search.cluster.token import read_token

ANSWER_SECONDS = 10
PORT_OF_RAY = 6379
_WHO_ARE_YOU = "/ray.rpc.NodeInfoGcsService/GetClusterId"
_FORM = re.compile(r"(?:\[(?P<bracketed>[^\[\]]+)\]|(?P<plain>[^\s:/\[\]]+)):(?P<port>\d{1,5})")


def find_cluster(address: str) -> str:
    """Return the address of the cluster's head as ``HOST:PORT``, IPv6 hosts in brackets.

    Args:
        address: as given on the command line: such an address, or ``auto`` for the cluster that this machine is part of
            (or the one that ``RAY_ADDRESS`` names).

    Raises:
        UserError: another form, or no cluster to be found.
    """
    if "://" in address:
        raise UserError(
            Problem(
                "--address",
                "must be HOST:PORT or auto",
                f"'{address}'",
                "Ray Client and the Jobs API cannot run a search: run the command on a machine of the cluster with "
                "--address auto, or send it there with `python -m search.commands.submit`.",
            )
        )
    if address == "auto":
        try:
            found = services.canonicalize_bootstrap_address("auto")
        except (OSError, RuntimeError, ValueError) as error:
            raise no_cluster(address, first_line(error)) from error
        if found is None:
            raise no_cluster(address, "no Ray that runs on this machine")
        address = found
    split_address(address)
    return address


def split_address(address: str) -> tuple[str, int]:
    """Split ``HOST:PORT`` or ``[IPv6]:PORT`` into host, without brackets, and port.

    Raises:
        UserError: another form.
    """
    match = _FORM.fullmatch(address)
    if match is None or not 0 < int(match["port"]) < 65536:
        raise UserError(
            Problem(
                "--address",
                "must be HOST:PORT, [IPv6]:PORT or auto",
                f"'{address}'",
                f"A head that `ray start --head` started listens on port {PORT_OF_RAY}.",
            )
        )
    return match["bracketed"] or match["plain"], int(match["port"])


def asks_for_token(address: str) -> bool:
    """Return whether the Ray at ``address`` takes only those who know its token. This machine's token is sent to a Ray
    that asks for one, and never to another.

    Raises:
        UserError: no Ray answers, or it does not take this machine's token.
    """
    try:
        socket.create_connection(split_address(address), timeout=ANSWER_SECONDS).close()
    except OSError as error:
        raise no_cluster(address, first_line(error)) from error
    if _knows(address, None):
        return False
    token, law = read_token(), f"the Ray cluster at '{address}' asks for its token"
    if token is None:
        raise wrong_token(law, "no token on this machine")
    if not _knows(address, token):
        raise wrong_token(law, "another token")
    return True


def no_cluster(address: str, evidence: str) -> UserError:
    """Make the error of an address at which no Ray can be used."""
    return UserError(
        Problem(
            "--address",
            f"a Ray cluster must answer at '{address}'",
            f"'{evidence}'",
            "Start one with `ray start --head`, and check host, port and firewall.",
        )
    )


def _knows(address: str, token: str | None) -> bool:
    """Whether the Ray at ``address`` answers to those who show this token; False if it asks for (another) one."""
    metadata = [] if token is None else [("authorization", f"Bearer {token}")]
    # The call of every Ray client that comes first. Its answer, the cluster's id, is not read.
    with grpc.insecure_channel(address, options=[("grpc.enable_http_proxy", 0)]) as channel:
        ask = channel.unary_unary(_WHO_ARE_YOU, request_serializer=bytes, response_deserializer=bytes)
        try:
            ask(b"", timeout=ANSWER_SECONDS, metadata=metadata)
        except grpc.RpcError as error:
            if error.code() is grpc.StatusCode.UNAUTHENTICATED:
                return False
            raise no_cluster(address, f"something that is not a Ray: {error.code().name.lower()}") from error
    return True


def wrong_token(law: str, evidence: str) -> UserError:
    """Make the error of a cluster, or its dashboard, that does not take what this machine shows."""
    return UserError(
        Problem(
            "--address",
            law,
            evidence,
            "Copy ~/.ray/auth_token of the cluster's head to the same path here, readable by you alone, or set "
            "RAY_AUTH_TOKEN_PATH.",
        )
    )
