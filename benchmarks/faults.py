"""`bitnet diagnose` on every planted fault and on healthy models: right suspects, right checks, false alarms.

    python benchmarks/faults.py                 all of them; each in a process of its own (Linux)
    python benchmarks/faults.py --only rotary   those whose name holds a word; other rows of the results stay
    python benchmarks/faults.py --resume        those that have no row yet

Models are tiny (32 wide, two layers), so that all of it takes minutes. Each row is written to
benchmarks/results/faults.json at once, and benchmarks/readme.py puts them into docs/diagnose.md. The faults
themselves are in tests/faults/planted/.
"""

from __future__ import annotations

import argparse
import importlib
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from hardware import read_results, where, write_results

ROOT = Path(__file__).parents[1]


def planted() -> Any:
    """The module of the planted faults."""
    sys.path[:0] = [str(ROOT / "tests" / "faults"), str(ROOT / "tests")]
    for name in (
        "torch._dynamo",
        "bitnet.cli.diagnose",
        "bitnet.cli.train",
        "bitnet.diagnose.diagnosis",
        "bitnet.train.start",
    ):
        importlib.import_module(name)  # once here, not in every forked process
    return importlib.import_module("planted")


def row_of(one: Any, examined: Any) -> dict[str, Any]:
    """Examine one fault or healthy model, and return what the table needs."""
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        result = examined(one, Path(folder))
    evidence = result.get("evidence", [])
    suspect = result.get("suspect", "error")
    return {
        "name": one.name,
        "expected": list(one.suspects),
        "check": one.check,
        "suspect": suspect,
        "sure": result.get("sure", ""),
        "evidence": evidence,
        "right_suspect": suspect in one.suspects and not result.get("not_examined"),
        "right_check": any(one.check in name for name in evidence) if one.check else suspect == "none",
        "error": result.get("error") or "; ".join(result.get("not_examined", [])) or None,
        "commit": where()["commit"],
        "seconds": round(time.perf_counter() - started, 1),
    }


def known_rows() -> dict[str, dict[str, Any]]:
    """Rows of an earlier run by name."""
    return {row["name"]: row for row in read_results("faults").get("rows", ())}


def summary(rows: list[dict[str, Any]]) -> str:
    """The three figures."""
    faults = [row for row in rows if row["expected"] != ["none"]]
    healthy = [row for row in rows if row["expected"] == ["none"]]
    named, found = (sum(row[key] for row in faults) for key in ("right_suspect", "right_check"))
    false = sum(not row["right_suspect"] for row in healthy)
    shares = [f"{count} ({count / max(len(faults), 1):.1%})" for count in (named, found)]
    return (
        f"{len(faults)} faults: right suspect {shares[0]}, right check {shares[1]}; "
        f"{len(healthy)} healthy: {false} false alarms"
    )


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", action="append", default=[], help="part of a name")
    parser.add_argument("--resume", action="store_true", help="keep the rows there are")
    options = parser.parse_args()
    module = planted()
    torch.set_num_threads(1)
    everything = [*module.FAULTS, *module.HEALTHY]
    rows = known_rows() if options.only or options.resume else {}
    for one in everything:
        if (options.resume and one.name in rows) or (
            options.only and not any(word in one.name for word in options.only)
        ):
            continue
        row = rows[one.name] = row_of(one, module.examined)
        mark = "ok " if row["right_suspect"] and row["right_check"] else "BAD"
        print(
            f"{mark} {row['name']:<48} {row['suspect']:<13} {row['sure']:<7} "
            f"{', '.join(row['evidence'][:2])} {row['error'] or ''}",
            flush=True,
        )
        write_results("faults", [rows[each.name] for each in everything if each.name in rows])
    print(summary([rows[each.name] for each in everything if each.name in rows]))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
