"""`bitnet machine`: what this machine has, and which paths are taken on it, as a bug report needs it."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bitnet.cli.flags import parse


@dataclass(frozen=True, kw_only=True)
class MachineFlags:
    """What this machine has, and which paths are taken on it; takes a few seconds."""

    json: bool = False
    """Print the result as JSON on the last line."""


def main(arguments: Sequence[str]) -> int:
    """Print what was found and measured."""
    flags = parse(MachineFlags, arguments, "machine")
    found = {**versions(), **hardware(), **rates()}
    if flags.json:
        print(json.dumps(found))
        return 0
    for name, value in found.items():
        shown = ", ".join(value) if isinstance(value, list) else "none" if value is None else value
        print(f"{name.replace('_', ' '):<22}{shown}")
    return 0


def versions() -> dict[str, Any]:
    """Of this program and of what it computes with."""
    import numpy as np
    import torch

    from bitnet import __version__

    return {
        "bitnet": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "platform": platform.platform(),
    }


def hardware() -> dict[str, Any]:
    """Processor, memory and GPU."""
    import torch

    from bitnet.allocator import machine_memory_bytes
    from bitnet.run.provenance import cpu_model

    cuda = torch.cuda.is_available()
    return {
        "cpu": cpu_model(),
        "cpu_features": cpu_features(),
        "cores": available_cores(),
        "threads": torch.get_num_threads(),
        "memory_gb": round(machine_memory_bytes() / 1e9, 1),
        "gpu": torch.cuda.get_device_name() if cuda else None,
        "cuda": torch.version.cuda if cuda else None,
    }


def rates() -> dict[str, Any]:
    """The kernel path with where it comes from, the engine that inference takes, and measured rates."""
    import torch

    from bitnet.kernels import library
    from bitnet.kernels.rates import memory_gb_per_s, product_gops

    threads = torch.get_num_threads()
    compiled = library.path() != library.TORCH
    return {
        "kernels": library.describe().removeprefix("kernels: "),
        "kernel_paths": list(library.loaded().paths),
        "engine": "packed" if compiled else "torch",
        "memory_gb_per_s": round(memory_gb_per_s(threads), 1),
        "product_gops_1_row": round(product_gops(1, threads), 1) if compiled else None,
        "product_gops_512_rows": round(product_gops(512, threads), 1) if compiled else None,
    }


def cpu_features() -> list[str]:
    """The instruction sets that the kernels or torch make use of, as /proc/cpuinfo names them (Linux)."""
    wanted = (
        "avx2 fma avx_vnni avx512f avx512bw avx512vl avx512_vnni avx512_bf16 amx_int8 amx_bf16 asimddp bf16"
    )
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
    words = next((line.split() for line in lines if line.startswith(("flags", "Features"))), [])
    return [name for name in wanted.split() if name in words]


def available_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
