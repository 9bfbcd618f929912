"""The packed engine against PyTorch's int8 path on trained runs: sums, logits, greedy text and verdicts.

    python benchmarks/equality.py RUN [RUN ...] [--prompts 1000] [--runs-dir runs] [--json]

For each run, with an f32 head and with the head that is the default for its vocabulary:

    sums      integer sums of every ternary product on the inputs of held-out rows: equal or not
    logits    on held-out rows, relative to the largest logit of the rows: share of tokens within 1e-3,
              median, largest
    forced    the same on a few rows where PyTorch is given the engine's int8 codes (engine_codes.py): the
              largest, how many codes differed, and how far from half-way the farthest of them was
    greedy    answers to held-out prompts that are equal; each other one is explained by name
    verdict   of `bitnet evaluate` by both engines

A different answer is explained where PyTorch, given the engine's codes and nothing else, chooses the engine's
token: then what differs is the codes that it names, which have to be half-way. Where no code differs, the two
best logits are nearer to each other than the engines are. The results are written to
benchmarks/results/equality.json; rows of other runs stay.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bitnet.cli.evaluate import judge
from bitnet.cli.registry import config_of_run, find_variant
from bitnet.data.stream import Batch
from bitnet.engine.decoder import PackedDecoder
from bitnet.engine.from_torch import packed
from bitnet.engine.weights import default_head
from bitnet.generate.decode import MAX_ROWS, continue_prompts
from bitnet.generate.decoder import Decoder
from bitnet.kernels import arrays
from bitnet.nn.transformer import BitNetTransformer
from bitnet.train.experiment import Task
from bitnet.trained_model import load
from engine_codes import Forced, forced, quantizing_by
from hardware import read_results, where, write_results

CLOSE = 1e-3  # of the largest logit
HALF_WAY = 1e-2  # of one code
ROUNDING = 1e-5  # of the largest logit: what float sums in another order may differ by
ROWS, FORCED_ROWS = 256, 8
NEW_TOKENS = 64
CUTS = (6, 12, 20, 28, 36)  # prompts out of held-out windows of running text, in tokens


@dataclass(frozen=True)
class Prompt:
    """Ids to continue, and the number of tokens that the answer may have."""

    ids: list[int]
    room: int


@torch.no_grad()
def same_sums(model: BitNetTransformer, drop_in: PackedDecoder, ids: Tensor) -> dict[str, int]:
    """How many integer sums of the ternary products were compared, and how many differ. ids: (B, T)."""
    if (model.config.weights, model.config.activations) != ("ternary", "int8"):
        return {"sums": 0, "sums_different": 0}
    inputs: list[Tensor] = []

    def keep(x: Tensor) -> Any:
        found = usual(x)
        inputs.append(found.codes.reshape(-1, found.codes.shape[-1]))
        return found

    with quantizing_by(keep) as usual:
        model(ids)
    matrices = [
        matrix
        for layer in drop_in.weights.layers
        for matrix in (layer.qkv, layer.attn_out, layer.gate_up, layer.down)
    ]
    counted = different = 0
    for matrix, layer, codes in zip(matrices, model.bit_linears().values(), inputs, strict=True):
        tiles = arrays.Packed(matrix.data, matrix.out_features, matrix.in_features)
        found = arrays.sums(tiles, np.ascontiguousarray(codes.numpy()))
        right = torch._int_mm(codes, layer.weight_quantized.t()).numpy()
        counted, different = counted + right.size, different + int((found != right).sum())
    return {"sums": counted, "sums_different": different}


@torch.no_grad()
def logit_differences(
    model: BitNetTransformer, drop_in: PackedDecoder, batches: Sequence[Batch]
) -> dict[str, Any]:
    """How far the logits of held-out rows are apart, per token, relative to the largest logit of the rows."""
    found: list[Tensor] = []
    for batch in batches:
        rows = first_rows(batch, ROWS)
        right, other = (one(rows.input_ids, **rows.context()) for one in (model, drop_in))
        found.append(((other - right).abs().amax(-1) / right.abs().max())[used(rows)])
    apart = torch.cat(found)
    return {
        "tokens": len(apart),
        "within": float((apart <= CLOSE).double().mean()),
        "median": float(apart.median()),
        "largest": float(apart.max()),
    }


def first_rows(batch: Batch, count: int) -> Batch:
    """The first rows of a batch."""
    kept: dict[str, Any] = {
        name: part if part is None else part[:count] for name, part in batch._asdict().items()
    }
    return Batch(**kept)


def used(batch: Batch) -> Tensor:
    """Which tokens of the rows are no padding: up to the last scored target. bool (B, T)."""
    after = batch.loss_mask.flip(1).cumsum(1).flip(1)  # scored targets from here on
    return after > 0


def held_out_ids(batches: Sequence[Batch]) -> Iterator[list[int]]:
    """Ids of the held-out rows without their padding."""
    for batch in batches:
        for ids, mask in zip(batch.input_ids, used(batch), strict=True):
            yield ids[mask].tolist()


def prompts_of(task: Task, batches: Sequence[Batch], count: int, longest: int) -> list[Prompt]:
    """Prompts of an experiment's held-out cases; for running text, beginnings of different lengths."""
    cases = getattr(task, "held_out_cases", None)
    if cases is not None:
        asked: list[Any] = [task.example_of(case) for case in cases[:count]]  # type: ignore[attr-defined]
        room = max(len(task.tokenizer.encode(answer)) for _, answer in asked)
        return [Prompt(task.tokenizer.encode(prompt), room) for prompt, _ in asked]
    found: dict[tuple[int, ...], Prompt] = {}
    for cut in CUTS:
        for ids in held_out_ids(batches):
            for begin in range(0, len(ids) - cut, max(CUTS)):
                part = ids[begin : begin + cut]
                found.setdefault(tuple(part), Prompt(part, min(NEW_TOKENS, longest - cut)))
    return list(found.values())[:count]


