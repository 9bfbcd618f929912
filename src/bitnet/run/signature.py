"""Whether a run is the user's own: its configuration is signed with a key that only this user's account has.

`meta/signature.json` holds the HMAC-SHA256 of meta/config.json. The key is made at the first training and
stands outside every run, in `$XDG_STATE_HOME/bitnet/key` (`~/.local/state/bitnet/key`). A run that came from
somebody else, or whose configuration was edited since, has no valid signature; the paths in it are then
followed only when the user asks for it on the command line. A copied or moved run stays the user's own. Not
here: what a foreign run may still do (cli/foreign.py).
"""

from __future__ import annotations

import hmac
import os
import secrets
from pathlib import Path

from bitnet.errors import BitnetError
from bitnet.files import read_bytes, read_json, write_json
from bitnet.run.layout import RunLayout

KEY_BYTES = 32
CONFIG_BYTES = 1 << 20  # the largest meta/config.json that is read for its signature; ours have about 3 kB


def sign(layout: RunLayout) -> bool:
    """Mark a run as the user's own. False where no key can be written; the run then counts as foreign."""
    try:
        value = _digest(layout, _key(make=True))
    except (OSError, BitnetError):
        return False
    write_json(layout.signature, {"config_hmac_sha256": value})
    return True


def is_own(layout: RunLayout) -> bool:
    """Whether the configuration is as it was when this user trained the run."""
    try:
        stored = read_json(layout.signature, limit=CONFIG_BYTES).get("config_hmac_sha256")
        return isinstance(stored, str) and hmac.compare_digest(
            stored.encode(), _digest(layout, _key()).encode()
        )
    except (OSError, BitnetError):
        return False


def key_path() -> Path:
    """Where the user's key is kept."""
    state = Path(os.environ.get("XDG_STATE_HOME", ""))
    return (state if state.is_absolute() else Path.home() / ".local" / "state") / "bitnet" / "key"


def _digest(layout: RunLayout, key: bytes) -> str:
    return hmac.new(key, read_bytes(layout.config, CONFIG_BYTES), "sha256").hexdigest()


def _make_key(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".key.{os.getpid()}.tmp")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(secrets.token_bytes(KEY_BYTES))

    # A link is made only where nothing stands: of several processes the first wins, and all read its key.
    try:
        os.link(temporary, path)
    except FileExistsError:
        pass
    finally:
        temporary.unlink()


def _key(*, make: bool = False) -> bytes:
    """The user's key, made first where it is missing. Raises OSError, or BitnetError for another file."""
    path = key_path()
    if make and not path.exists():
        _make_key(path)
    key = read_bytes(path, KEY_BYTES, "delete it, and the next training makes another")
    if len(key) != KEY_BYTES:
        raise BitnetError(
            f"{path} is not a key of {KEY_BYTES} bytes; delete it, and the next training makes another"
        )
    return key
