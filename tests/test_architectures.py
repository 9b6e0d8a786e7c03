"""Every encoder in the registry, on all that a model may be placed on, from a tiny config and seeded weights.

Cuts into stages and layers brought from memory give the plain run's bits; tensor shards come within 1e-5 and repeat
theirs; late ops and memory full of NaN change nothing. All of it on the CPU and on the CUDA driver in software. What
the numbers themselves should be, test_reference_architectures.py asks transformers.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tiny

TYPES = sorted(path.stem for path in tiny.MODELS.glob("*.json") if path.stem != "torch_transformer")
LABELS, LENGTHS = 3, (1, 2, 17, 31, 63, 64)
SHAPE = {"hidden": 48, "heads": 4, "layers": 4}
FOUR = ("{}:0", "{}:1", "{}:2", "{}:3")
# name -> (devices, parallel); ranks are part of a row's bits, stages are not
PLANS = {
    "one": (FOUR[:1], "auto"),
    "two replicas": (FOUR[:2], "replicate"),
    "two stages": (FOUR[:2], "split"),
    "four stages": (FOUR, "split"),
    "streamed": (FOUR[:1], ((0, 4, (0,), 1),)),
    "two ranks": (FOUR[:2], "tensor"),
    "four ranks": (FOUR, "tensor"),
    "two ranks of two stages": (FOUR, "split=2,tensor=2"),
}
RANKED = {"two ranks": "two ranks", "four ranks": "four ranks", "two ranks of two stages": "two ranks"}
HARD = {"FIRESTEEL_TEST_DELAY": "1", "FIRESTEEL_TEST_POISON": "1", "FIRESTEEL_BATCH_TOKENS": "80"}


def shape_of(model_type: str) -> dict[str, object]:
    """SHAPE in the words of the type's config."""
    config = tiny.architecture_config(model_type)
    names = {"hidden": ("hidden_size", "dim"), "heads": ("num_attention_heads", "n_heads")}
    names |= {"layers": ("num_hidden_layers", "n_layers")}
    return {next(name for name in names[key] if name in config): value for key, value in SHAPE.items()}