def greedy_texts(model: Decoder, prompts: Sequence[Prompt], stop: int) -> list[list[int]]:
    """The greedy answers."""
    most = max(prompt.room for prompt in prompts)
    return continue_prompts(model, [prompt.ids for prompt in prompts], max_new_tokens=most, stop_id=stop)


def place_in_batch(prompts: Sequence[Prompt], index: int) -> tuple[int, int]:
    """Rows of the batch in which `continue_prompts` decodes a prompt, and which of them it is."""
    alike = [number for number, one in enumerate(prompts) if len(one.ids) == len(prompts[index].ids)]
    place = alike.index(index)
    first = place - place % MAX_ROWS
    return min(len(alike) - first, MAX_ROWS), place - first


def explained(
    model: BitNetTransformer,
    drop_in: PackedDecoder,
    prompts: Sequence[Prompt],
    index: int,
    answers: tuple[list[int], list[int]],
) -> dict[str, Any]:
    """Why PyTorch (first) and the engine continue a prompt differently."""
    mine, theirs = answers
    same = next(n for n, pair in enumerate(zip(mine, theirs, strict=False)) if pair[0] != pair[1])
    prompt = prompts[index].ids
    ids = [*prompt, *mine[:same]]
    rows, row = place_in_batch(prompts, index)
    cuts = range(len(prompt), len(ids))
    given = forced(model, drop_in.weights, ids, cuts=tuple(cuts), rows=rows, row=row)
    engine = drop_in.new_rows(1).read({0: ids})[0]
    alone = as_decoded(model, ids, cuts, rows)[row]

    largest = float(alone.abs().max())
    half_way = max((other.from_half for other in given.others), default=0.0)
    pair = [mine[same], theirs[same]]
    gaps = [float(logits[pair[0]] - logits[pair[1]]) / largest for logits in (alone, given.logits[-1])]
    first = given.others[0] if given.others else None
    found = {
        "prompt": index,
        "after": same,
        "torch": mine[same],
        "engine": theirs[same],
        "gap": gaps[0],
        "gap_given_codes": gaps[1],
        "apart": float(np.abs(engine - alone.numpy()).max()) / largest,
        "apart_given_codes": float(np.abs(engine - given.logits[-1].numpy()).max()) / largest,
        "other_codes": len(given.others),
        "from_half": half_way,
        "first": None if first is None else first._asdict(),
    }
    return {**found, "explained": explanation(found)}


def explanation(difference: dict[str, Any]) -> str | None:
    """The kind of near-tie that a difference is, or None.

    Where PyTorch prefers the engine's token as soon as it has the engine's codes, the codes were the cause,
    and all of them have to be half-way. Where it does not, the two tokens have to be nearer to each other
    than the last digits of their logits.
    """
    rounding = difference["apart_given_codes"]
    if rounding > ROUNDING or difference["from_half"] > HALF_WAY:
        return None
    if difference["other_codes"] and difference["gap_given_codes"] <= 2 * rounding:
        return "half-way code"
    return "tie of logits" if abs(difference["gap_given_codes"]) <= 2 * rounding else None


