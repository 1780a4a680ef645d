"""The token that a Ray asks for: whoever knows it can run code as the user who started that Ray."""

import os
import secrets
import stat
import tempfile
from pathlib import Path

from ray._raylet import Config  # type: ignore[attr-defined]

MODE, VALUE, PLACE = "RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"
"""Environment variables of Ray. The value has precedence over the place."""
PRIVATE = 0o600


def use_token() -> None:
    """Let this process, and the Ray that it starts or joins, ask each other for the token."""
    os.environ[MODE] = "token"
    Config.initialize("")  # Ray read the environment when it was imported


def token_file() -> Path:
    """Return where this machine's token is, if it is in a file."""
    return Path(os.environ.get(PLACE) or Path.home() / ".ray" / "auth_token")


def read_token() -> str | None:
    """Return this machine's token; None if it has none, or one that this user may not read."""
    if value := os.environ.get(VALUE):
        return value
    try:
        return token_file().read_text(encoding="utf-8").strip() or None
    except OSError:
        return None


def make_token() -> None:
    """Make sure that this machine has a token, and that its file is readable by its owner alone.

    Ray makes a token too, but everyone on the machine may read it. A token that cannot be stored, as in a read-only
    home, lives in this process's environment.
    """
    if os.environ.get(VALUE):
        return
    file = token_file()
    if read_token() is not None:
        if is_open(file) and os.access(file, os.W_OK):
            file.chmod(PRIVATE)
        return
    try:
        _store(file, secrets.token_hex(32))
    except OSError:
        os.environ[VALUE] = secrets.token_hex(32)


def is_open(file: Path) -> bool:
    """Whether others than its owner may read or write a file."""
    return bool(stat.S_IMODE(file.stat().st_mode) & ~PRIVATE & 0o077)


def _store(file: Path, token: str) -> None:
    """Write a new token, private from its first moment on. If another process is faster, its token stays."""
    file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(dir=file.parent)  # readable by its owner alone
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as stream:
            stream.write(token)
            stream.flush()
            os.fsync(stream.fileno())
        if file.exists():  # empty or unreadable
            Path(temporary).replace(file)
        else:
            os.link(temporary, file)
    except FileExistsError:
        pass
    finally:
        Path(temporary).unlink(missing_ok=True)
