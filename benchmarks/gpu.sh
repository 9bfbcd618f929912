#!/usr/bin/env bash
# What wants a GPU, in calls of less than ten minutes each:
#
#     benchmarks/gpu.sh tests                   the tests of reduced formats, on the GPU
#     benchmarks/gpu.sh 3m | 11m | 95m | 133m   speed of ternary and full models, eager, compiled and with CUDA graphs
#     benchmarks/gpu.sh learn                   arithmetic in full, reference and best, with their judgement
#
# The table of speeds comes last: tokens/s, utilisation (MFU) and memory. It is also written to benchmarks/results, and
# copied to $OUT where that is set. Rehearsal without a GPU, with tiny settings: DRY=1 benchmarks/gpu.sh tests
set -euo pipefail
cd "$(dirname "$0")/.."
part=${1:-tests}
runs=${RUNS:-/tmp/bitnet-gpu-runs}
export PYTHONPATH="$PWD/src${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1

device=cuda
tests=()
steps=()
speed=(--rounds 1 --repeats 10 --minutes 9)
ways=("ours auto eager" "ours int8 bf16 compiled" "ours int8 bf16 graphs" "ours autocast bf16 compiled"
    "ours autocast bf16 graphs" "dense bf16" "dense bf16 compiled" "dense bf16 graphs")
if [ -n "${DRY:-}" ]; then
    device=cpu
    tests=(-k one_graph)
    steps=(--num-steps 2)
    speed=(--rounds 1 --repeats 1 --rows 1 --minutes 3 --try-out)
    ways=("ours auto eager" "dense bf16")
fi

measure() {
    python3 benchmarks/train_speed.py --device "$device" --shapes "$1" "${speed[@]}" --ways "${ways[@]}"
    if [ -n "${OUT:-}" ] && [ -z "${DRY:-}" ]; then cp benchmarks/results/train_speed_cuda_*.json "$OUT"/; fi
}

case $part in
tests) BITNET_TEST_DEVICE=$device timeout 570 python3 -m pytest -q -n 0 tests/test_gpu.py "${tests[@]}" 2>&1 | tail -n 40 ;;
3m) measure arithmetic ;;
11m) measure tinystories ;;
95m) measure 95m ;;
133m) measure 133m ;;
learn)
    for variant in reference best; do
        # Stopped by time, a run keeps a checkpoint, which the same call continues.
        timeout 240 python3 -m bitnet train arithmetic --variant "$variant" --run-id "gpu_$variant" \
            --runs-dir "$runs" --device "$device" --train.log-every 2000 "${steps[@]}" | tail -n 3 || true
    done
    for variant in reference best; do
        timeout 40 python3 -m bitnet evaluate "gpu_$variant" --runs-dir "$runs" --show 3 --json | tail -n 1
    done
    ;;
*)
    echo "benchmarks/gpu.sh $part: the part must be tests, 3m, 11m, 95m, 133m or learn" >&2
    exit 2
    ;;
esac
