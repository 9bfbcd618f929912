"""The same questions to twins of the model in which every mechanism acts (twin.py). Suspects: quantization,
gradients, optimizer.

Forward pass part by part over all positions that a row may have; texts of one row kept apart; then updates in
warm-up and on both sides of the stage boundary, with accumulation, clipping, decay and each objective,
against float64.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from itertools import chain

import torch

from bitnet.diagnose import check_gradients, check_numerics, check_optimizer, reference
from bitnet.diagnose.check_gradients import BACKWARD, LOSS
from bitnet.diagnose.finding import PROOF, Check
from bitnet.diagnose.reference_objectives import wanted
from bitnet.diagnose.subject import Subject, copy_of
from bitnet.diagnose.trace import off, random_ids, traced, weights_of
from bitnet.diagnose.twin import KINDS, VOCABULARY, Kind, twin_of
from bitnet.diagnose.watch import Update, watch
from bitnet.nn.transformer import BitNetTransformer

CLIPPING = dataclasses.replace(check_gradients.CLIPPING, weight=PROOF)
SHORT = 48  # tokens of a row where all layers are computed one after another


def twins(subject: Subject) -> Iterator[Check]:
    """All checks of this file, with the twin's name in each."""
    for kind in KINDS:
        twin = twin_of(subject, kind)
        for check in chain(forward(twin, kind), updates(twin)):
            yield dataclasses.replace(check, name=f"{check.name}, {kind.name} twin")


def forward(twin: Subject, kind: Kind) -> Iterator[Check]:
    """Layers, parts and whole, at every position; and the texts of one row."""
    model = twin.model
    ids = random_ids(VOCABULARY, 1, model.config.max_seq_length, twin.device)
    yield from check_numerics.layers(model)
    yield from check_numerics.parts([(model, *traced(model, ids))], ids)
    short = random_ids(VOCABULARY, 3, SHORT, twin.device)
    yield from check_numerics.whole(model, short, traced(model, short)[0])
    if kind.segments:
        yield texts_apart(model, short)


@torch.no_grad()
def texts_apart(model: BitNetTransformer, ids: torch.Tensor) -> Check:
    """Several texts in one row do not see each other."""
    segments = (torch.arange(ids.shape[1], device=ids.device) // 13).expand_as(ids)
    right = reference.logits(weights_of(model), model.config, ids, segments)
    other = "tokens attend to another text of their row, or not to their own"
    return check_numerics.FORMULA("texts of one row are kept apart", other).below(
        off(model(ids, segments=segments), right), check_numerics.WHOLE
    )


def updates(twin: Subject) -> Iterator[Check]:
    """Updates in the warm-up, then the last of stage 1 and the first of stage 2."""
    boundary = int(twin.training["stage1_end"])
    for start, which in ((0, "warm-up"), (boundary - 1, "stage boundary")):
        for check in judged(twin, watched(twin, start, 2), which):
            yield check if which in check.name else dataclasses.replace(check, name=f"{check.name}, {which}")


def watched(twin: Subject, start: int, count: int) -> list[Update]:
    """Real updates by the twin's own settings, objective included."""
    return watch(twin, copy_of(twin, twin.model), twin.task.source, count, start_step=start)


def judged(twin: Subject, made: Sequence[Update], which: str) -> Iterator[Check]:
    """Loss, penalty, gradient, clipping, rates and change of weights of updates."""
    done = [update for update in made if update.rates is not None]
    yield BACKWARD("updates are made", "the optimizers were not asked to move").equal(len(done), 2)
    if not done:
        return
    right = [
        wanted(one.before, twin.config, one.report.batches, twin.training, one.report.step) for one in done
    ]
    errors = check_gradients.compared(done, right, float(twin.training["grad_clip_norm"]))
    yield BACKWARD("training loss is the mean over cases", "the loop reports another loss").below(
        errors["loss"], LOSS, "nats"
    )
    yield BACKWARD("penalty is the mean over cases", "it is not the unlikelihood that is defined").below(
        errors["penalty"], LOSS, "nats"
    )
    yield from check_gradients.given(errors, BACKWARD, CLIPPING)
    yield from check_optimizer.rates_used(twin, done)
    yield from check_optimizer.changes(twin, done, which)