@torch.no_grad()
def as_decoded(model: BitNetTransformer, ids: Sequence[int], cuts: Sequence[int], rows: int) -> Tensor:
    """Logits after the last id, read in the steps of decoding: (rows, V)."""
    texts = model.new_rows(rows, len(ids))
    for begin, end in zip([0, *cuts], [*cuts, len(ids)], strict=True):
        logits = texts.read(dict.fromkeys(range(rows), ids[begin:end]))
    return logits


@torch.no_grad()
def forced_rows(
    model: BitNetTransformer, drop_in: PackedDecoder, texts: Sequence[list[int]]
) -> dict[str, Any]:
    """Logits of a few texts where PyTorch is given the engine's codes."""
    apart, others, codes = 0.0, list[float](), 0
    for ids in texts:
        given: Forced = forced(model, drop_in.weights, ids)
        engine = drop_in.new_rows(1).read({0: ids}, every=True)
        difference = np.abs(given.logits.numpy() - engine).max() / np.abs(engine).max()
        apart, codes = max(apart, float(difference)), codes + given.codes
        others += [other.from_half for other in given.others]
    return {"apart": apart, "codes": codes, "other_codes": len(others), "from_half": max(others, default=0.0)}


def compared(word: str, runs_dir: Path, count: int) -> Iterator[dict[str, Any]]:
    """The rows of one run: with an f32 head, and with its default head where that is another."""
    plain = load(word, runs_dir=runs_dir, engine="torch")
    model = plain.model
    assert isinstance(model, BitNetTransformer)
    model.set_product("int8")
    experiment, variant, config = config_of_run(plain.layout)
    task, criteria = experiment.open(config), find_variant(experiment, variant).criteria
    batches = task.frozen_evaluation()
    prompts = prompts_of(task, batches, count, config.model.max_seq_length)
    stop = task.tokenizer.encode(task.end_mark)[0] if task.end_mark else task.tokenizer.eos_id
    right = greedy_texts(model, prompts, stop)
    verdict = judge(plain, task, criteria)
    texts = list(held_out_ids(batches))[:FORCED_ROWS]

    for head in dict.fromkeys(("f32", default_head(config.model))):
        drop_in = packed(model, head=head)
        other = judge(replace(plain, model=drop_in), task, criteria)
        found = greedy_texts(drop_in, prompts, stop)
        different = [index for index, answer in enumerate(found) if answer != right[index]]
        exact = head == "f32"
        yield {
            "run": f"{experiment.name} {variant}, seed {config.train.seed}, step {plain.step}",
            "head": head,
            **same_sums(model, drop_in, batches[0].input_ids[:8]),
            "logits": logit_differences(model, drop_in, batches[:4]),
            "forced": forced_rows(model, drop_in, texts) if exact else None,
            "prompts": len(prompts),
            "different": len(different),
            "differences": [
                explained(model, drop_in, prompts, index, (right[index], found[index]))
                for index in (different if exact else ())
            ],
            "verdict": [verdict["verdict"], other["verdict"]],
            "criteria": [[row["value"] for row in one["criteria"]] for one in (verdict, other)],
        }


def line(row: dict[str, Any]) -> str:
    """One row for a person."""
    logits, given = row["logits"], row["forced"]
    known = sum(one["explained"] is not None for one in row["differences"])
    told = [
        f"{row['run']}, head {row['head']}: {row['sums_different']} of {row['sums']:,} sums differ",
        f"{logits['within']:.1%} of {logits['tokens']:,} tokens within {CLOSE}, all {logits['largest']:.1e}",
        f"{row['different']} of {row['prompts']:,} answers differ ({known} explained)",
        f"verdicts {' and '.join(row['verdict'])}, {row['criteria'][0]} and {row['criteria'][1]}",
    ]
    if given:
        others = f"{given['other_codes']} of {given['codes']:,} codes differed"
        far = f"{given['from_half']:.0e} from half-way"
        told.insert(2, f"given the codes {given['apart']:.0e} ({others}, {far})")
    return "; ".join(told)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", nargs="+", metavar="RUN")
    parser.add_argument("--prompts", type=int, default=1000, help="held-out prompts at most")
    parser.add_argument("--runs-dir", type=Path, default=Path("runs"))
    parser.add_argument("--json", action="store_true", help="print the rows as JSON on the last line")
    options = parser.parse_args()
    measured = []
    for word in options.runs:
        for row in compared(word, options.runs_dir, options.prompts):
            print(line(row), flush=True)
            known = read_results("equality").get("rows", ())  # again: another process may measure as well
            rows = {(one["run"], one["head"]): one for one in known}
            rows[row["run"], row["head"]] = {**row, "commit": where()["commit"]}
            measured.append(row)
            write_results("equality", [rows[key] for key in sorted(rows)])
    if options.json:
        print(json.dumps(measured))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
