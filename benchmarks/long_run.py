"""How long `bitnet status` and `bitnet report` take on a run of 60,000 updates, as whole processes.

    python benchmarks/long_run.py [--steps 60000] [--repeats 3]

The run is synthetic: tests/report/synthetic.py writes its files.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from hardware import where, write_results

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "report"))


def seconds(words: list[str]) -> float:
    """Wall time of one `bitnet` process."""
    started = time.perf_counter()
    subprocess.run([sys.executable, "-m", "bitnet", *words], check=True, capture_output=True)
    return time.perf_counter() - started


def main() -> None:
    from synthetic import write_run  # type: ignore[import-not-found]

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=60_000)
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "runs" / "long"
        write_run(run, args.steps)
        rows = []
        for verb in ("status", "report"):
            times = [seconds([verb, str(run)]) for _ in range(args.repeats)]
            rows.append(
                {
                    "verb": verb,
                    "steps": args.steps,
                    "seconds_median": statistics.median(times),
                    "seconds": times,
                }
            )
        rows.append({"verb": "report", "steps": args.steps, "bytes": (run / "report.html").stat().st_size})
    print(where())
    for row in rows:
        print(f"  {row}")
    print(f"wrote {write_results('long_run', rows)}")


if __name__ == "__main__":
    main()
