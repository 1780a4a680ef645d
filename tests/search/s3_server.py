"""A real server of the S3 protocol, in this process, for tests of object stores."""

import logging
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

BUCKET = "cells"
KEYS = {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_DEFAULT_REGION": "us-east-1"}


@contextmanager
def s3_server() -> Iterator[str]:
    """Yield the address of a server that knows one bucket, while it runs."""
    moto_server = pytest.importorskip("moto.server", reason="the test extra brings it")
    pytest.importorskip("s3fs", reason="the s3 extra brings it")
    import boto3

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = moto_server.ThreadedMotoServer(port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    address = f"http://{host}:{port}"
    client = boto3.client(
        "s3",
        endpoint_url=address,
        region_name=KEYS["AWS_DEFAULT_REGION"],
        aws_access_key_id=KEYS["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=KEYS["AWS_SECRET_ACCESS_KEY"],
    )
    client.create_bucket(Bucket=BUCKET)
    yield address
    server.stop()


def lead_to(address: str, patch: pytest.MonkeyPatch) -> str:
    """Let this process and those it starts find the server; return the URI of a folder that nobody has used."""
    for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN"):
        patch.delenv(name, raising=False)
    for name, value in KEYS.items():
        patch.setenv(name, value)
    patch.setenv("AWS_ENDPOINT_URL", address)
    patch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    assert os.environ["AWS_ENDPOINT_URL"] == address
    return f"s3://{BUCKET}/{uuid.uuid4().hex[:8]}"
