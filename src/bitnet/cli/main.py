"""`bitnet VERB ...`: find the verb, run it, turn a user error into one line and an exit code."""

from __future__ import annotations

import errno
import importlib
import json
import re
import sys
from collections.abc import Sequence

from bitnet.errors import BitnetError, NotFoundError, TrainingFailed, did_you_mean
from bitnet.interrupt import second_signal_ends
from bitnet.terminal import one_line, shown_output

# characters; what a person typed may be a hundred thousand, and the rule and the fix stand at the end
LONGEST_MESSAGE = 2000
VERBS = {
    "experiments": "what can be trained: variants, parameters, tokens, measured results",
    "train": "train an experiment, or continue a run",
    "evaluate": "measure a run against its success criteria",
    "complete": "continue a prompt",
    "chat": "talk to a model",
    "play": "tic-tac-toe against a model",
    "runs": "list the runs",
    "status": "how far a run is, and how it is doing",
    "plot": "draw the curves of runs as PNG",
    "diagnose": "which part is broken? examine an experiment or a run",
    "compare": "two runs side by side: a ternary one and its control",
    "report": "one HTML page about a run, or two runs compared",
    "tokenizer": "train a tokenizer from documents, or look at one",
    "prepare": "documents to token shards, or an experiment's data to a file",
    "voice": "fine-tuning data: topics to prompts, prompts to answers in a voice",
    "cost": "what a run will take before it starts: memory, disk, time, money",
    "machine": "what this machine has, and which paths are taken on it",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command. Returns its exit code: 0 fine, 1 failed or criteria not met, 2 bad input."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    with shown_output(), second_signal_ends():
        return _run(words)


def _run(words: Sequence[str]) -> int:
    if not words or words[0] in ("-h", "--help"):
        print(_help())
        return 0
    if words[0] == "--version":
        from bitnet import __version__

        print(__version__)
        return 0
    try:
        return _verb(words)
    except KeyboardInterrupt:
        print("", file=sys.stderr)
        return 130
    except BrokenPipeError:
        sys.stderr.close()
        return 141


def _verb(words: Sequence[str]) -> int:
    """Run the command; what the user can put right becomes one line."""
    try:
        if words[0] not in VERBS:
            raise NotFoundError(
                f"there is no command {words[0]!r}.{did_you_mean(words[0], VERBS)} See: bitnet --help"
            )
        module = importlib.import_module(f"bitnet.cli.{words[0]}")
        return int(module.main(words[1:]))
    except BitnetError as error:
        return _say(str(error), words, 1 if isinstance(error, TrainingFailed) else 2)
    except BrokenPipeError:
        raise
    # a name that is too long, a folder that may not be read, a disk that fails: whatever is said of a file
    except OSError as error:
        return _say(_disk_error(error), words, 2)
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and not re.search(
            "can't allocate memory|out of memory", str(error)
        ):
            raise
        return _say(
            "there is not enough memory for this; lower --batch-size, --seq-len or the model's sizes",
            words,
            1,
        )


def _disk_error(error: OSError) -> str:
    place = f"{error.filename}: " if error.filename else ""
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        fix = "free some space and repeat the command; what was there before is unchanged"
    elif error.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
        fix = "choose a place that this user may read and write"
    else:
        fix = "check that place and repeat the command"
    return f"{place}{error.strerror or error}; {fix}"


def _say(text: str, words: Sequence[str], code: int) -> int:
    """One line about what went wrong, an object with --json. Returns the exit code."""
    message = one_line(" ".join(text.split()))
    if len(message) > LONGEST_MESSAGE:
        message = f"{message[: LONGEST_MESSAGE // 2]} ... {message[-LONGEST_MESSAGE // 2 :]}"
    print(json.dumps({"error": message}) if "--json" in words else f"bitnet: {message}", file=sys.stderr)
    return code


def _help() -> str:
    width = max(len(verb) for verb in VERBS)
    verbs = "\n".join(f"  {verb:<{width}}  {about}" for verb, about in VERBS.items())
    return (
        "Train ternary (1.58-bit) transformers and see them work.\n\n"
        f"usage: bitnet VERB [options]        bitnet VERB --help tells more\n\n{verbs}\n\n"
        "first steps:  bitnet train arithmetic --variant quick;  bitnet evaluate latest;  bitnet complete "
        "latest '25 + 17 = '"
    )
