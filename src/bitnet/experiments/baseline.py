"""The 95M baseline: the plan's full-size model on web text, and what it names to try when that fails.

`reference` is the verified configuration (60,000 updates of 32 x 1,024 tokens, 20.6 tokens for each
parameter); `400k` the earlier one (400,000 updates of 2 x 16 x 256). `pilot` is the first thousand updates'
worth: is the loss on its way? `smoke` is the same code and size on a CPU with any text. Where the model
prints garbage the plan suspects the vocabulary (`tinystories_2k`: 95M on children's stories, 2,048 entries)
or the size (`200m`).

The plan takes LLaMA-2's tokenizer, which is gated: it is taken where the user has access to it, and otherwise
a byte-level BPE of the same size is made from the run's own text (`--tokenizer own` asks for that). The start
of a run says which, meta/config.json too.
"""

from __future__ import annotations

import dataclasses

from bitnet.experiments.ready_text import plain, ready, training_text
from bitnet.experiments.real_text import HEADLINE, TextTask
from bitnet.experiments.shapes import BASELINE
from bitnet.experiments.text_data import TextData, text_data
from bitnet.experiments.tinystories import HUB as TINYSTORIES_HUB
from bitnet.nn.config import BitNetConfig
from bitnet.train.config import RunConfig, TrainConfig
from bitnet.train.experiment import Criterion, Experiment, Variant
from bitnet.units import parameters_label

HUB = "HuggingFaceFW/fineweb-edu"
PROMPTS = (  # the plan's five
    "The quick brown fox",
    "In the beginning",
    "Once upon a time",
    "The capital of France",
    "Machine learning is",
)
REFERENCE = RunConfig(
    model=BASELINE,
    train=TrainConfig(
        seq_len=1_024,
        batch_size=32,
        total_steps=60_000,
        warmup_steps=375,
        log_every=50,
        eval_every=1_000,
        eval_cases=8,
        sample_every=1_000,
        checkpoint_every=5_000,
    ),
    # 1,900 windows each 1,000 updates are 2% of the time (a forward pass is a third of an update); the plan's
    # 10,000 at the end
    data=TextData(dataset=HUB, tokenizer="auto", eval_sequences=1_900, judged_sequences=10_000),
)
EARLIER = dataclasses.replace(
    REFERENCE,
    train=dataclasses.replace(
        REFERENCE.train, seq_len=256, batch_size=16, grad_accumulation_steps=2, total_steps=400_000
    ),
)
PILOT = dataclasses.replace(
    REFERENCE,
    train=dataclasses.replace(
        REFERENCE.train.with_total_steps(1_000),
        warmup_steps=100,
        eval_every=250,
        sample_every=250,
        probe_every=250,
        checkpoint_every=250,
    ),
    data=TextData(dataset=HUB, tokenizer="auto", eval_sequences=400, judged_sequences=2_000),
)
SMOKE = dataclasses.replace(
    REFERENCE,
    train=dataclasses.replace(
        REFERENCE.train.with_total_steps(200),
        batch_size=4,
        warmup_steps=20,
        log_every=5,
        eval_every=100,
        eval_cases=2,
        sample_every=100,
        probe_every=100,
        checkpoint_every=50,
        keep_last=1,
    ),
    data=TextData(
        dataset=HUB,
        tokenizer="auto",
        max_documents=3_000,
        allow_repeat=True,
        eval_sequences=8,
        judged_sequences=16,
        judged_prompts=20,
    ),
)
TINYSTORIES_2K = dataclasses.replace(
    REFERENCE,
    model=dataclasses.replace(BASELINE, vocab_size=2_048, max_seq_length=256),
    train=dataclasses.replace(REFERENCE.train, seq_len=256, total_steps=30_000),
    data=TextData(dataset=TINYSTORIES_HUB, eval_sequences=400, judged_sequences=2_000),
)
LARGER = dataclasses.replace(
    REFERENCE,
    model=BitNetConfig(
        vocab_size=32_000,
        hidden_size=1024,
        num_layers=11,
        num_heads=16,
        num_kv_heads=8,
        ffn_hidden_size=4096,
        max_seq_length=1024,
    ),
    train=dataclasses.replace(REFERENCE.train, total_steps=126_000, batch_size=16, grad_accumulation_steps=2),
)
WEB = (Criterion("bits_per_byte", at_most=1.25), Criterion("known_words", at_least=0.97))
"""An expectation: a ternary model of 73.7M parameters reached 1.182 bits/byte on FineWeb after 3.4B tokens
(parameter-golf's ternary records)."""
LEARNS = (Criterion("nats_per_token", at_most=8.0),)
"""For a few hundred updates: well below ln(32,000) = 10.37, which a broken model does not leave."""


class WebTask(TextTask):
    """Web text, and what the model makes of the plan's prompts."""

    prompts = PROMPTS


def run_name(config: RunConfig) -> str:
    """bitnet_95M_fineweb_T1.97B: size, what it reads, and how many tokens, as the plan writes it."""
    data = text_data(config)
    source = (
        data.data[0].rstrip("/").rpartition("/")[2].split(".")[0]
        if data.data
        else data.dataset.rpartition("/")[2].removesuffix("-edu")
    )
    size = parameters_label(config.model.total_params)
    return f"bitnet_{size}_{plain(source)[:20].lower() or 'files'}_T{short(config.train.total_tokens)}"


def short(count: int) -> str:
    """Three digits and a letter: 1.97B."""
    for size, letter in ((10**9, "B"), (10**6, "M"), (10**3, "K")):
        if count >= size:
            return f"{count / size:.3g}{letter}"
    return str(count)


experiment = Experiment(
    name="baseline",
    label="95M",
    about="full size on web text: a compute-optimal run of 95M parameters",
    variants={
        "reference": Variant(REFERENCE, WEB, "the plan's"),
        "400k": Variant(EARLIER, WEB, "an earlier plan's"),
        "pilot": Variant(
            PILOT, (Criterion("nats_per_token", at_most=6.0),), "1,000 updates: is the loss on its way?"
        ),
        "smoke": Variant(SMOKE, LEARNS, "the same code and size on a CPU, 200 small updates"),
        "tinystories_2k": Variant(
            TINYSTORIES_2K,
            (Criterion("nats_per_token", at_most=2.0),),
            "children's stories, 2,048 entries: is it the vocabulary?",
        ),
        "200m": Variant(LARGER, WEB, "twice the parameters, 20 tokens each: is it the size?"),
    },
    open=WebTask,
    cpu_variant="smoke",
    ready=ready,
    training_text=training_text,
    headline=HEADLINE,
    run_name=run_name,
)
