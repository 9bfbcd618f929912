"""From documents to a judged model: what is made once is found again, and what would train something else is
refused.
"""

from __future__ import annotations

import dataclasses
import json
import signal
from pathlib import Path

import pytest

from bitnet.cli.registry import find_experiment
from bitnet.errors import ConfigError, NotFoundError
from bitnet.evaluate.writing import looping
from bitnet.experiments import baseline, tinystories
from bitnet.experiments.real_text import TextTask
from bitnet.experiments.text_data import TextData
from bitnet.nn.transformer import BitNetTransformer
from bitnet.run.schema import TEXT_FINGERPRINT
from bitnet.text.bpe import train_bpe
from bitnet.text.tokenizer import Tokenizer, save_in_place
from bitnet.train.begin import dataset_facts
from bitnet.train.config import RunConfig
from conftest import Command, after_update, terminate
from corpora import small_tokenizer, stories, write_jsonl, write_txt

SMALL = """
    --device cpu --model.hidden-size 32 --model.num-layers 1 --model.num-heads 2 --model.num-kv-heads 1
    --model.ffn-hidden-size 48 --model.vocab-size 320 --model.max-seq-length 64 --seq-len 32 --batch-size 4
    --train.eval-cases 2 --num-steps 2 --train.warmup-steps 0 --data.held-out-one-in 10
    --data.judged-prompts 8 --train.compile off
""".split()


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A corpus, in a working directory of its own."""
    monkeypatch.chdir(tmp_path)
    return write_txt(tmp_path / "tales.txt", stories(300))


def config_on(file: Path, **changes: object) -> RunConfig:
    """A small run on a file."""
    base = tinystories.QUICK
    values = {
        "data": (str(file),),
        "held_out_one_in": 10,
        "judged_prompts": 40,
        "cache_dir": str(file.parent / "cache"),
        **changes,
    }
    return dataclasses.replace(
        base,
        model=dataclasses.replace(
            base.model,
            vocab_size=320,
            hidden_size=32,
            num_layers=1,
            num_heads=2,
            num_kv_heads=1,
            ffn_hidden_size=48,
        ),
        train=dataclasses.replace(
            base.train, seq_len=32, batch_size=4, total_steps=10, warmup_steps=0, compile="off"
        ),
        data=dataclasses.replace(base.data, **values),  # type: ignore[arg-type]
    )


@pytest.mark.slow
def test_train_makes_tokenizer_and_shards_once_and_evaluate_finds_them(bitnet: Command, file: Path) -> None:
    words = ["tinystories", "--variant", "quick", "--data", file, *SMALL]
    first = bitnet("train", *words, "--run-id", "one")
    assert first.code == 0, first.err
    assert "finding 320 entries" in first.out
    second = bitnet("train", *words, "--run-id", "two")
    assert second.code == 0
    assert "finding" not in second.out
    assert "already done" in bitnet("train", *words, "--run-id", "two").out
    data = json.loads(Path("runs/one/meta/config.json").read_text())["data"]
    assert (data["tokenizer"], data["dataset"], data["data"], data["streaming"]) == (
        "own",
        "tales.txt",
        [str(file)],
        False,
    )
    assert len(data["tokenizer_sha256"]) == 64
    assert (
        json.loads(Path("runs/one/meta/dataset_fingerprint.json").read_text()).keys()
        == TEXT_FINGERPRINT.keys()
    )
    judged = bitnet("evaluate", "one", "--json", "--show", 0)
    assert judged.code == 0, judged.err
    assert {"nats_per_token", "bits_per_byte", "known_words", "greedy_looping"} <= judged.json[
        "metrics"
    ].keys()
    assert bitnet("evaluate", "one", "--json", "--once").json == judged.json


@pytest.mark.slow
def test_evaluate_once_measures_what_was_not_measured_yet(bitnet: Command, file: Path) -> None:
    assert (
        bitnet("train", "tinystories", "--variant", "quick", "--data", file, *SMALL, "--run-id", "one").code
        == 0
    )
    assert not Path("runs/one/eval/verdict.json").exists()
    assert bitnet("evaluate", "one", "--once", "--json", "--show", 0).json["step"] == 2
    assert Path("runs/one/eval/verdict.json").exists()


@pytest.mark.slow
def test_evaluate_on_a_text_gives_the_loss_of_every_token(
    bitnet: Command, file: Path, tmp_path: Path
) -> None:
    assert (
        bitnet("train", "tinystories", "--variant", "quick", "--data", file, *SMALL, "--run-id", "one").code
        == 0
    )
    text = write_txt(tmp_path / "new.txt", stories(30, first=900))
    measured = bitnet("evaluate", "one", "--data", text, "--json")
    assert measured.code == 0, measured.err
    tokenizer = TextTask(config_on(file)).tokenizer
    assert (
        measured.json["metrics"]["tokens"]
        == sum(len(tokenizer.encode(one)) + 1 for one in stories(30, first=900)) - 1
    )
    assert 5 < measured.json["metrics"]["nats_per_token"] < 7  # ln(320) is 5.77
    assert bitnet("evaluate", "one", "--data", text, "--check").code == 2

    lines = write_jsonl(tmp_path / "new.jsonl", stories(30, first=900))
    with lines.open("a", encoding="utf-8") as file_of_lines:
        file_of_lines.write("{broken\n")
    again = bitnet("evaluate", "one", "--data", lines, "--json")
    assert again.json["metrics"] == measured.json["metrics"]
    assert "left out: 1 broken (first: " in again.err, "a dropped record is counted and said"
    nothing = tmp_path / "nothing.txt"
    nothing.write_text("\n")
    refused = bitnet("evaluate", "one", "--data", nothing)
    assert (refused.code, "no document that can be used" in refused.err) == (2, True)


@pytest.mark.slow
def test_evaluate_refuses_data_whose_tokenizer_is_not_the_runs(bitnet: Command, file: Path) -> None:
    assert (
        bitnet("train", "tinystories", "--variant", "quick", "--data", file, *SMALL, "--run-id", "one").code
        == 0
    )
    write_txt(file, stories(300, first=5000))
    refused = bitnet("evaluate", "one")
    assert refused.code == 2
    assert "another tokenizer" in refused.err


def test_more_than_four_passes_have_to_be_asked_for(bitnet: Command, file: Path) -> None:
    words = ["baseline", "--variant", "pilot", "--data", file, *SMALL, "--num-steps", "4000"]
    refused = bitnet("train", *words)
    assert refused.code == 2
    assert "--allow-repeat" in refused.err
    assert "epochs" in refused.err
    config = dataclasses.replace(
        config_on(file, allow_repeat=True), train=dataclasses.replace(config_on(file).train, total_steps=4000)
    )
    assert TextTask(config).source.epochs(16_000) > 4


def test_a_tokenizer_that_another_process_makes_meanwhile_is_used(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = TextTask(config_on(file)).tokenizer.describe()
    config = config_on(file, held_out_one_in=11)  # another tokenizer, not there yet

    def overtaken(tokenizer: Tokenizer, folder: Path) -> None:
        save_in_place(tokenizer, folder)
        save_in_place(tokenizer, folder)

    monkeypatch.setattr("bitnet.experiments.ready_text.save_in_place", overtaken)
    tokenizer = TextTask(config).tokenizer
    assert tokenizer.describe()["tokenizer_sha256"] != made["tokenizer_sha256"]
    folders = [folder.name for folder in (file.parent / "cache").iterdir() if "tokenizer" in folder.name]
    assert len(folders) == 2
    assert not any(name.startswith(".") for name in folders)


def test_characters_are_a_tokenizer_for_stories_too(file: Path) -> None:
    task = TextTask(config_on(file, tokenizer="characters"))
    assert task.tokenizer.describe()["tokenizer"] == "characters"
    assert task.tokenizer.vocab_size == 320
    assert task.tokenizer.decode(task.tokenizer.encode("A small cat. ☃")) == "A small cat. "


def test_folder_is_a_tokenizer_and_a_model_too_small_for_it_is_refused(file: Path, tmp_path: Path) -> None:
    train_bpe(stories(300), 300).save(tmp_path / "small")
    assert TextTask(config_on(file, tokenizer=str(tmp_path / "small"))).tokenizer.vocab_size == 300
    train_bpe(stories(300), 330).save(tmp_path / "large")
    with pytest.raises(ConfigError, match=r"330 entries, the model 320; say --model.vocab-size 330"):
        TextTask(config_on(file, tokenizer=str(tmp_path / "large")))


def test_prompts_of_the_judge_are_beginnings_of_held_out_documents_at_words(file: Path) -> None:
    task = TextTask(config_on(file))
    held_out = [task.tokenizer.decode(ids.tolist()) for ids in task.shards.held_out.each_document()]
    trained = [task.tokenizer.decode(ids.tolist()) for ids in task.shards.train.each_document()]
    prompts = task.held_out_prompts
    assert len(prompts) == 40
    for prompt in prompts:
        beginning = task.tokenizer.decode(prompt.ids)
        assert any(text.startswith(beginning) for text in held_out)
        assert not any(text.startswith(beginning) for text in trained)  # stories are numbered
        assert task.tokenizer.decode(prompt.rest)[0].isspace()


@pytest.mark.slow
def test_judge_knows_the_words_of_the_training_text(file: Path) -> None:
    task = TextTask(config_on(file))
    assert {"story", "moon", "happy"} <= task.known_words
    metrics = task.judge(BitNetTransformer(task.config.model))
    assert metrics["known_words"] < 0.9  # an untrained model writes letter soup
    assert 0.5 < metrics["soup"] <= 1


@pytest.mark.parametrize(
    ("text", "stuck"),
    [
        ("the the the", True),
        ("She was so happy. She was so happy. She was so happy.", True),
        ("She was so happy. She was so happy and went home.", False),
        ("He ran and ran.", False),
        ("", False),
    ],
)
def test_looping_is_the_same_words_three_times_at_the_end(text: str, stuck: bool) -> None:
    assert looping(text) is stuck


def test_baseline_runs_are_named_by_size_source_and_tokens() -> None:
    experiment = find_experiment("baseline")
    assert experiment.run_prefix(baseline.REFERENCE) == "bitnet_95M_fineweb_T1.97B"
    assert experiment.run_prefix(baseline.TINYSTORIES_2K).startswith("bitnet_72M_tinystories_T246M")
    local = dataclasses.replace(
        baseline.SMOKE, data=dataclasses.replace(baseline.SMOKE.data, data=("texts/books/*.jsonl.xz",))
    )  # type: ignore[call-arg]
    assert experiment.run_prefix(local).startswith("bitnet_95M_")


def test_sizes_and_budgets_of_the_plan() -> None:
    assert tinystories.REFERENCE.model.total_params == 11_408_256
    assert tinystories.REFERENCE.train.total_tokens == tinystories.BEST.train.total_tokens == 245_760_000
    assert baseline.REFERENCE.model.total_params == 95_367_936
    assert baseline.REFERENCE.train.total_tokens == 1_966_080_000
    assert baseline.EARLIER.train.tokens_per_step == 2 * 16 * 256
    assert baseline.EARLIER.train.total_steps == 400_000
    assert (baseline.SMOKE.train.total_steps, baseline.SMOKE.train.tokens_per_step) == (200, 4096)
    assert 200e6 < baseline.LARGER.model.total_params < 210e6
    assert {0, 29_999, 30_000, 60_000} == set(baseline.REFERENCE.train.mandatory_checkpoints())


def test_dry_run_tells_what_it_would_take_and_writes_nothing(bitnet: Command, file: Path) -> None:
    shown = bitnet("train", "baseline", "--variant", "reference", "--data", file, "--dry-run", "--json")
    assert shown.code == 0, shown.err
    assert shown.json["training"]["total_tokens"] == 1_966_080_000
    for word in (
        "95,367,936 parameters",
        "20.6",
        "memory",
        "disk",
        "time",
        "RTX 4060, 8 GB",
        "in micro-batches of 18",
    ):
        assert word in shown.err
    assert sorted(path.name for path in Path().iterdir()) == ["tales.txt"]


@pytest.mark.slow
def test_what_the_cache_keeps_is_checked_before_it_is_used(bitnet: Command, file: Path) -> None:
    words = ["train", "tinystories", "--variant", "quick", "--data", file, *SMALL, "--num-steps", 1]
    assert bitnet(*words, "--run-id", "one").code == 0
    (shard,) = Path("cache").glob("*/train-00000.bin")
    raw = bytearray(shard.read_bytes())
    shard.write_bytes(raw[:100] + b"\x60\xea" + raw[102:])  # the id 60,000
    altered = bitnet(*words, "--run-id", "two")
    assert (altered.code, altered.err.strip().splitlines()[-1]) == (2, altered.err.strip())
    assert f"{shard} was altered" in altered.err
    shard.write_bytes(raw)
    assert bitnet(*words, "--run-id", "three").code == 0
    (tokenizer,) = Path("cache").glob("tokenizer-*/tokenizer.json")
    tokenizer.unlink()
    lost = bitnet(*words, "--run-id", "four")
    assert lost.code == 2
    assert "delete that folder, and it is made again" in lost.err


def test_missing_files_and_settings_out_of_range_are_refused(bitnet: Command, file: Path) -> None:
    assert (
        "no file" in bitnet("train", "tinystories", "--variant", "quick", "--data", "nothing.txt", *SMALL).err
    )
    assert (
        bitnet(
            "train", "tinystories", "--variant", "quick", "--data", file, *SMALL, "--tokenizer", "./nothing"
        ).code
        == 2
    )
    with pytest.raises(ConfigError, match="judged_prompts"):
        TextData(dataset="x", judged_prompts=0)
    assert bitnet("train", "arithmetic", "--data", file).code == 2


def test_without_a_network_the_hub_is_named_and_files_are_offered(
    bitnet: Command, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unreachable(name: str) -> str:
        raise NotFoundError(
            f"the hub cannot be reached for {name}; check the network, or give local files with --data"
        )

    monkeypatch.setattr("bitnet.corpus.hub.newest_revision", unreachable)
    refused = bitnet("train", "tinystories", "--variant", "quick", *SMALL)
    assert refused.code == 2
    assert "roneneldan/TinyStories" in refused.err
    assert "--data" in refused.err
    assert not Path("runs").exists()


@pytest.mark.slow
def test_a_resume_on_an_edited_file_is_refused_and_changes_nothing(
    bitnet: Command, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a given tokenizer the settings are equal, and the run went on with other rows and other weights,
    in silence.
    """
    assert bitnet("tokenizer", "train", "--data", file, "--vocab-size", 300, "--out", "given").code == 0
    words = ["train", "tinystories", "--variant", "quick", "--data", file, "--tokenizer", "given", *SMALL]
    words += ["--num-steps", 4, "--run-id", "one"]
    with after_update(2, terminate):
        assert bitnet(*words).code == 128 + signal.SIGTERM
    before = {
        path: path.read_bytes()
        for path in Path("runs/one").rglob("*")
        if path.is_file() and path.name != "status.json"
    }
    text = file.read_text()
    write_txt(file, [*stories(290), *stories(10, first=900)])
    refused = bitnet(*words)
    assert refused.code == 2
    assert "train_sha256" in refused.err
    assert "restore the files" in refused.err
    assert {path: path.read_bytes() for path in before} == before

    file.write_text(text)
    assert bitnet(*words).code == 0


