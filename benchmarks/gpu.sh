#!/usr/bin/env bash
# Everything that wants a GPU, in under ten minutes: the tests on it, the speed of an update, and arithmetic in full.
# Results go to $OUT (default: benchmarks/results); the tables are printed last.
set -euo pipefail
cd "$(dirname "$0")/.."
out=${OUT:-benchmarks/results}
runs=${RUNS:-/tmp/bitnet-gpu-runs}
export PYTHONPATH="$PWD/src${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1
python3 -m pytest -q tests/nn tests/test_golden.py 2>&1 | tail -n 3 || true
for variant in reference best; do
    timeout 180 python3 -m bitnet train arithmetic --variant "$variant" --run-id "gpu_$variant" --runs-dir "$runs" --train.log-every 2000 --json | tail -n 1 || true
done
python3 benchmarks/train_speed.py --device cuda --rounds 3 | tee "$out/train_speed_cuda.txt"
for variant in reference best; do
    python3 -m bitnet evaluate "gpu_$variant" --runs-dir "$runs" --show 3 --json | tail -n 1 | tee "$out/gpu_$variant.json"
done
cp benchmarks/results/*.json "$out/" 2>/dev/null || true
