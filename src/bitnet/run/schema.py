"""What stands in a run directory: every file, key and unit.

docs/run-directory.md is generated from this file:

    python -m bitnet.run.schema > docs/run-directory.md

A test trains a small run and holds its files to these keys.
"""

from __future__ import annotations

SCALARS = {
    "step": "update number, from 1",
    "tokens_seen": "targets read so far, padding included",
    "loss": (
        "mean cross-entropy of the update's scored tokens, before the update (nats/token); null if not finite"
    ),
    "penalty": (
        "minimised beside the loss: the weighted unlikelihood of recent tokens (mean, nats/token), or 0"
    ),
    "lr": "learning rate of this update (AdamW's; Muon's follows it in proportion)",
    "wd": "weight decay of this update",
    "grad_norm": "global L2 norm of the gradient before clipping; null if not finite",
    "step_time_ms": "wall time of the update: data, forward, backward, optimizer (ms)",
    "tokens_per_sec": "targets per second of this update",
    "gpu_mem_allocated_gb": "memory in tensors on the GPU (GB of 10^9 bytes); 0 on a CPU",
    "gpu_mem_reserved_gb": "memory held by the allocator on the GPU (GB); 0 on a CPU",
    "process_mem_gb": "resident memory of the process (GB); null where the system does not tell",
    "mfu": (
        "model-FLOP utilisation against the device's dense bf16 peak (share); null where the peak is not "
        "known"
    ),
    "anomaly_flag": (
        "names of all anomaly rules that fired at this update, separated by commas; null if none did"
    ),
    "refused": (
        "why the update was not applied: nan_inf_loss, nan_inf_grad or loss_scale_overflow; null if it was"
    ),
    "loss_scale": "what the loss was multiplied by before the backward pass; null but for fp16",
}
MATRIX = {
    "neg1_pct": "share of codes that are -1 (0..1)",
    "zero_pct": "share of codes that are 0 (0..1)",
    "pos1_pct": "share of codes that are +1 (0..1)",
    "flipped_pct": "share of codes that changed since the last probe, or since the start (0..1)",
    "scale": "mean magnitude of each logical matrix (list: q, k, v or gate, up or one)",
    "dead_rows": "output rows whose codes are all 0 (count)",
    "dead_cols": "input columns whose codes are all 0 (count)",
    "act_absmax": "largest input magnitude on the probe rows",
    "act_clip_pct": "share of int8 input codes at the limit of 127 (0..1)",
}
EVALUATION = {
    "step": "update number",
    "eval_loss": "loss on the frozen held-out set (nats/token)",
    "train_loss": "mean training loss of the last 100 updates (nats/token)",
    "train_eval_gap": "train_loss minus eval_loss (nats/token)",
    "bits_per_byte": "held-out loss per byte of text; comparable between vocabularies",
}
SAMPLES = {
    "step": "update number",
    "prompt": "the fixed prompt",
    "mode": "greedy, typical (temperature 0.9, top-p 0.95) or stress (temperature 1.5, top-k 10)",
    "seed": "seed of this sample: SHA-256 of prompt number, step and mode",
    "generated_text": "prompt and continuation",
    "generated_ids": "token ids of both",
    "mean_entropy": (
        "mean entropy of the next-token distribution over the first ten new positions (nats); null if there "
        "was none"
    ),
    "max_repetition": "how often the most frequent token occurs in the continuation",
    "unique_tokens": "distinct tokens in the continuation",
    "total_tokens": "tokens in the continuation",
    "logits_first_10": (
        "for each of the first ten new positions: pos, entropy (nats), top5_tokens, top5_probs"
    ),
    "non_finite": "whether the model's logits became NaN or infinite, which ended the sample",
}
PROVENANCE = {
    "git_commit": "commit of the program; null outside a checkout",
    "git_dirty": "whether it had uncommitted changes",
    "python_version": "",
    "torch_version": "",
    "cuda_version": "null on a CPU build",
    "gpu_model": "null without a GPU",
    "gpu_count": "",
    "seeds": "seed of every random generator",
    "timestamp_utc": "when the run began",
    "run_id": "",
    "device": "cpu or cuda",
    "cpu_model": "",
    "threads": "threads of torch; results repeat bit for bit only for equal threads, version and device",
    "platform": "",
    "linear_product": "how ternary layers multiply: packed, int8 or float; a resumed run goes on with it",
    "input_gradient": "how packed layers compute the gradient of their inputs: int8 or float; as above",
    "weight_gradient": (
        "number format in which ternary layers multiply for the gradient of their weights: fp32, bf16 or "
        "fp16; as above"
    ),
    "gradient_dtype": (
        "number format of autocast and of gradient products: float32, bfloat16 or float16; what precision "
        "auto chose, and a resumed run goes on with"
    ),
    "compiled": "whether torch.compile made the model that trained",
    "fused_loss": "whether head and cross-entropy were computed together; a resumed run goes on with it",
    "fused_blocks": "whether norms, gates and rotary positions were fused with their products; as above",
    "precision_timed": (
        "fp32_ms, bf16_ms: estimated forward and backward of a micro-batch, which chose the format on a CPU; "
        "remembered: whether an earlier run measured them; null where nothing was measured"
    ),
}
FINGERPRINT = {
    "dataset_name": "",
    "dataset_size_tokens": (
        "tokens of the whole corpus: as its publisher gives it for a data set of the hub, counted for files "
        "and generated tasks (a table's examples once); null where neither is known"
    ),
    "prepared_tokens": "tokens that the run draws from, of the corpus",
    "hf_revision": "revision on the hub; null for generated data",
    "first_1000_token_ids_sha256": "of the first 1,000 token ids as little-endian int64",
    "table_sha256": "of all token ids (generated tasks)",
    "examples": "distinct training examples (generated tasks)",
    "sampling_strategy": (
        "how documents are taken from the corpus: streaming_random (files of the hub in an order of the "
        "seed, shuffled in blocks), every_document, first_documents; for generated tasks the same as "
        "row_order"
    ),
    "row_order": "how rows are taken from the prepared tokens",
    "tokenizer_vocab_size": "",
    "expected_repetition_rate": (
        "tokens that the run reads for each of the corpus; null where its size is not known"
    ),
    "epochs": "times that the run goes through the prepared tokens; up to 1 nothing is repeated",
    "evaluation_sequences": "rows of the frozen evaluation set",
    "evaluation_sha256": "of eval/frozen_set.safetensors",
}
TEXT_FINGERPRINT = {
    **{key: meaning for key, meaning in FINGERPRINT.items() if key not in ("table_sha256", "examples")},
    "tokenizer_sha256": "of tokenizer.json, or of what defines the characters",
    "documents": "training documents",
    "text_bytes": "UTF-8 bytes of the training documents",
    "windows_per_epoch": "different rows",
    "train_sha256": "of each shard's token ids",
    "held_out_documents": "documents that are never trained on",
    "held_out_tokens": "their tokens",
    "held_out_sha256": "of each held-out shard's token ids",
}
"""The same of experiments on real text."""
STATE = {
    "step": "updates done",
    "tokens_seen": "targets read",
    "loss": "loss of the last update",
    "model_state_dict": "file that holds the weights",
    "optimizer_state_dict": "file that holds the optimizer state",
    "lr_scheduler_state": (
        "current_step, peak_lr, stage2_lr, final_lr; for readers: rates are a function of the step"
    ),
    "wd_scheduler_state": "current_step, stage1_wd, stage2_wd",
    "rng_states": "python, numpy, torch, torch_cuda",
    "refused_in_a_row": "updates before this checkpoint that were refused because they were not finite",
    "loss_scale": "scale, and good_updates since it last moved; null but for fp16",
    "skipped_data": "step and skipped_updates of every line of metrics/roll_backs.jsonl so far",
    "config": "where the configuration is",
    "lines": (
        "for each file of JSON lines: bytes, lines and SHA-256 of what was written to it up to this update; "
        "checked on resume"
    ),
}
ROLL_BACKS = {
    "step": (
        "first update that was done again, with other data; its line in scalars.jsonl has the anomaly_flag "
        "roll_back"
    ),
    "event": "roll_back",
    "reason": "nan_inf_loss, nan_inf_grad, or nan_inf_weights",
    "refused_steps": "updates that were refused in a row",
    "failed_step": "last update before the run went back",
    "checkpoint_step": "update whose checkpoint it went back to",
    "skipped_updates": "for how many updates data is left out from `step` on",
    "skipped_rows": "first and last number of the rows that are left out",
    "time_unix": "seconds since 1970",
}
SESSION = {
    "step": "update after which the process took over; 0 for the one that began the run",
    "timestamp_utc": "when it began",
    **dict.fromkeys(
        (
            "git_commit git_dirty python_version platform threads torch_version device cpu_model gpu_model "
            "gpu_count linear_product input_gradient weight_gradient gradient_dtype compiled fused_loss "
            "fused_blocks"
        ).split(),
        "as in meta/provenance.json",
    ),
}
STATUS = {
    "state": "running, done, stopped (by a signal) or failed",
    "why": "the signal, and whether it left no checkpoint of the last update, or the error; null otherwise",
    "step": "last update that was reported",
    "total_steps": "",
    "pid": "process that wrote it",
    "started_unix": "seconds since 1970",
    "updated_unix": "seconds since 1970",
}
FILES: dict[str, tuple[str, dict[str, str]]] = {
    "metrics/scalars.jsonl": ("one line per update", SCALARS),
    "metrics/quantization.jsonl": (
        "one line every `probe_every` updates. The keys below summarise the model (without `scale`); with "
        "the prefix of a layer (`L0_attn_qkv_`, `L0_attn_out_`, `L0_ffn_gate_up_`, `L0_ffn_down_`, "
        "`L1_...`) they are that matrix's",
        {"step": "update number", **MATRIX},
    ),
    "metrics/roll_backs.jsonl": (
        "one line each time that the run went back to a checkpoint because values were not finite; read on "
        "resume, never cut back",
        ROLL_BACKS,
    ),
    "eval/eval_results.jsonl": (
        "one line every `eval_every` updates; the experiment's own metrics and their `_cases` follow",
        EVALUATION,
    ),
    "samples/samples.jsonl": ("one line per prompt and mode every `sample_every` updates", SAMPLES),
    "meta/provenance.json": ("written once at the start", PROVENANCE),
    "meta/dataset_fingerprint.json": ("written once at the start, by generated tasks", FINGERPRINT),
    "meta/dataset_fingerprint.json of real text": (
        "the same file of experiments on real text",
        TEXT_FINGERPRINT,
    ),
    "checkpoints/step_NNNNNN/state.json": ("beside model, optimizer and observers.safetensors", STATE),
    "meta/sessions.jsonl": (
        "one line for each process that trained the run; a resume says what differs from the line before",
        SESSION,
    ),
    "status.json": ("replaced at every log interval and at the end", STATUS),
}
REST = {
    "meta/config.json": (
        "`experiment`, `variant`, and the sections `model`, `training` and `data` with every setting "
        "and what follows from them"
    ),
    "meta/signature.json": (
        "HMAC-SHA256 of meta/config.json with a key of this user's account (see the end of this page)"
    ),
    "meta/manifest.json": (
        "size and SHA-256 of `config.json`, `provenance.json`, `dataset_fingerprint.json` and the "
        "tokenizer's files, written once; every command that reads the run refuses one of them that was "
        "altered"
    ),
    "tokenizer/": "the tokenizer the run was trained with",
    "checkpoints/step_NNNNNN/manifest.json": (
        "size and SHA-256 of the other files, written last; without it a checkpoint does not count"
    ),
    "eval/frozen_set.safetensors": (
        "the held-out batches that every evaluation inside training is measured on"
    ),
    "eval/verdict.json": "the last result of `bitnet evaluate`",
    "eval/diagnosis.json": "the last result of `bitnet diagnose`",
    "anomalies/step_NNNNNN_<event>/": "`README.md` says what fired and where to look; `batch.json`, "
    "`grad_norms.json`, `prompt_<...>_top20.json`, `L<n>_attn_activations.json` and `.png`, "
    "`L<n>_qkv_quant_dist.json` and `.png`",
    "tensorboard/, wandb/": "copies of the metrics for these trackers, only with `--mirror`",
}

