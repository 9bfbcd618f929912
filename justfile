# Recipes. `./just RECIPE` sets everything up first; with `just` installed, `just RECIPE` is the same.
set positional-arguments := true
export PATH := justfile_directory() / ".venv/bin:" + env("PATH")

[private]
default:
    @just --list --unsorted

# train a ternary model to add in about two minutes, then judge it on problems it never saw
demo: _ready
    bitnet train arithmetic --variant quick --device cpu --check

# arithmetic, full experiment: `reference` on a GPU, `quick` on a CPU
exp-arithmetic: _ready
    bitnet train arithmetic --evaluate

# arithmetic with your own settings, e.g. `just train-arithmetic --num-steps 5000 --batch-size 64`
train-arithmetic *args: _ready
    bitnet train arithmetic "$@"

# tic-tac-toe, full experiment: `reference` on a GPU, `quick` on a CPU
exp-tictactoe: _ready
    bitnet train tictactoe --evaluate

# tic-tac-toe with your own settings, e.g. `just train-tictactoe --num-steps 10000 --batch-size 64`
train-tictactoe *args: _ready
    bitnet train tictactoe "$@"

# TinyStories, full experiment: `reference` on a GPU, `quick` on a CPU; `--data stories.txt` where there is no hub
exp-tinystories *args: _ready
    bitnet train tinystories --evaluate "$@"

# TinyStories with your own settings, e.g. `just train-tinystories --num-steps 15000 --seq-len 128 --batch-size 16`
train-tinystories *args: _ready
    bitnet train tinystories "$@"

# the 95M baseline, full experiment: `reference` on a GPU (days), `smoke` on a CPU; `--data books/` where there is no hub
exp-baseline *args: _ready
    bitnet train baseline --evaluate "$@"

# the baseline with your own settings, e.g. `just train-baseline --run-id my_experiment --batch-size 32`
train-baseline *args: _ready
    bitnet train baseline "$@"

# talk to a trained model: a run, or a path into one; `-p PROMPT` for one answer
chat *args: _ready
    bitnet chat "$@"

# play tic-tac-toe against a trained model: a run, or a path into one
play-tictactoe *args: _ready
    bitnet play "$@"

# train the smallest variant for N steps, to see that everything works
train-simple steps="100": _ready
    bitnet train arithmetic --variant quick --device cpu --num-steps {{ steps }}

# draw the curves of a run as PNG
plot-loss *runs: _ready
    bitnet plot "$@"

# show how far a run is; --watch refreshes every 10 s
check-status *args: _ready
    bitnet status "$@"

# run lint, types and tests; arguments go to pytest, e.g. `just test -m "not slow"`
test *args: _ready
    {{ if args == "" { "just check" } else { "true" } }}
    python -m pytest -n logical --maxprocesses 8 --dist worksteal "$@"

# run lint and type checks
check: _ready
    ruff check .
    ruff format --check .
    mypy

# measure the speed of one update beside the bare matrix products
bench *args: _ready
    python benchmarks/train_speed.py "$@"

# count the lines of the core, the annexes and the tests, and write them into docs/architecture.md
lines: _ready
    python benchmarks/lines.py --write

# `./just` sets up; plain `just` in a fresh clone does the same through it
[private]
_ready:
    @test -x .venv/bin/bitnet || ./just --version >/dev/null
