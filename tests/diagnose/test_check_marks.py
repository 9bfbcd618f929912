"""What is scored, where examples end, and what says the same: by worked example."""

from __future__ import annotations

import torch

from bitnet.data.stream import Batch
from bitnet.diagnose import check_marks
from bitnet.diagnose.check_marks import equal_documents, marked, swapped


def row(ids: list[int], scored: list[int]) -> Batch:
    tokens, mask = torch.tensor([ids]), torch.tensor([scored], dtype=torch.bool)
    return Batch(tokens[:, :-1], tokens[:, 1:], mask[:, 1:])


def test_examples_of_a_row() -> None:
    """9 ends an example; the last one is cut and left out."""
    first, second = marked(row([5, 6, 7, 9, 5, 8, 9, 5], [0, 0, 1, 1, 0, 1, 1, 0]), end=9, pad_id=0)
    assert (first.ids, first.scored, first.first) == ([5, 6, 7, 9], [False, False, True, True], True)
    assert (second.ids, second.scored, second.first) == ([5, 8, 9], [False, True, True], False)


def test_an_answer_is_scored_with_its_end_and_its_prompt_is_not() -> None:
    def ok(scored: list[int]) -> bool:
        (one,) = marked(row([5, 6, 4, 7, 9], scored), end=9, pad_id=0)
        return check_marks._answer_scored(one, before=[6, 4])

    assert ok([0, 0, 0, 1, 1])
    assert not ok([0, 0, 0, 1, 0]), "the end mark is to be learned"
    assert not ok([0, 0, 1, 1, 1]), "the prompt's last token is not"
    assert not ok([0, 0, 0, 0, 1]), "the answer is"
    assert not ok([0, 0, 0, 0, 0])


def test_operands_changed_over() -> None:
    assert swapped("3 + 4 = 7\n") == "4 + 3 = 7\n"
    assert swapped("3 + 3 = 6\n") is None
    assert swapped("(3 + 4) * 2 = 14\n") is None
    assert swapped("def add(x, y):\n") is None


def test_copies_of_documents_are_equal() -> None:
    assert equal_documents().ok