@pytest.mark.slow
def test_a_short_run_on_a_stream_has_something_to_be_measured_on(bitnet: Command, file: Path) -> None:
    """A folder goes through the hub's calls. Two updates need a few of its 3,000 documents, of which one in a
    hundred is held out.
    """
    Path("set").mkdir()
    write_jsonl(Path("set/train.jsonl"), stories(3_000))
    result = bitnet(
        "train",
        "tinystories",
        "--variant",
        "quick",
        *SMALL,
        "--data.dataset",
        "set",
        "--data.max-documents",
        "None",
        "--data.held-out-one-in",
        100,
        "--num-steps",
        2,
        "--run-id",
        "short",
    )
    assert result.code == 0, result.err
    facts = json.loads(Path("runs/short/meta/dataset_fingerprint.json").read_text())
    assert facts["documents"] < 100
    assert facts["held_out_documents"] == 8
    assert json.loads(Path("runs/short/meta/config.json").read_text())["data"]["streaming"] is True
    assert (facts["dataset_size_tokens"], facts["expected_repetition_rate"], facts["sampling_strategy"]) == (
        None,
        None,
        "streaming_random",
    )
    assert facts["row_order"] == "each_window_once_per_epoch"


def test_the_fingerprint_has_the_plans_meanings_beside_our_own(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The plan's example: 1.97B tokens of a corpus of 1.3T are 0.0015 of it, however few tokens were
    prepared.
    """
    task = tinystories.StoriesTask(config_on(file))
    prepared = task.shards.train.tokens
    everything = dataset_facts(task.source, task.config.train)
    assert everything["dataset_size_tokens"] == prepared + task.shards.held_out.tokens
    assert everything["prepared_tokens"] == prepared
    assert everything["expected_repetition_rate"] < everything["epochs"]

    monkeypatch.setitem(task.shards.manifest["settings"]["source"], "dataset", "HuggingFaceFW/fineweb-edu")
    reference = baseline.experiment.variants["reference"].config.train
    streamed = dataset_facts(task.source, reference)
    assert streamed["dataset_size_tokens"] == "1.3T (GPT-2 tokenization)"
    assert streamed["expected_repetition_rate"] == pytest.approx(0.0015, abs=5e-5)
    assert streamed["sampling_strategy"] == "streaming_random"


@pytest.mark.slow
@pytest.mark.parametrize("refusal", ["not logged in to the hub: `hf auth login`", None])
def test_the_baseline_takes_llamas_tokenizer_where_it_can(
    bitnet: Command, file: Path, monkeypatch: pytest.MonkeyPatch, refusal: str | None
) -> None:
    """Tried, the outcome said, and what was taken recorded, so that a later command knows."""
    monkeypatch.setattr("bitnet.experiments.text_data.why_not", lambda name: refusal)
    monkeypatch.setattr("bitnet.experiments.ready_text.find_tokenizer", lambda word: small_tokenizer())
    result = bitnet(
        "train",
        "baseline",
        "--variant",
        "smoke",
        "--data",
        file,
        *SMALL,
        "--model.num-layers",
        1,
        "--model.ffn-hidden-size",
        48,
        "--num-steps",
        1,
        "--run-id",
        "base",
        "--train.warmup-steps",
        0,
    )
    assert result.code == 0, result.err
    said = next(line for line in result.out.splitlines() if line.startswith("tokenizer: "))
    taken = json.loads(Path("runs/base/meta/config.json").read_text())["data"]["tokenizer"]
    assert taken == ("own" if refusal else "meta-llama/Llama-2-7b-hf")
    assert (refusal or "as the plan has it") in said


def test_only_the_shape_that_fits_it_asks_for_llamas_tokenizer() -> None:
    chosen = {name: variant.config.data.tokenizer for name, variant in baseline.experiment.variants.items()}  # type: ignore[attr-defined]
    assert chosen.pop("tinystories_2k") == "own"
    assert set(chosen.values()) == {"auto"}
