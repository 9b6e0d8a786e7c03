"""What stands before the tensors' names in files that people have: DataParallel's module., sentence-transformers' own
0.auto_model., a wrapper's model., torch.compile's _orig_mod., and a classifier's bert. behind any of them.

A prefix is found and changes no bit, nor do buffers that some releases saved, and names that the first one had.
"""

import json

import firesteel
import numpy as np
import pytest
import tiny
from firesteel import CheckpointError

TYPES = ["bert", "roberta", "distilbert"]
PREFIXES = ["module.", "0.auto_model.", "model.", "_orig_mod.", "_orig_mod.module.", "model.encoder.0."]
ROWS = tiny.rows(2, (1, 2, 17, 40))


def write_tensors(path, tensors):
    """float32 and int64 arrays, side by side."""
    header, data, at = {}, [], 0
    for name, array in tensors.items():
        dtype = {"f": "F32", "i": "I64"}[array.dtype.kind]
        data.append(array.astype({"F32": "<f4", "I64": "<i8"}[dtype]).tobytes())
        header[name] = {"dtype": dtype, "shape": list(array.shape), "data_offsets": [at, at + len(data[-1])]}
        at += len(data[-1])
    tiny.write_raw(path, header, b"".join(data))


def write(folder, model_type, labels, change=lambda tensors, base: tensors):
    """change(tensors, what stands before the encoder's names) -> the tensors that are saved"""
    tiny.write_architecture(folder, model_type, labels=labels, seed=7)
    config = json.loads((folder / "config.json").read_text())
    base = f"{model_type}." if labels else ""
    write_tensors(folder / "model.safetensors", change(tiny.architecture_tensors(config, labels, 7), base))
    return folder


def results(folder, labels):
    with firesteel.Engine(folder, threads=1) as engine:
        assert len(engine.settings["labels"]) == labels
        found = engine.hidden_states(ROWS)
        if labels:
            found.append(engine.classify(ROWS, raw=True))
            assert np.isfinite(found[-1]).all()
        return found


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    root = tmp_path_factory.mktemp("plain")
    return {
        (kind, labels): results(write(root / f"{kind}{labels}", kind, labels), labels)
        for kind in TYPES
        for labels in (0, 3)
    }


def same(found, expected):
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("prefix", PREFIXES)
@pytest.mark.parametrize("labels", [0, 3])
@pytest.mark.parametrize("model_type", TYPES)
def test_prefixes(tmp_path, plain, model_type, labels, prefix):
    def prefixed(tensors, base):
        return {prefix + name: array for name, array in tensors.items()}

    same(results(write(tmp_path / "model", model_type, labels, prefixed), labels), plain[model_type, labels])


@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize("labels", [0, 3])
@pytest.mark.parametrize("model_type", TYPES)
def test_buffers_and_old_names(tmp_path, plain, model_type, labels, prefix):
    """position_ids, which older releases saved, and gamma and beta, which come from TensorFlow's first files."""

    def old(tensors, base):
        made = {
            name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): array
            for name, array in tensors.items()
        }
        assert any(name.endswith("gamma") for name in made)
        made[f"{base}embeddings.position_ids"] = np.arange(64, dtype=np.int64)[None]
        return {prefix + name: array for name, array in made.items()}

    same(results(write(tmp_path / "model", model_type, labels, old), labels), plain[model_type, labels])


@pytest.mark.parametrize("prefix", ["", "module.", "0.auto_model."])
@pytest.mark.parametrize("model_type", TYPES)
def test_heads_of_other_tasks_are_left_out(tmp_path, plain, model_type, prefix):
    """A file of masked-word training: its head is none of the encoder's tensors, wherever the prefix puts it."""
    heads = {"bert": "cls.predictions.bias", "roberta": "lm_head.bias", "distilbert": "vocab_projector.bias"}

    def trained(tensors, _):
        made = {f"{prefix}{model_type}.{name}": array for name, array in tensors.items()}
        return made | {prefix + heads[model_type]: np.ones(160, np.float32)}

    same(results(write(tmp_path / "model", model_type, 0, trained), 0), plain[model_type, 0])


@pytest.mark.parametrize("model_type", TYPES)
@pytest.mark.parametrize("prefixes", [("a.", "b."), ("", "teacher."), ("student.", "teacher.model.")], ids=str)
def test_two_models_in_one_file_are_refused(tmp_path, model_type, prefixes):
    """Which of the two is meant nobody can know; that the other one's tensors are there is told by name."""

    def twice(tensors, _):
        return {
            prefix + name: array + (prefix == prefixes[1]) for prefix in prefixes for name, array in tensors.items()
        }

    folder = write(tmp_path / "model", model_type, 0, twice)
    count = len(tiny.architecture_tensors(json.loads((folder / "config.json").read_text())))
    with pytest.raises(CheckpointError) as raised:
        firesteel.Engine(folder)
    assert f"{count} not part of it: {prefixes[1]}embeddings.word_embeddings.weight" in str(raised.value)
    assert "missing" not in str(raised.value)


@pytest.mark.parametrize("model_type", TYPES)
def test_tensors_that_nobody_knows_are_named_behind_a_prefix(tmp_path, model_type):
    def more(tensors, _):
        made = {f"module.{name}": array for name, array in tensors.items()}
        return made | {"module.adapter.weight": np.ones((2, 2), np.float32)}

    with pytest.raises(CheckpointError, match="1 not part of it: module.adapter.weight"):
        firesteel.Engine(write(tmp_path / "model", model_type, 0, more))
