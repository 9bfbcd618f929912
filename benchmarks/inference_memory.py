"""Resident memory of a loaded model, and the peak while it is loaded, each in a process of its own.

    python benchmarks/inference_memory.py
    python benchmarks/inference_memory.py --shapes 95M --heads int4

A file of random float32 weights is written, and read and packed as `bitnet complete` does, without torch.
Then one text fills its whole cache. What is needed is the packed matrices and that cache; what the
interpreter and its libraries take before is given beside it.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from bitnet.engine.decoder import PackedDecoder
from bitnet.engine.weights import pack_weights, parameter_shapes
from bitnet.experiments.shapes import BASELINE, TINYSTORIES
from bitnet.kernels import library
from bitnet.run.tensors import ArrayFile

SHAPES = {"tinystories": TINYSTORIES, "95M": BASELINE}
PROMPT = 128


def resident_mb(what: str) -> float:
    """VmRSS (now) or VmHWM (the peak) of this process, in 10^6 bytes."""
    found = re.search(rf"{what}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found, "only Linux says how much memory is resident"
    return int(found[1]) * 1024 / 1e6


def load(shape: str, head: Any, file: Path) -> dict[str, Any]:
    """Load a file, and fill the cache of one text."""
    config = SHAPES[shape]
    library.loaded()
    before = resident_mb("VmRSS")
    decoder = PackedDecoder(config, pack_weights(config, ArrayFile(file), head=head), threads=1)
    peak, loaded = resident_mb("VmHWM"), resident_mb("VmRSS")

    rows = decoder.new_rows(1)
    while rows.lengths[0] < config.max_seq_length:
        rows.read({0: [1] * min(PROMPT, config.max_seq_length - int(rows.lengths[0]))})
    weights, cache = decoder.weights.nbytes / 1e6, decoder.cache_bytes(config.max_seq_length) / 1e6
    now = resident_mb("VmRSS")
    return {
        "shape": shape,
        "head": head,
        "file_mb": file.stat().st_size / 1e6,
        "weights_mb": weights,
        "cache_mb": cache,
        "before_mb": before,
        "loading_peak_mb": peak,
        "loaded_mb": loaded,
        "with_full_cache_mb": now,
        "grown_to_needed": (now - before) / (weights + cache),
    }


def random_file(shape: str, file: Path) -> None:
    """Write random weights of a shape."""
    from safetensors.numpy import save_file

    rng = np.random.default_rng(0)
    shapes = parameter_shapes(SHAPES[shape])
    save_file({name: rng.standard_normal(size, np.float32) for name, size in shapes.items()}, file)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=list(SHAPES))
    parser.add_argument("--heads", nargs="+", choices=("f32", "int8", "int4"), default=["int8", "int4"])
    parser.add_argument("--file", type=Path, help="only load this one, and print a row")
    args = parser.parse_args()
    if args.file:
        print(json.dumps(load(args.shapes[0], args.heads[0], args.file)))
        return

    from hardware import where, write_results  # imports torch, which the measured process must not

    print(where())
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for shape in args.shapes:
            file = Path(folder) / "model.safetensors"
            random_file(shape, file)
            for head in args.heads:
                command = [sys.executable, __file__, "--shapes", shape, "--heads", head, "--file", str(file)]
                rows.append(json.loads(subprocess.run(command, capture_output=True, check=True).stdout))
                print(*(f"{k} {v:.2f}" if isinstance(v, float) else v for k, v in rows[-1].items()), sep="  ")
    print(f"wrote {write_results('inference_memory', rows)}")


if __name__ == "__main__":
    main()
