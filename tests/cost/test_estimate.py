"""The whole estimate: worked examples from the plan, and equality with the code it speaks about."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from torch.utils.flop_counter import FlopCounterMode

from bitnet.cost.devices import TABLE, Device, load_devices
from bitnet.cost.estimate import checkpoint_bytes, estimate, fit, kept_checkpoints, process_bytes, with_tokens
from bitnet.cost.flops import optimizer_flops
from bitnet.cost.presets import PRESETS
from bitnet.errors import ConfigError, DataError, NotFoundError
from bitnet.experiments.shapes import BASELINE
from bitnet.nn.config import BitNetConfig, config_from_dict
from bitnet.nn.packing import pack_ternary
from bitnet.nn.transformer import BitNetTransformer
from bitnet.optim.muon import Muon
from bitnet.run.checkpoint import retained_steps
from bitnet.run.layout import RunLayout
from bitnet.run.manifest import read_config
from bitnet.train.config import TrainConfig
from bitnet.train.device import _PEAK_BF16

REFERENCE = TrainConfig(seq_len=1024, batch_size=32, total_steps=60_000, warmup_steps=375)
CARD = Device(
    name="card", kind="cuda", memory_gb=24, peak_tflops=100, utilisation=0.5, basis="a test", usd_per_hour=2
)


def test_the_95m_baseline_by_hand() -> None:
    """The plan's figures: parameters, tokens, T/P, weights of 380 MB, three times that for a checkpoint."""
    found = estimate(BASELINE, REFERENCE, [CARD])
    assert found.parameters == 95_367_936
    assert found.tokens == 1_966_080_000
    assert found.tokens_per_parameter == pytest.approx(20.6, abs=0.05)
    assert found.memory["cuda"].weights == 4 * 95_367_936
    assert found.checkpoint_bytes == pytest.approx(1.144e9 + 70_778_880 / 4, rel=1e-3)
    assert found.flops_per_token == 6 * (95_367_936 - 13_056) + 12 * 8 * 768 * 1024
    assert found.devices[0].seconds == pytest.approx(found.flops / 50e12)
    assert found.devices[0].usd == pytest.approx(2 * found.devices[0].seconds / 3600)


def test_launches_bound_the_time_of_small_models(tiny_config: BitNetConfig) -> None:
    train = TrainConfig(seq_len=8, batch_size=1, grad_accumulation_steps=3, total_steps=100)
    slow = (
        estimate(tiny_config, train, [dataclasses.replace(CARD, launch_ms_per_layer=2.0)]).devices[0].seconds
    )
    assert slow - estimate(tiny_config, train, [CARD]).devices[0].seconds == pytest.approx(100 * 3 * 2 * 2e-3)


def test_fourteen_checkpoints_where_nothing_is_pruned_and_ten_by_the_rule() -> None:
    """0, 5,000, ..., 60,000 and 29,999 are fourteen: the plan's 16 GB. The rule keeps ten."""
    assert kept_checkpoints(dataclasses.replace(REFERENCE, keep_every=5000)) == 14
    assert kept_checkpoints(REFERENCE) == 10


@given(
    steps=st.integers(1, 400),
    every=st.integers(1, 60),
    last=st.integers(0, 8),
    period=st.integers(1, 90),
    boundary=st.integers(1, 400),
)
def test_kept_checkpoints_are_those_that_pruning_leaves(
    steps: int, every: int, last: int, period: int, boundary: int
) -> None:
    train = TrainConfig(
        seq_len=1,
        batch_size=1,
        total_steps=steps,
        checkpoint_every=every,
        keep_last=last,
        keep_every=period,
        stage1_end=min(boundary, steps),
    )
    mandatory = train.mandatory_checkpoints()
    there: set[int] = set()
    for step in range(steps + 1):
        if step % every == 0 or step in mandatory:
            there = retained_steps({*there, step}, mandatory=mandatory, keep_last=last, keep_every=period)
    assert kept_checkpoints(train) == len(there)


def test_checkpoint_size_is_that_of_a_real_one(runs: Path) -> None:
    layout = RunLayout(runs / "tiny")
    stored = read_config(layout)
    model = config_from_dict(stored["model"])
    train = TrainConfig(seq_len=13, batch_size=8, total_steps=8, optimizer=stored["training"]["optimizer"])
    total = 0
    for path in layout.checkpoint(8).glob("*.safetensors"):
        with safe_open(path, "pt") as file:
            tensors = [file.get_tensor(name) for name in file.keys()]  # noqa: SIM118 - it is no mapping
        total += sum(tensor.numel() * tensor.element_size() for tensor in tensors if tensor.dim() > 0)
    assert checkpoint_bytes(model, train) == total


def test_packed_size_is_what_packing_gives(tiny_config: BitNetConfig, tiny_model: BitNetTransformer) -> None:
    layers = tiny_model.bit_linears().values()
    codes = sum(pack_ternary(layer.weight_quantized).numel() for layer in layers)
    scales = sum(len(layer.rows) for layer in layers)
    ternary = {layer.weight for layer in layers}
    rest = sum(parameter.numel() for parameter in tiny_model.parameters() if parameter not in ternary)
    found = estimate(tiny_config, REFERENCE, [])
    assert found.packed_bytes == codes + 4 * (scales + rest)
    full = estimate(dataclasses.replace(tiny_config, weights="full"), REFERENCE, [])
    assert full.ternary_parameters == 0
    assert full.packed_bytes == 4 * tiny_config.total_params


