"""The files of a debug dump are named as the plan names them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from bitnet.data.stream import shifted
from bitnet.experiments import baseline
from bitnet.nn.config import BitNetConfig
from bitnet.nn.transformer import BitNetTransformer
from bitnet.text.characters import CharacterTokenizer
from bitnet.train.observe.anomalies import Anomaly
from bitnet.train.observe.dump import prompt_files, write_dump


@pytest.mark.slow
def test_a_dump_of_the_baseline_has_the_file_names_of_the_plan(tmp_path: Path) -> None:
    """The five prompts and the names are written here as the plan's config-95m.md has them."""
    prompts = (
        "The quick brown fox",
        "In the beginning",
        "Once upon a time",
        "The capital of France",
        "Machine learning is",
    )
    assert prompts == baseline.PROMPTS
    tokenizer = CharacterTokenizer("".join(sorted(set("".join(prompts)))), 64)
    model = BitNetTransformer(
        BitNetConfig(
            vocab_size=64,
            hidden_size=32,
            num_layers=2,
            num_heads=2,
            num_kv_heads=1,
            ffn_hidden_size=48,
            max_seq_length=32,
        )
    )
    batch = shifted(torch.randint(4, 24, (4, 9)).numpy(), torch.ones(4, 9, dtype=torch.bool).numpy())
    write_dump(tmp_path, Anomaly("loss_spike", "a test", "nothing"), 7, model, batch, tokenizer, prompts)
    planned = {f"prompt_{prompt[:20].replace(' ', '_')}_top20.json" for prompt in prompts}
    planned |= {"grad_norms.json"}
    planned |= {
        f"L{layer}_{what}.png" for layer in range(2) for what in ("attn_activations", "qkv_quant_dist")
    }
    assert planned <= {path.name for path in tmp_path.iterdir()}
    assert (tmp_path / "prompt_The_capital_of_Franc_top20.json").is_file()


def test_a_prompts_file_keeps_what_a_file_name_may_hold_and_two_never_share_one() -> None:
    assert prompt_files(["25 + 17 = "]) == ["prompt_25_+_17_=__top20.json"]
    assert prompt_files(["20 // 4 = ", 'He said, "']) == [
        "prompt_20____4_=__top20.json",
        "prompt_He_said,___top20.json",
    ]
    assert prompt_files(["", "X1", "../../x"]) == [
        "prompt__top20.json",
        "prompt_X1_top20.json",
        "prompt_.._.._x_top20.json",
    ]
    alike = ["Here is a story about a dog", "Here is a story about a squirrel", "Here is a story about us"]
    assert prompt_files(alike) == [
        "prompt_Here_is_a_story_abou_top20.json",
        "prompt_Here_is_a_story_abou_2_top20.json",
        "prompt_Here_is_a_story_abou_3_top20.json",
    ]