def typed_rows(types: int) -> list[np.ndarray]:
    """Rows of which every second one is a pair: its second half has type 1, where the model has that."""
    rows = tiny.rows(11, LENGTHS)
    for row in rows[1::2]:
        row[len(row) // 2 :] |= (1 << 24) * (types > 1)
    return rows


def compute(folder: str, device: str, to: str) -> None:
    """What a process of one device does: {type/plan/task: float32 array} into the file `to`."""
    from firesteel import _core
    from firesteel.model.checkpoint import Checkpoint

    results = {}
    for model_type in TYPES:
        checkpoint = Checkpoint.open(Path(folder) / model_type)
        for name, (devices, plan) in PLANS.items():
            engine = _core.Engine(
                config=checkpoint.config,
                tensors=checkpoint.tensors,
                files=checkpoint.files,
                devices=[listed.format(device) for listed in devices],
                dtype="fp32",
                **({"parallel": plan} if isinstance(plan, str) else {"plan": plan}),
            )
            rows = typed_rows(engine.settings["token_types"])
            ids, offsets = np.concatenate(rows), np.concatenate([[0], np.cumsum(LENGTHS)]).astype(np.int64)
            states = np.full((len(ids), engine.settings["width"]), np.nan, np.float32)
            logits = np.full((len(rows), engine.settings["labels"]), np.nan, np.float32)
            jobs = [
                engine.submit(ids, offsets, states, task="hidden_states"),
                engine.submit(ids, offsets, logits, task="classify"),
            ]
            assert all(job.wait(120) and not job.errors for job in jobs)
            engine.close()
            results |= {f"{model_type}/{name}/states": states, f"{model_type}/{name}/logits": logits}
    np.savez(to, **results)


def run(folder: Path, device: str, to: Path, knobs: dict[str, str]) -> dict[str, np.ndarray]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("FIRESTEEL_")}
    path = os.pathsep.join([str(Path(__file__).parent), clean.get("PYTHONPATH", "")]).rstrip(os.pathsep)
    command = [sys.executable, "-c", "import sys, test_architectures; test_architectures.compute(*sys.argv[1:])"]
    ran = subprocess.run(
        [*command, str(folder), device, str(to)],
        env=clean | knobs | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert ran.returncode == 0, ran.stderr
    with np.load(to) as stored:
        return dict(stored)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("architectures")
    for model_type in TYPES:
        tiny.write_architecture(folder / model_type, model_type, labels=LABELS, seed=5, **shape_of(model_type))
    return folder


@pytest.fixture(scope="module")
def found(folder, software_driver) -> dict[str, dict[str, np.ndarray]]:
    """mode -> type/plan/task -> array."""
    soft = {"FIRESTEEL_LIBCUDA": software_driver, "FIRESTEEL_LIBNCCL": software_driver, "SOFTCUDA_DEVICES": "4"}
    soft["FIRESTEEL_LIBCUBLASLT"] = "off"
    modes = {
        "cpu": ("cpu", {}),
        "cpu, hard": ("cpu", HARD),
        "cuda": ("cuda", soft),
        "cuda, hard": ("cuda", soft | HARD),
    }
    return {
        mode: run(folder, device, folder / f"{number}.npz", knobs)
        for number, (mode, (device, knobs)) in enumerate(modes.items())
    }


@pytest.mark.parametrize("model_type", TYPES)
@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("task", ["states", "logits"])
def test_placements_and_modes(found, model_type, device, task):
    plain = found[device]
    one = plain[f"{model_type}/one/{task}"]
    assert np.isfinite(one).all() and np.ptp(one) > 0.1
    for plan in PLANS:
        with_bits_of = plain[f"{model_type}/{RANKED.get(plan, 'one')}/{task}"]
        for mode in (device, f"{device}, hard"):
            result = found[mode][f"{model_type}/{plan}/{task}"]
            assert result.tobytes() == with_bits_of.tobytes(), (plan, mode)
        assert tiny.error_per_row(with_bits_of, one) < 1e-5, plan


@pytest.mark.parametrize("model_type", TYPES)
def test_both_backends_agree(found, model_type):
    for task in ("states", "logits"):
        name = f"{model_type}/one/{task}"
        assert tiny.error_per_row(found["cuda"][name], found["cpu"][name]) < 1e-5


@pytest.mark.parametrize("model_type", TYPES)
def test_types_of_tokens_are_felt_where_the_model_has_them(folder, model_type):
    """... and refused where it has not: as an id beyond the vocabulary."""
    from firesteel import _core
    from firesteel.model.checkpoint import Checkpoint

    checkpoint = Checkpoint.open(folder / model_type)
    engine = _core.Engine(config=checkpoint.config, tensors=checkpoint.tensors, files=checkpoint.files)
    plain = np.arange(3, 9, dtype=np.int32)
    types = engine.settings["token_types"]
    ids = np.concatenate([plain, plain | (types - 1) << 24, plain | types << 24]).astype(np.int32)
    out = np.full((3, LABELS), np.nan, np.float32)
    job = engine.submit(ids, np.array([0, 6, 12, 18], np.int64), out, task="classify")
    assert job.wait(60)
    assert [(row, code) for row, code, _ in job.errors] == [(2, "SCHEMA")]
    assert "the vocabulary has 0 to 159" in job.errors[0][2]
    assert (out[0] != out[1]).any() == (types > 1)
    engine.close()


@pytest.mark.parametrize("model_type", TYPES)
def test_the_config_means_as_many_bytes_as_are_taken(folder, model_type):
    import firesteel

    planned = firesteel.plan(folder / model_type)
    with firesteel.Engine(folder / model_type) as engine:
        taken = engine.placement
    assert [device.weights for device in planned.devices] == [device.weights for device in taken.devices]


def test_the_configs_are_those_that_people_have():
    """Keys that only some releases write; each type's own are compared with transformers' elsewhere."""
    from firesteel import _core

    for model_type in TYPES:
        config = tiny.architecture_config(model_type)
        for also in (
            {"transformers_version": "4.8.2"},
            {"pruned_heads": {}},
            {"is_decoder": False},
            {"use_cache": True},
        ):
            assert _core.weights(config | also) == _core.weights(config)
        with pytest.raises(_core.ConfigError, match="asks for what .* does not compute: is_decoder = true"):
            _core.weights(config | {"is_decoder": True})
        with pytest.raises(_core.ConfigError, match="secret = 3"):
            _core.weights(config | {"secret": 3})


def test_mpnet_has_as_many_buckets_as_its_code():
    """transformers counts 32 whatever the config says, and fails beyond a smaller table."""
    from firesteel import _core

    with pytest.raises(_core.ConfigError, match="relative_attention_num_buckets = 8; distances fall into 32 buckets"):
        _core.weights(tiny.architecture_config("mpnet", relative_attention_num_buckets=8))


def test_tiny_configs_name_every_key():
    """A key that changes the mathematics and is required must be missed by name."""
    from firesteel import _core

    missed = {"bert": "hidden_size", "roberta": "vocab_size"}
    for model_type, key in missed.items():
        config = json.loads((tiny.MODELS / f"{model_type}.json").read_text())
        config.pop(key)
        with pytest.raises(_core.ConfigError, match=f"lacks {key}, which a {model_type} model needs"):
            _core.weights(config)
