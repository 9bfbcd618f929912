"""What is scored, where examples end, and what says the same: by worked example."""

from __future__ import annotations

import torch

from bitnet.data.stream import Batch
from bitnet.diagnose.check_marks import (
    all_scored,
    answer_scored,
    equal_documents,
    examples_differ,
    marked,
    one_answer,
    swapped,
)


def row(ids: list[int], scored: list[int]) -> Batch:
    tokens, mask = torch.tensor([ids]), torch.tensor([scored], dtype=torch.bool)
    return Batch(tokens[:, :-1], tokens[:, 1:], mask[:, 1:])


def test_examples_of_a_row() -> None:
    """9 ends an example; the last one is cut and left out."""
    first, second = marked(row([5, 6, 7, 9, 5, 8, 9, 5], [0, 0, 1, 1, 0, 1, 1, 0]), end=9)
    assert (first.ids, first.scored) == ([5, 6, 7, 9], [False, False, True, True])
    assert (second.ids, second.scored) == ([5, 8, 9], [False, True, True])


def test_an_answer_is_scored_with_its_end_and_its_prompt_is_not() -> None:
    def ok(scored: list[int]) -> bool:
        (one,) = marked(row([5, 6, 4, 7, 9], scored), end=9)
        return answer_scored(one, before=[6, 4])

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


def test_all_text_is_scored_and_no_padding() -> None:
    """0 pads; one 0 at the end of a row may be the end of a text, two are padding."""
    assert all_scored(row([5, 6, 7, 8, 9], [0, 1, 1, 1, 1]), pad_id=0) == 1.0
    assert all_scored(row([5, 6, 7, 0, 0], [0, 1, 1, 0, 0]), pad_id=0) == 1.0
    assert all_scored(row([5, 6, 7, 8, 0], [0, 1, 1, 1, 1]), pad_id=0) == 1.0
    assert all_scored(row([5, 6, 7, 8, 9], [0, 1, 0, 1, 1]), pad_id=0) == 0.75
    assert all_scored(row([5, 6, 7, 0, 0], [0, 1, 1, 1, 1]), pad_id=0) == 0.5


def test_a_prompt_with_two_answers_is_seen() -> None:
    scored = [0, 0, 1, 1]
    assert one_answer(marked(row([5, 6, 7, 9] * 2, scored * 2), 9)).ok
    found = one_answer(marked(row([5, 6, 7, 9, 5, 6, 8, 9], scored * 2), 9))
    assert (found.ok, found.value) == (False, 1)


def test_a_row_of_one_example_again_and_again_is_seen() -> None:
    def rows(of_a_row: list[int]) -> Batch:
        tokens = torch.tensor([of_a_row] * 8)
        return Batch(tokens[:, :-1], tokens[:, 1:], torch.ones(8, len(of_a_row) - 1, dtype=torch.bool))

    (found,) = examples_differ(rows([5, 9, 5, 9, 5, 9]), 9)
    assert not found.ok
    (found,) = examples_differ(rows([5, 9, 6, 9, 7, 9]), 9)
    assert found.ok
    assert list(examples_differ(rows([5, 9, 6, 9]), 9)) == [], "two examples a row say nothing"
