"""The contract of a decoder, over both that there are: the training model, and the packed engine."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from models import random_ids, small_model, torch_logits

from bitnet.engine.from_torch import packed
from bitnet.errors import DataError
from bitnet.generate.decode import Writer, begun, continue_prompts, generate
from bitnet.generate.decoder import Decoder
from bitnet.generate.sampling import GREEDY, Sampling
from bitnet.kernels import library
from bitnet.nn.transformer import BitNetTransformer

Make = Callable[..., tuple[BitNetTransformer, Decoder]]


@pytest.fixture(params=["torch", "packed"])
def make(request: pytest.FixtureRequest) -> Make:
    """A small model, and a decoder with its weights."""
    if request.param == "packed" and library.loaded().library is None:
        pytest.skip(library.describe())

    def made(**shape: Any) -> tuple[BitNetTransformer, Decoder]:
        model = small_model(**shape)
        return model, model if request.param == "torch" else packed(model, head="f32")

    return made


def near(found: Any, expected: Any) -> bool:
    """Equal but for the order of sums, and now and then a code on the edge of two."""
    gap = np.abs(np.asarray(found) - np.asarray(expected)).max(axis=-1) / np.abs(expected).max()
    return bool(np.median(gap) < 1e-5 and gap.max() < 2e-2)


def test_a_prompt_and_its_steps_have_the_logits_of_the_whole_text(make: Make) -> None:
    model, decoder = make()
    ids = random_ids(model, 40)
    expected = torch_logits(model, ids)
    rows = decoder.new_rows(2, 50)
    assert near(rows.read({1: ids[:30]}, every=True), expected[:30])
    assert near(torch.cat([torch.as_tensor(rows.read({1: [token]})) for token in ids[30:]]), expected[30:])
    assert rows.lengths.tolist() == [0, 40]
    assert rows.capacity == 50


def test_rows_of_different_lengths_are_read_together_as_if_alone(make: Make) -> None:
    """Neighbours of one length, few among longer ones, in another order than that of the rows."""
    model, decoder = make()
    texts = {row: random_ids(model, count, seed=row) for row, count in enumerate((4, 9, 31, 4, 9, 4))}
    more = {row: random_ids(model, count, seed=90 + row) for row, count in {3: 1, 0: 1, 4: 2, 1: 1}.items()}
    rows = decoder.new_rows(6, 60)
    first, second, third = rows.read(texts), rows.read(more), rows.read({5: [1], 4: [2], 2: [3]})
    longer = {row: [*texts[row], *more.get(row, [])] for row in texts}
    for found, wanted in (
        (first, texts),
        (second, {row: longer[row] for row in more}),
        (third, {5: [*longer[5], 1], 4: [*longer[4], 2], 2: [*longer[2], 3]}),
    ):
        assert near(found, np.stack([torch_logits(model, ids)[-1] for ids in wanted.values()]))


def test_a_row_ends_and_another_text_takes_its_place(make: Make) -> None:
    model, decoder = make()
    long, short, other = (random_ids(model, count, seed=count) for count in (20, 5, 12))
    rows = decoder.new_rows(3, 40)
    rows.read({0: long, 1: long[::-1], 2: short})
    rows.take_back(1, 0)
    begun_beside = rows.read({1: other, 0: [7]})
    assert near(begun_beside, np.stack([torch_logits(model, other)[-1], torch_logits(model, [*long, 7])[-1]]))
    assert rows.lengths.tolist() == [21, 12, 5]


def test_what_was_taken_back_is_forgotten(make: Make) -> None:
    model, decoder = make()
    ids, other = random_ids(model, 25), random_ids(model, 15, seed=2)
    rows = decoder.new_rows(2, 60)
    rows.read({0: [*ids[:10], *other], 1: other})
    rows.take_back(0, 10)
    assert near(rows.read({0: ids[10:]}), torch_logits(model, ids)[-1:])
    with pytest.raises(AssertionError):
        rows.take_back(0, 26)


@pytest.mark.parametrize("length", [1, 15, 16, 17, 40])
def test_a_branch_goes_on_from_its_beginning_and_leaves_it_alone(make: Make, length: int) -> None:
    model, decoder = make()
    begin, one, two = (random_ids(model, count, seed=count) for count in (length, 7, 8))
    rows = decoder.new_rows(3, 60)
    rows.read({0: begin, 2: two})
    rows.branch(0, 2)
    assert rows.lengths.tolist() == [length, 0, length]
    branched, root = rows.read({2: one, 0: two})
    assert near(np.asarray(branched)[None], torch_logits(model, begin + one)[-1:])
    assert near(np.asarray(root)[None], torch_logits(model, begin + two)[-1:])


def test_more_tokens_than_room_are_refused_and_nothing_is_read(make: Make) -> None:
    _, decoder = make(max_seq_length=30)
    rows = decoder.new_rows(2, 20)
    with pytest.raises(DataError, match="21 tokens do not fit the 20 that there is room for; give a shorter"):
        rows.read({0: [1] * 21, 1: [1]})
    rows.read({0: [1] * 19})
    with pytest.raises(DataError, match="21 tokens do not fit"):
        rows.read({1: [1], 0: [1, 2]})
    with pytest.raises(DataError, match="empty"):
        rows.read({0: []})
    with pytest.raises(ValueError, match=r"rows \[2\] of 2"):
        rows.read({2: [1]})
    assert rows.lengths.tolist() == [19, 0]
    assert decoder.new_rows(1).capacity == 30
    assert decoder.new_rows(1, 99).capacity == 30


def test_whole_texts_have_the_logits_of_the_model(make: Make) -> None:
    model, decoder = make()
    ids = torch.tensor([random_ids(model, 30, seed) for seed in range(2)])
    segments = torch.tensor([[0] * 30, [0] * 10 + [1] * 20])
    with torch.no_grad():
        for how in ({}, {"segments": segments}):
            assert near(decoder(ids, **how).flatten(0, 1), model(ids, **how).flatten(0, 1))


def test_a_request_joins_while_others_are_continued(make: Make) -> None:
    """What a server does: texts come and go between steps, and each is what it would be alone."""
    model, decoder = make()
    prompts = [random_ids(model, count, seed=count) for count in (3, 12, 7)]
    sampled = Sampling(temperature=1.0, seed=4)
    how = (GREEDY, sampled, GREEDY)
    writer, said = Writer(decoder.new_rows(2, 40)), {number: list[int]() for number in range(3)}
    waiting, number_of = [2, 1, 0], dict[int, int]()
    for turn in range(40):
        while waiting and writer.has_room and turn > 2 - len(waiting):  # the second comes a step later
            number = waiting.pop()
            number_of[writer.join(begun(decoder, prompts[number], 5 + 4 * number, how[number]))] = number
        for row, token, _ in writer.step() if writer.texts else ():
            said[number_of[row]].append(token)
            if not writer.texts[row].left:
                writer.leave(row)
    for number, prompt in enumerate(prompts):
        alone = generate(decoder, torch.tensor([prompt]), max_new_tokens=5 + 4 * number, sampling=how[number])
        assert said[number] == alone[0, len(prompt) :].tolist()


@pytest.mark.parametrize("rows", [512, 3])
@pytest.mark.parametrize("sampling", [GREEDY, Sampling(temperature=1.0, top_p=0.9, seed=3)])
def test_prompts_are_answered_as_if_alone_however_many_rows_there_are(
    make: Make, rows: int, sampling: Sampling, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With three rows, those that end are given to prompts that wait."""
    monkeypatch.setattr("bitnet.generate.decode.MAX_ROWS", rows)
    model, decoder = make()
    prompts = [random_ids(model, 3 + seed % 4, seed) for seed in range(10)]
    whole = continue_prompts(decoder, prompts, max_new_tokens=9, stop_id=-1, sampling=sampling)
    stop = whole[0][3]
    settings: dict[str, Any] = {"max_new_tokens": 9, "stop_id": stop}
    together = continue_prompts(decoder, prompts, sampling=sampling, **settings)
    assert together == [one[: one.index(stop) + 1] if stop in one else one for one in whole]
    for number, prompt in enumerate(prompts):
        own = sampling.of_text(number)
        assert continue_prompts(decoder, [prompt], sampling=own, **settings) == [together[number]]
    assert continue_prompts(decoder, [], **settings) == []


def test_the_training_model_and_the_engine_write_the_same(make: Make) -> None:
    model, decoder = make(max_seq_length=20)
    prompts = [random_ids(model, count, seed=count) for count in (3, 7, 3, 12)]
    wanted = continue_prompts(model, prompts, max_new_tokens=50, stop_id=5)
    assert continue_prompts(decoder, prompts, max_new_tokens=50, stop_id=5) == wanted
    assert max(len(prompt) + len(answer) for prompt, answer in zip(prompts, wanted, strict=True)) == 21
