"""A run directory with every file of a finished run, of any length, made without training."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np

MATRICES = ("attn_qkv", "attn_out", "ffn_gate_up", "ffn_down")
MODES = ("greedy", "typical", "stress")
PROMPTS = ("25 + 17 = ", "Once upon a time", "The capital of France")
WORDS = """
    the a little bird sat on its old tree and sang to every cloud that went over the hill until evening came
""".split()


def write_run(
    root: Path,
    steps: int,
    *,
    layers: int = 4,
    every: int | None = None,
    verdict: str | None = "PASS",
    seed: int = 0,
) -> Path:
    """Write a run of `steps` updates with probes, evaluations and samples at `every`-th ones. Returns its
    folder.
    """
    every = every or max(steps // 20, 1)
    random = np.random.default_rng(seed)
    write_config(root, steps, layers)
    _write(
        root / "metrics" / "scalars.jsonl", [_scalars(step, steps, random) for step in range(1, steps + 1)]
    )
    marks = range(every, steps + 1, every)
    _write(
        root / "metrics" / "quantization.jsonl",
        [_probe(step, steps, layers, step == every, random) for step in marks],
    )
    _write(root / "eval" / "eval_results.jsonl", [_evaluation(step, steps) for step in marks])
    samples = [_sample(step, prompt, mode, random) for step in marks for prompt in PROMPTS for mode in MODES]
    _write(root / "samples" / "samples.jsonl", samples)
    dump = root / "anomalies" / f"step_{steps // 3:06d}_loss_spike"
    dump.mkdir(parents=True)
    (dump / "README.md").write_text(
        "The loss was 7.93, over twice its average of 3.71 in the last 100 updates. Look at batch.json "
        "first.\n"
    )
    (dump / "grad_norms.json").write_text("{}")
    if verdict:
        _verdict(root, steps, verdict)
    return root


def write_config(root: Path, steps: int, layers: int = 4) -> None:
    """meta/ and status.json: what a run has before its first update."""
    width, inner = 128, 384
    model = {
        "vocab_size": 32,
        "hidden_size": width,
        "num_layers": layers,
        "num_heads": 4,
        "num_kv_heads": 2,
        "ffn_hidden_size": inner,
        "max_seq_length": 64,
        "norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "embeddings_tied": True,
        "activation": "silu",
        "sub_norm": False,
        "weights": "ternary",
        "activations": "int8",
        "head_dim": 32,
        "total_params": 791_680,
    }
    training = {
        "seq_len": 13,
        "batch_size": 170,
        "total_steps": steps,
        "seed": 42,
        "optimizer": "muon",
        "schedule": "two_stage",
        "peak_lr": 0.0015,
        "stage2_lr": 0.001,
        "final_lr": 1.5e-5,
        "warmup_steps": steps // 100,
        "stage1_end": steps // 2,
        "stage1_wd": 0.1,
        "stage2_wd": 0.0,
        "grad_clip_norm": 1.0,
        "total_tokens": steps * 2210,
    }
    data = {"dataset": "arithmetic", "operators": ["+", "-"], "max_operand": 99, "tokenizer": "characters"}
    config = {
        "experiment": "arithmetic",
        "variant": "quick",
        "model": model,
        "training": training,
        "data": data,
    }
    facts = {
        "git_commit": "0" * 40,
        "git_dirty": False,
        "torch_version": "2.13.0",
        "cpu_model": "a processor",
    }
    facts |= {"seeds": {"python": 42, "numpy": 42, "torch": 42}, "run_id": root.name}
    _write_json(root / "meta" / "config.json", config)
    _write_json(root / "meta" / "provenance.json", facts)
    _write_json(
        root / "meta" / "dataset_fingerprint.json",
        {"dataset_name": "arithmetic", "first_1000_token_ids_sha256": "ab" * 32},
    )
    _write_json(root / "status.json", {"state": "done", "why": None, "step": steps, "total_steps": steps})


def _scalars(step: int, steps: int, random: np.random.Generator) -> dict[str, Any]:
    done = step / steps
    loss = 0.4 + 3.2 * math.exp(-6 * done) + 0.08 * float(random.standard_normal())
    first = done <= 0.5
    lr = min(step / max(steps // 100, 1), 1.0) * (
        0.0015 - 0.001 * done if first else 0.001 * 2 * (1 - done) + 1.5e-5
    )
    time_ms = 400 + 20 * float(random.standard_normal()) + (300 if step % 97 == 0 else 0)
    return {
        "step": step,
        "tokens_seen": step * 2210,
        "loss": 7.93 if step == steps // 3 else loss,
        "lr": lr,
        "wd": 0.1 if first else 0.0,
        "grad_norm": float(np.exp(random.normal(0.3 - done, 0.4))),
        "step_time_ms": time_ms,
        "tokens_per_sec": 2210 / (time_ms / 1e3),
        "gpu_mem_allocated_gb": 0.0,
        "process_mem_gb": 0.41,
        "anomaly_flag": None,
    }


def _probe(step: int, steps: int, layers: int, first: bool, random: np.random.Generator) -> dict[str, Any]:
    row: dict[str, Any] = {"step": step}
    shares, changes = [], []
    for layer in range(layers):
        for place, matrix in enumerate(MATRICES):
            name = f"L{layer}_{matrix}"
            zero = (
                0.31
                + 0.1 * (step / steps) * (1 + 0.3 * place + 0.1 * layer) / 2
                + 0.003 * float(random.standard_normal())
            )
            flipped = (
                None
                if first
                else 0.02
                * math.exp(-4 * step / steps)
                * (1 + 0.3 * place)
                * float(np.exp(0.2 * random.standard_normal()))
            )
            row |= {
                f"{name}_neg1_pct": (1 - zero) / 2,
                f"{name}_zero_pct": zero,
                f"{name}_pos1_pct": (1 - zero) / 2,
                f"{name}_flipped_pct": flipped,
            }
            row |= {
                f"{name}_scale": [0.02, 0.021],
                f"{name}_dead_rows": 0,
                f"{name}_dead_cols": 0,
                f"{name}_act_absmax": 4.2,
                f"{name}_act_clip_pct": 0.0,
            }
            shares.append(zero)
            changes.append(flipped)
    zero = sum(shares) / len(shares)
    flips = None if first else sum(one or 0.0 for one in changes) / len(changes)
    return row | {
        "neg1_pct": (1 - zero) / 2,
        "zero_pct": zero,
        "pos1_pct": (1 - zero) / 2,
        "flipped_pct": flips,
        "dead_rows": 0,
        "dead_cols": 0,
    }


def _evaluation(step: int, steps: int) -> dict[str, Any]:
    done = step / steps
    loss = 0.45 + 3.2 * math.exp(-6 * done)
    right = 1 / (1 + math.exp(-12 * (done - 0.5)))
    return {
        "step": step,
        "eval_loss": loss,
        "train_loss": loss - 0.05,
        "train_eval_gap": -0.05,
        "bits_per_byte": loss / math.log(2),
        "exact_match": right,
        "exact_match_cases": 200,
        "exact_match_add": right**0.8,
        "exact_match_add_cases": 100,
        "exact_match_sub": right**1.4,
        "exact_match_sub_cases": 100,
    }


def _sample(step: int, prompt: str, mode: str, random: np.random.Generator) -> dict[str, Any]:
    text = "42" if prompt[0].isdigit() else " " + " ".join(random.choice(WORDS, 30))
    return {
        "step": step,
        "prompt": prompt,
        "mode": mode,
        "seed": step,
        "generated_text": prompt + text,
        "generated_ids": list(range(50)),
        "mean_entropy": 2.5 * float(random.random()),
        "max_repetition": 4,
        "unique_tokens": 20,
        "total_tokens": 50,
        "logits_first_10": [
            {"pos": at, "entropy": 1.0, "top5_tokens": list("abcde"), "top5_probs": [0.2] * 5}
            for at in range(10)
        ],
    }


def _verdict(root: Path, steps: int, verdict: str) -> None:
    value = 0.987 if verdict == "PASS" else 0.61
    one = {
        "name": "exact_match >= 0.95",
        "metric": "exact_match",
        "value": value,
        "threshold": 0.95,
        "met": verdict == "PASS",
    }
    metrics = {"nats_per_token": 0.45, "bits_per_byte": 0.65, "exact_match": value, "exact_match_cases": 2000}
    _write_json(
        root / "eval" / "verdict.json",
        {"run": root.name, "step": steps, "verdict": verdict, "metrics": metrics, "criteria": [one]},
    )


def _write(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value), encoding="utf-8")
