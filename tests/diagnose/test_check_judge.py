"""Stand-ins for a model: one that knows the answers, and ones that are wrong in one place."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch

from bitnet.diagnose.check_judge import Oracle, judged_as, spoiled
from bitnet.generate.decode import continue_prompts
from bitnet.nn.transformer import BitNetTransformer

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
    found = spoiled(TEXT, 9, lambda token: token + 10)
    assert found == {
        "the last character is another": (5, 6, 4, 7, 18, 9),
        "the end mark does not come": (5, 6, 4, 7, 8, 19, 19),
        "a character follows the answer": (5, 6, 4, 7, 8, 18, 9),
    }
    assert torch.tensor(found["the last character is another"]).ne(torch.tensor(TEXT)).sum() == 1
