"""Stand-ins for a model: one that knows the answers, and ones that are wrong in one place."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from bitnet.diagnose.check_judge import Oracle, answer_start, judged, judged_as, spoiled
from bitnet.generate.decode import continue_prompts
from bitnet.nn.transformer import BitNetTransformer
from bitnet.train.experiment import Criterion

TEXT = (5, 6, 4, 7, 8, 9)  # 5 6 4 asks, 7 8 answers, 9 ends


def test_an_oracle_says_what_it_was_told(tiny_model: BitNetTransformer) -> None:
    oracle = Oracle(tiny_model, [TEXT])
    (answer,) = continue_prompts(oracle, [[5, 6, 4]], max_new_tokens=3, stop_id=9)  # type: ignore[arg-type]
    assert answer == [7, 8, 9]
    stuck = Oracle(tiny_model, (), otherwise=3)
    (answer,) = continue_prompts(stuck, [[5, 6, 4]], max_new_tokens=4, stop_id=9)  # type: ignore[arg-type]
    assert answer == [3, 3, 3, 3]


def test_an_oracle_reads_whole_texts_too(tiny_model: BitNetTransformer) -> None:
    """Judges that rate sentences give the model whole rows, without a cache."""
    oracle = Oracle(tiny_model, [TEXT])
    assert oracle(torch.tensor([TEXT[:-1]])).argmax(-1).tolist() == [list(TEXT[1:])]


def test_a_judge_that_asks_for_more_than_a_stand_in_has_is_no_finding(tiny_model: BitNetTransformer) -> None:
    class Task:
        def judge(self, model: Any, limit: int | None = None) -> dict[str, float]:
            return {"exact_match": float(model.blocks[0].attention.heads)}

    subject: Any = SimpleNamespace(task=Task())
    assert judged_as(subject, Oracle(tiny_model, [TEXT]), "exact_match") is None
    assert judged_as(subject, tiny_model, "exact_match") == 4.0  # type: ignore[arg-type]


def test_spoiled_answers_differ_in_one_place_each() -> None:
    """9 ends an answer; 7 and 8 occur in answers, so a wrong character is one of them."""
    found = spoiled([TEXT], 9, used=[7, 8])
    assert found == {
        "the last character is another": {(5, 6, 4, 7, 7, 9)},
        "the end mark does not come": {(5, 6, 4, 7, 8, 7, 7)},
        "a character follows the answer": {(5, 6, 4, 7, 8, 7, 9)},
    }


def test_where_an_answer_begins() -> None:
    """After the last place that looks like the end of a prompt; the end mark is no answer."""
    assert answer_start(TEXT, [6, 4]) == 3
    assert answer_start((6, 4, 6, 4, 7, 9), [6, 4]) == 4
    assert answer_start((5, 7, 8, 6, 4, 9), [6, 4]) == 0
    assert answer_start(TEXT, []) == 0


@pytest.mark.parametrize(
    ("figures", "sound", "passes"),
    [
        ([{"exact_match": 0.0, "exact_match_cases": 6.0}] * 2, True, False),
        ([{"exact_match": 1.0, "exact_match_cases": 6.0}] * 2, True, True),
        ([{"exact_match": 0.0}] * 2, False, False),
        ([{"exact_match": math.nan, "exact_match_cases": 6.0}] * 2, False, False),
        (
            [{"exact_match": 0.0, "exact_match_cases": 6.0}, {"exact_match": 0.5, "exact_match_cases": 6.0}],
            False,
            False,
        ),
    ],
)
def test_a_judge_counts_repeats_and_is_not_satisfied_with_a_fresh_model(
    figures: list[dict[str, float]], sound: bool, passes: bool
) -> None:
    told = iter(figures)
    task = SimpleNamespace(judge=lambda model, limit: next(told))
    criteria = (Criterion("exact_match", at_least=0.9),)
    subject: Any = SimpleNamespace(task=task, criteria=criteria, fresh=True, model=None)
    counts, untrained = judged(subject)
    assert counts.ok is sound
    assert untrained.ok is not passes
