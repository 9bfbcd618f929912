"""Find a tokenizer by its name: a folder, or a name on the Hugging Face hub.

From the hub come the tokenizer's JSON files and nothing else: no weights, no code. Not here: `own` and
`characters`, which are made from the data.
"""

from __future__ import annotations

import re
from pathlib import Path

from bitnet.errors import BitnetError, ConfigError, DataError, NotFoundError
from bitnet.text.subword import TOKENIZER_FILE, SubwordTokenizer
from bitnet.text.tokenizer import Tokenizer, load_tokenizer

FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")
HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?")
INSTEAD = "`bitnet tokenizer train` (for train: --tokenizer own) makes one of the same size from your data"


def find_tokenizer(word: str) -> Tokenizer:
    """The tokenizer in a folder, or of this name on the hub."""
    path = Path(word).expanduser()
    if path.is_dir():
        return load_tokenizer(path)
    if path.name == TOKENIZER_FILE and path.is_file():
        return load_tokenizer(path.parent)
    if word in ("own", "characters"):
        raise ConfigError(
            f"the tokenizer {word!r} is made from data; make it with `bitnet tokenizer train` and give its "
            "folder"
        )
    if path.exists() or not HUB_NAME.fullmatch(word):
        raise NotFoundError(f"there is no tokenizer folder {word}; {INSTEAD}")
    return fetch(word)


def why_not(name: str) -> str | None:
    """Why a gated tokenizer of the hub cannot be had, in a few words, or None where it is here now.

    The cache is looked in first. Without a login the hub is not asked at all, since it would refuse.
    """
    try:
        from huggingface_hub import get_token, try_to_load_from_cache
    except ImportError:
        return "huggingface_hub is not installed: pip install 'bitnet[text]'"
    cached = isinstance(try_to_load_from_cache(name, TOKENIZER_FILE), str)
    if not cached and get_token() is None:
        return "not logged in to the hub: `hf auth login`"
    try:
        fetch(name)
    except BitnetError as error:
        return str(error).split(";")[0]
    return None


def fetch(name: str) -> SubwordTokenizer:
    """A tokenizer of the hub, from the local cache where it is there already."""
    try:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import (
            GatedRepoError,
            HfHubHTTPError,
            LocalEntryNotFoundError,
            RepositoryNotFoundError,
        )
    except ImportError:
        raise ConfigError(
            f"{name} is a name on the hub, which needs huggingface_hub; install it with: pip install "
            "'bitnet[text]'"
        ) from None
    try:
        folder = Path(snapshot_download(name, allow_patterns=list(FILES)))
    except GatedRepoError:
        page = f"huggingface.co/{name}"
        raise NotFoundError(
            f"{name} is gated: accept its terms at {page}, then run `hf auth login`; or {INSTEAD}"
        ) from None
    except LocalEntryNotFoundError:
        raise NotFoundError(
            f"{name} is neither a folder here nor in the local cache, and the hub cannot be reached; connect "
            "once (a gated one, as meta-llama's are, asks you to accept its terms at huggingface.co/"
            f"{name} and to run `hf auth login`), or {INSTEAD}"
        ) from None
    except RepositoryNotFoundError:
        raise NotFoundError(
            f"the hub has no {name!r}, or not for you (private: `hf auth login`); check the name, or "
            f"{INSTEAD}"
        ) from None
    except (HfHubHTTPError, OSError, ValueError) as error:
        raise DataError(f"{name} could not be fetched ({error}); try again later, or {INSTEAD}") from None
    if not (folder / TOKENIZER_FILE).is_file():
        raise DataError(f"{name} has no {TOKENIZER_FILE}, only an older format; choose another, or {INSTEAD}")
    return SubwordTokenizer.load(folder, name)
