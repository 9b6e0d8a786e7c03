"""Any plan keeps a row's bits: one to three replicas, cut and placed anyhow, whose stages hold all of their layers or
stream them; of BERT and of a transformer with a decoder, on CPUs and on GPUs in software.

Examples are the same in every run. Memory is poisoned and batches are small, so that several are on their way at once.
"""

from __future__ import annotations

import numpy as np
import pytest
import tiny
import tiny_torch
from firesteel import _core
from firesteel.model.checkpoint import Checkpoint
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st

LENGTHS = (1, 2, 3, 5, 8, 8, 13, 21, 16, 7)
TARGETS = (30, 1, 17, 2, 9, 8, 5, 3, 1, 16)
KNOBS = {"FIRESTEEL_TEST_POISON": "1", "FIRESTEEL_BATCH_TOKENS": "32", "FIRESTEEL_PASS_TOKENS": "90"}

DECODER = {"d_model": 32, "nhead": 2, "dim_feedforward": 52}
MODELS = {
    "bert": lambda place: tiny.write(place, seed=5, layers=5, hidden=32, heads=2, inner=52),
    "transformer of features": lambda place: tiny_torch.write(
        place, "transformer", seed=5, num_decoder_layers=3, causal_targets=True, **DECODER
    ),
    "transformer of ids, norm first": lambda place: tiny_torch.write(
        place, "transformer", seed=6, num_encoder_layers=3, vocab_size=60, norm_first=True, **DECODER
    ),
}


@pytest.fixture(scope="module", params=MODELS)
def folder(request, tmp_path_factory) -> str:
    return str(MODELS[request.param](tmp_path_factory.mktemp("random") / "model"))


@st.composite
def placements(draw, kind: str, layers: int):
    """Devices, and a plan over them: (first layer, one past the last, (device,), layers held at a time or 0: all)."""
    devices = draw(st.integers(1, 4))
    stages = []
    for _ in range(draw(st.integers(1, 3))):
        cut = draw(st.tuples(*[st.booleans()] * (layers - 1)))
        cuts = [0, *(i for i in range(1, layers) if cut[i - 1]), layers]
        for first, last in zip(cuts, cuts[1:], strict=False):
            at, window = draw(st.integers(0, devices - 1)), draw(st.integers(0, last - first - 1))
            stages.append((first, last, (at,), window))
    return tuple(f"{kind}:{i}" for i in range(devices)), tuple(stages)


def flat(rows: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    return np.concatenate(rows), np.concatenate([[0], np.cumsum([len(row) for row in rows])]).astype(np.int64)


def states(checkpoint: Checkpoint, rows, targets, dtype: str, devices: tuple[str, ...], plan=None) -> np.ndarray:
    """What an engine makes of all rows in one request, float32 [tokens, width]."""
    engine = _core.Engine(
        config=checkpoint.config,
        tensors=checkpoint.tensors,
        files=checkpoint.files,
        devices=devices,
        dtype=dtype,
        plan=plan,
    )
    decoded = {} if targets is None else dict(zip(("targets", "target_offsets"), flat(targets), strict=True))
    ids, offsets = flat(rows)
    out = np.full((decoded.get("target_offsets", offsets)[-1], engine.settings["width"]), np.nan, np.float32)
    job = engine.submit(ids, offsets, out, task="hidden_states", **decoded)
    assert job.wait(60) and not job.errors
    engine.close()
    return out


def check(folder: str, kind: str, dtype: str, examples: int) -> None:
    """Fails with the smallest plan it finds under which some row has other bits than on one device."""
    checkpoint = Checkpoint.open(folder)
    layers, rows, targets = tiny_torch.inputs(checkpoint.config, 31, LENGTHS, TARGETS)
    expected = states(checkpoint, rows, targets, dtype, (f"{kind}:0",))
    assert np.isfinite(expected).all()

    @seed(f"{checkpoint.config} {kind} {dtype}")  # examples of its own for each model, kind and type
    @settings(max_examples=examples, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
    @given(placement=placements(kind, layers))
    def any_plan(placement):
        found = states(checkpoint, rows, targets, dtype, *placement)
        different = np.flatnonzero((found.view(np.uint32) != expected.view(np.uint32)).any(axis=-1))
        assert not len(different), f"tokens {different[:10].tolist()} have other bits"

    any_plan()


@pytest.mark.parametrize("delay", ["0", "1"])
def test_any_plan_keeps_the_bits_on_cpus(folder, delay, monkeypatch):
    for name, value in (KNOBS | {"FIRESTEEL_TEST_DELAY": delay}).items():
        monkeypatch.setenv(name, value)
    check(folder, "cpu", "fp32", 60)


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_any_plan_keeps_the_bits_on_gpus(on_gpus, folder, dtype):
    """In bf16 a stage makes again what the one before has read its layers' input as."""
    code = "import sys, test_random_plans; test_random_plans.check(sys.argv[1], 'cuda', sys.argv[2], 12)"
    on_gpus(code, folder, dtype, FIRESTEEL_LIBCUBLASLT="off", **KNOBS)
