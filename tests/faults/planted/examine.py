"""Examine one planted fault in a process of its own."""

from __future__ import annotations

import contextlib
import io
import json
import multiprocessing
import os
import traceback
from pathlib import Path
from typing import Any

import torch

from bitnet.cli.main import main
from bitnet.train import device
from planted.fault import Fault


def examined(one: Fault, folder: Path) -> dict[str, Any]:
    """Plant a fault in a forked process and return what `bitnet diagnose --json` printed there, with its exit
    code.
    """
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_in_child, args=(one, folder, sender))
    process.start()
    sender.close()
    try:
        result: dict[str, Any] = receiver.recv()
    except EOFError:
        result = {"error": "the process died"}
    process.join()
    return result


def _in_child(one: Fault, folder: Path, sender: Any) -> None:
    torch.set_num_threads(1)
    try:
        sender.send(diagnosed(one, folder))
    except BaseException:  # noqa: BLE001 - whatever a planted fault does to the process has to reach the report
        sender.send({"error": traceback.format_exc()})
    finally:
        sender.close()
        os._exit(0)


def diagnosed(one: Fault, folder: Path) -> dict[str, Any]:
    """Plant a fault here and examine."""
    # Faults of the modules have to train by the modules; those of the packed forms ask for them by flag.
    device.has_fast_packed = lambda device: False
    words = one.prepare(folder) if one.prepare else list(one.words)
    one.plant()
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main(["diagnose", *words, "--json"])
    lines = out.getvalue().strip().splitlines()
    if not lines:
        return {"error": err.getvalue().strip(), "code": code}
    return {**json.loads(lines[-1]), "code": code}