FOREIGN = """
## Your own runs, and those of others

A run is your own if `meta/signature.json` fits `meta/config.json` and your account's key, which the first
training makes in `$XDG_STATE_HOME/bitnet/key` (`~/.local/state/bitnet/key`). It stays your own where it is
moved or copied. A run from somebody else, one whose configuration was edited, and one made before signatures
existed have no valid signature. They are data:

* No command executes a file because a run names it. A run that was trained from a file of your own is
  evaluated with `bitnet evaluate RUN --experiment FILE.py`; `diagnose`, `compare`, `play` and
  `train --from` take the same flag.
* `evaluate`, `diagnose` and `train --from` neither read nor write the files, folders and data sets that a
  foreign configuration names (`data.data`, `data.cache_dir`, `data.tokenizer`, `training.start_from` and the
  like), unless the command says `--trust`. `bitnet evaluate RUN --data FILE` measures the loss on a text of
  yours without it.
* Your own runs are read as before: `bitnet evaluate RUN` opens the data and the cache that the run was
  trained from.

[All pages](README.md)
"""


def page() -> str:
    """docs/run-directory.md."""
    lines = [
        "# The run directory",
        "",
        "Everything a run leaves behind stands in `runs/<run_id>/`. Files of JSON lines are appended while "
        "training, cut back",
        "to the checkpoint on resume, and read leniently: a line that is half-written or foreign is skipped "
        "and counted.",
        "Names that end in `_pct` are shares from 0 to 1. This page is generated: `python -m "
        "bitnet.run.schema`.",
    ]
    for name, (about, keys) in FILES.items():
        lines += [
            "",
            f"## `{name}`",
            "",
            f"{about[0].upper()}{about[1:]}.",
            "",
            "| key | meaning |",
            "|---|---|",
        ]
        lines += [f"| `{key}` | {meaning} |" for key, meaning in keys.items()]
    lines += ["", "## Other files", "", "| file | content |", "|---|---|"]
    lines += [f"| `{name}` | {meaning} |" for name, meaning in REST.items()]
    return "\n".join([*lines, "", *FOREIGN.strip().splitlines()])


if __name__ == "__main__":
    import sys

    sys.stdout.write(page() + "\n")
