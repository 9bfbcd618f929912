"""TinyStories: can a small ternary model learn to write English?

Short stories in the words of a four-year-old (arXiv:2305.07759), on which float models of 1 to 30 million
parameters write whole sentences. The plan's test of the infrastructure on natural language: if this works, a
larger model that prints garbage has another problem. Judged by what the plan calls working, as numbers: the
loss on stories never seen; grammar, by minimal pairs (evaluate/grammar.py); and 200 continuations of their
beginnings: are the words words, do sentences begin with a capital and end with a mark, does a text get stuck
in a loop?

`reference` is the plan's recipe (AdamW, two stages, 30,000 updates of 32 x 256 tokens); `best` spends the
same tokens with Muon and sub-norms; `quick` is a smaller model that two processor cores train in about a
quarter of an hour on 4 MB, several times over. A small model after a few epochs does not see that it repeats
itself, and loops in greedy text; so `quick` and `best` learn to expect recent tokens less
(`train.stage1_unlikelihood`, `train.stage2_unlikelihood`; docs/log.md has what else was tried). The weight of
`best` is a guess.
"""

from __future__ import annotations

import dataclasses

from bitnet.evaluate.grammar import grammar_metrics, minimal_pairs
from bitnet.experiments.ready_text import ready, training_text
from bitnet.experiments.real_text import HEADLINE, TextTask
from bitnet.experiments.recipes import QUICK_MUON
from bitnet.experiments.shapes import TINYSTORIES
from bitnet.experiments.text_data import TextData
from bitnet.generate.decoder import Decoder
from bitnet.nn.config import BitNetConfig
from bitnet.train.config import RunConfig, TrainConfig
from bitnet.train.experiment import Criterion, Experiment, Variant

HUB = "roneneldan/TinyStories"
PROMPTS = (  # the plan's three, and two that ask for an action and for speech
    "Once upon a time",
    "There was a little",
    "One day a boy",
    "Lily and her mom went to the",
    'The dog looked at Tom and said, "',
)
REFERENCE = RunConfig(
    model=TINYSTORIES,
    train=TrainConfig(
        seq_len=256,
        batch_size=32,
        total_steps=30_000,
        warmup_steps=250,
        log_every=100,
        eval_every=1_000,
        eval_cases=8,
        sample_every=1_000,
        checkpoint_every=5_000,
    ),
    data=TextData(dataset=HUB, judged_sequences=2_000),
)
BEST = dataclasses.replace(
    REFERENCE,
    model=dataclasses.replace(TINYSTORIES, sub_norm=True),
    train=dataclasses.replace(
        REFERENCE.train,
        optimizer="muon",
        schedule="warm_down",
        final_lr=0.0,
        stage1_wd=0.0,
        stage2_unlikelihood=1.0,
    ),
)
QUICK = RunConfig(
    model=BitNetConfig(
        vocab_size=2048,
        hidden_size=256,
        num_layers=4,
        num_heads=4,
        num_kv_heads=2,
        ffn_hidden_size=768,
        max_seq_length=256,
        sub_norm=True,
    ),
    train=dataclasses.replace(
        QUICK_MUON,
        batch_size=8,
        total_steps=1_600,
        warmup_steps=50,
        stage1_unlikelihood=2.0,
        stage2_unlikelihood=2.0,
        compile="on",
        eval_every=400,
        eval_cases=4,
        sample_every=800,
        probe_every=400,
        checkpoint_every=400,
    ),
    data=TextData(dataset=HUB, max_documents=5_000, held_out_one_in=50, allow_repeat=True),
)
WORDS = (Criterion("known_words", at_least=0.98), Criterion("greedy_looping", at_most=0.0))
WORKING = (
    Criterion("nats_per_token", at_most=2.0),
    Criterion("grammar", at_least=0.9),
    Criterion("sentences_capitalised", at_least=0.98),
    Criterion("sentences_ended", at_least=0.98),
    Criterion("greedy_looping", at_most=0.01),
    Criterion("repeating", at_most=0.01),
    Criterion("known_words", at_least=0.98),
    Criterion("soup", at_most=0.0),
)
"""What the plan calls working: a loss of 1.5 to 2.0, grammar, capitals and punctuation, no loops, no
gibberish. The plan gives words; the thresholds are ours, just below what 200 held-out stories reach when they
are judged as if a model had written them: capitals and ends 1.0, known words 0.997, no soup, and one that
ends with "Chop, chop, chop" and so counts as repeating and as a loop (tests/experiments/test_tinystories.py).
The one for grammar is a guess until a run of this size is measured: `quick` has 0.81 after 128 updates, when
word order is learned and agreement is not (docs/log.md)."""


class StoriesTask(TextTask):
    """Children's stories, with grammar among the figures of the judge."""

    prompts = PROMPTS

    def judge(self, model: Decoder, limit: int | None = None) -> dict[str, float]:
        """The figures of every text, and the share of minimal pairs in which the grammatical sentence is the
        likelier one.
        """
        return {
            **super().judge(model, limit),
            **grammar_metrics(model, self.tokenizer, minimal_pairs()[:limit]),
        }


experiment = Experiment(
    name="tinystories",
    label="12M",
    about="natural language: does it write sentences?",
    variants={
        "quick": Variant(
            QUICK,
            WORDS,
            "a quarter of an hour on two CPU cores: a small model, 4 MB of stories several times",
        ),
        "reference": Variant(REFERENCE, WORKING, "the plan's: AdamW, two stages"),
        "best": Variant(BEST, WORKING, "Muon, sub-norms; same tokens"),
    },
    open=StoriesTask,
    ready=ready,
    training_text=training_text,
    headline=HEADLINE,
)
