"""How long `bitnet complete` takes from command to first token, and where the time goes.

    bitnet train baseline --variant smoke --num-steps 2 --data FILE --run-id start
    python benchmarks/start.py start

Each round starts the command as a process of its own: seconds by the clock, and processor seconds of the
process, which other work on the machine does not lengthen. The parts are timed in one more process.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

from bitnet.cli.model import NVIDIA
from hardware import where, write_results

PROMPT = "Once upon a time"
PARTS = """
import json, sys, time
times, last = {}, time.process_time()
def done(name):
    global last
    now = time.process_time()
    times[name], last = now - last, now
times["interpreter"] = last
import bitnet.cli.complete, bitnet.cli.main
from bitnet import packed_run as p
done("imports")
layout = p.find_run(sys.argv[1], p.Path(sys.argv[2])).layout
p.verify_run(layout)
config = p.model_config(layout)
done("configuration and files of the run")
step, arrays = p.load_arrays(layout.checkpoint(layout.checkpoint_steps()[-1]))
done("hash of the weights")
weights = p.pack_weights(config, arrays, head=p.default_head(config), threads=p.available_cores())
done("reading and packing")
tokenizer = p.fitting_tokenizer(layout, config)
done("tokenizer")
decoder = p.PackedDecoder(config, weights)
next(p.stream(decoder, tokenizer.encode(sys.argv[3]), max_new_tokens=1))
done("first token")
print(json.dumps(times))
"""


def started(command: list[str]) -> tuple[float, float]:
    """Seconds by the clock and of the processor that a process takes."""
    start, before = time.perf_counter(), os.times()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    after = os.times()
    used = after.children_user + after.children_system - before.children_user - before.children_system
    return time.perf_counter() - start, used


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run")
    parser.add_argument("--runs-dir", type=Path, default=Path("runs"))
    parser.add_argument("--rounds", type=int, default=7)
    args = parser.parse_args()
    if NVIDIA.exists():
        print("this machine has an NVIDIA driver, where the command imports torch to look for a GPU")

    words = [args.run, "--runs-dir", str(args.runs_dir)]
    command = [sys.executable, "-m", "bitnet", "complete", *words, PROMPT, "--max-new-tokens", "1"]
    rounds = [started(command) for _ in range(args.rounds + 1)][1:]  # the first reads the disk
    parts = subprocess.run(
        [sys.executable, "-c", PARTS, args.run, str(args.runs_dir), PROMPT],
        check=True,
        capture_output=True,
        text=True,
    )
    clock, processor = (statistics.median(column) for column in zip(*rounds, strict=True))
    rows = [{"part": part, "processor_s": seconds} for part, seconds in json.loads(parts.stdout).items()]
    rows = [{"part": "whole command", "clock_s": clock, "processor_s": processor}, *rows]
    for row in rows:
        by_clock = f"   {row['clock_s']:.2f} s by the clock" if "clock_s" in row else ""
        print(f"{row['part']:<36}{row['processor_s']:6.2f} s of the processor{by_clock}")
    print(where(), f"wrote {write_results('start', rows)}", sep="\n")


if __name__ == "__main__":
    main()