def test_muons_operations_are_those_that_torch_counts(
    tiny_config: BitNetConfig, tiny_model: BitNetTransformer
) -> None:
    layers = tiny_model.bit_linears().values()
    muon = Muon([(layer.weight, layer.rows) for layer in layers], momentum=0.9)
    for layer in layers:
        layer.weight.grad = torch.randn_like(layer.weight)
    with FlopCounterMode(display=False) as counter:
        muon.step()
    assert optimizer_flops(tiny_config, "muon") == counter.get_total_flops()
    assert optimizer_flops(tiny_config, "adamw") == 0


def test_presets_have_the_published_sizes() -> None:
    assert PRESETS["7B"].total_params == 6_738_415_616  # LLaMA 7B
    assert PRESETS["3B"].total_params == pytest.approx(3.32e9, rel=0.005)
    assert PRESETS["1B"].total_params == pytest.approx(1.3e9, rel=0.03)


@given(gb=st.floats(1, 200))
def test_largest_micro_batch_fits_and_one_row_more_does_not(gb: float) -> None:
    found = fit(BASELINE, REFERENCE, "cuda", gb)
    assert found.fits == (found.largest_batch >= REFERENCE.batch_size)
    for rows, inside in ((found.largest_batch, True), (found.largest_batch + 1, False)):
        if rows:
            assert (
                process_bytes(BASELINE, dataclasses.replace(REFERENCE, batch_size=rows), "cuda") <= gb * 1e9
            ) is inside


@pytest.mark.parametrize(("tokens", "steps"), [(1, 1), (32_768, 1), (32_769, 2), (1e9, 30_518)])
def test_tokens_become_whole_updates(tokens: float, steps: int) -> None:
    assert with_tokens(REFERENCE, tokens).total_steps == steps


@pytest.mark.parametrize("tokens", [0, -1, float("nan"), float("inf")])
def test_impossible_token_counts_are_refused(tokens: float) -> None:
    with pytest.raises(ConfigError, match="must be a positive number"):
        with_tokens(REFERENCE, tokens)


def test_absurd_sizes_are_refused_not_overflowed() -> None:
    for config, field in (
        (BASELINE, "ffn_hidden_size"),
        (REFERENCE, "total_steps"),
        (REFERENCE, "batch_size"),
    ):
        with pytest.raises(ConfigError, match=f"{field} is a number of 51 digits; it must be at most"):
            dataclasses.replace(config, **{field: 10**50})  # type: ignore[type-var]
    train = dataclasses.replace(REFERENCE, batch_size=2**20, seq_len=2**10, grad_accumulation_steps=2**20)
    with pytest.raises(ConfigError, match=re.escape("lower it to 10^15 at most")):
        estimate(BASELINE, train, [CARD])


def test_the_table_of_devices_is_whole_and_honest() -> None:
    devices = load_devices()
    for device in devices:
        assert device.basis
        assert device.usd_per_hour is None or re.search(r"guess|example", device.price_basis)
        assert device.measured == (device.kind == "cpu")  # no GPU was ever timed with this program
    for name, peak in _PEAK_BF16.items():  # one truth about data sheets
        for device in devices:
            if device.name.startswith(f"{name},"):
                assert device.peak_tflops == peak / 1e12


GOOD = '[[device]]\nname = "a"\nkind = "cuda"\nbasis = "b"\nsustained_tflops = 1\n'


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "has no [[device]] section"),
        ("device = 3", "has no [[device]] section"),
        ("[[device]", "cannot be read as TOML"),
        pytest.param("a = " + "[" * 5000 + "]" * 5000, "cannot be read as TOML", id="nested"),
        pytest.param("#" * (1 << 21), "more than the 1,048,576", id="long"),
        (GOOD + "usd_per_our = 1", 'Did you mean "usd_per_hour"?'),
        (GOOD.replace('name = "a"\n', ""), "device 1: name is missing"),
        (GOOD.replace("= 1", "= -1"), "sustained_tflops is -1; it must be a positive number"),
        (GOOD.replace("= 1", "= nan"), "sustained_tflops is nan"),
        (GOOD.replace("= 1", "= true"), "sustained_tflops is True"),
        (GOOD.replace("= 1", '= "fast"'), "sustained_tflops is 'fast'"),
        (GOOD.replace('"cuda"', '"tpu"'), "kind is 'tpu'"),
        (GOOD.replace('"b"', "7"), "basis is 7; it must be a text"),
        (GOOD + "measured = 1", "measured is 1; it must be true or false"),
        (GOOD.replace("sustained_tflops", "peak_tflops"), "give either sustained_tflops, or both"),
        (GOOD + "peak_tflops = 1\nutilisation = 0.1", "give either sustained_tflops, or both"),
        (GOOD + GOOD.replace('"cuda"', "0"), "device 2: kind is 0"),
    ],
)
def test_a_broken_table_is_named_with_its_place(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(text)
    with pytest.raises(DataError, match=re.escape(message)):
        load_devices(path)


def test_a_table_that_is_not_there_or_not_text(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match=re.escape(str(TABLE))):
        load_devices(tmp_path / "none.toml")
    (tmp_path / "bytes.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(DataError, match="cannot be read"):
        load_devices(tmp_path / "bytes.toml")
