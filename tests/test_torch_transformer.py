"""PyTorch's nn.Transformer modules without torch: stored outputs, the same bits everywhere, and every refusal.

tests/test_reference_torch.py compares with torch itself.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import firesteel
import numpy as np
import pytest
import tiny
import tiny_torch
from firesteel import CheckpointError, ConfigError, RequestError
from firesteel.engine.rows import FlatRows, windows_of

HERE = Path(__file__).parent
LENGTHS = (1, 2, 3, 5, 8, 8, 13, 16, 17, 21, 31, 33, 48, 63, 100)
TARGETS = (130, 1, 17, 2, 33, 8, 5, 3, 40, 21, 7, 64, 1, 16, 31)
SHAPES = {
    "encoder": ("encoder", {"norm": True, "norm_first": True}),
    "encoder of ids": ("encoder", {"vocab_size": 60, "activation": "gelu"}),
    "decoder": ("decoder", {"norm": True, "causal_targets": True}),
    "decoder layer of ids": ("decoder_layer", {"vocab_size": 60, "bias": False}),
    "transformer": ("transformer", {"causal_targets": True}),
    "transformer of ids, norm first": ("transformer", {"vocab_size": 60, "norm_first": True}),
}


def made(folder, part, lengths=LENGTHS, target_lengths=TARGETS, **changes):
    """Folder, and rows and targets for it."""
    options = {key: changes.pop(key) for key in ("norm", "prefix", "embedding_prefix", "seed") if key in changes}
    written = tiny_torch.write(folder, part, **options, **changes)
    return written, *tiny_torch.rows(tiny_torch.config(part, **changes), 5, lengths, target_lengths)


def picked(rows, order):
    return None if rows is None else [rows[i] for i in order]


def same(found, expected):
    assert found.shape == expected.shape
    different = np.flatnonzero((found.view(np.uint32) != expected.view(np.uint32)).any(axis=-1))
    assert not len(different), f"tokens {different[:10].tolist()} have other bits"


@pytest.mark.parametrize("case", tiny_torch.GOLDEN)
def test_stored_outputs_of_torch(tmp_path, case):
    part, changes = tiny_torch.GOLDEN[case]
    lengths = (tiny_torch.GOLDEN_LENGTHS, tiny_torch.GOLDEN_TARGETS)
    folder, rows, targets = made(tmp_path / "model", part, *lengths, **changes)
    with firesteel.Engine(folder, devices="cpu") as engine:
        found = np.concatenate(engine.hidden_states(rows, targets))
    assert tiny.error_per_row(found, np.load(HERE / "golden" / "torch_tiny.npz")[case]) < 1e-5


@pytest.mark.parametrize("shape", SHAPES)
def test_the_same_row_has_the_same_bits(tmp_path, shape):
    part, changes = SHAPES[shape]
    folder, rows, targets = made(tmp_path / "model", part, **changes)
    one, two = (firesteel.Engine(folder, devices="cpu", threads=threads) for threads in (1, 2))
    with one, two:
        alone = [one.hidden_states([row], picked(targets, [i]))[0] for i, row in enumerate(rows)]
        random = np.random.RandomState(3)
        for engine in (one, two):
            for _ in range(6):
                order = random.randint(0, len(rows), 40)
                states = engine.hidden_states(picked(rows, order), picked(targets, order))
                for i, found in zip(order, states, strict=True):
                    same(found, alone[i])
        before = two.stats()
        again = two.hidden_states(rows * 2, targets and targets * 2)
        for i, found in enumerate(again):
            same(found, alone[i % len(rows)])
        after = two.stats()
    assert after["duplicate_rows"] - before["duplicate_rows"] == len(rows)
    once = sum(LENGTHS) + (sum(TARGETS) if targets else 0)
    assert after["tokens"] - before["tokens"] == once


def test_rows_are_equal_only_with_equal_targets(tmp_path):
    folder, rows, targets = made(tmp_path / "model", "transformer")
    row, other = rows[4], rows[4].copy()
    other[-1, -1] = np.nextafter(other[-1, -1], np.float32(9))
    pairs = [(row, targets[0]), (row, targets[2]), (other, targets[0]), (row.copy(), targets[0].copy())]
    with firesteel.Engine(folder, devices="cpu") as engine:
        alone = [engine.hidden_states([a], [b])[0] for a, b in pairs]
        before = engine.stats()["duplicate_rows"]
        for found, expected in zip(engine.hidden_states(*zip(*pairs, strict=True)), alone, strict=True):
            same(found, expected)
        assert engine.stats()["duplicate_rows"] == before + 1
    assert not np.array_equal(alone[0], alone[2])


def test_more_rows_than_a_window_and_a_batch_hold(tmp_path):
    settings = tiny_torch.config("transformer", vocab_size=60)
    folder = tiny_torch.write(tmp_path / "model", "transformer", vocab_size=60)
    random = np.random.RandomState(1)
    lengths, target_lengths = (tuple(random.randint(1, 40, 700)) for _ in range(2))
    rows, targets = tiny_torch.rows(settings, 8, lengths, target_lengths)
    with firesteel.Engine(folder, devices="cpu") as engine:
        together = engine.hidden_states(rows, targets)
        assert engine.stats()["batches"] > 10
        assert [len(state) for state in together] == list(target_lengths)
        for i in range(0, 700, 37):
            same(together[i], engine.hidden_states([rows[i]], [targets[i]])[0])


# ---- stages and tensor groups ----

# name -> (devices, stages) of a transformer with 2 + 2 layers; a stage is (first layer, one past the last, devices,
# layers held at a time)
SPLIT = {
    "one stage": (("{}:0",), None),
    "encoder, decoder": (("{}:0", "{}:1"), ((0, 2, (0,)), (2, 4, (1,)))),
    "cut after every layer": (("{}:0", "{}:1"), ((0, 1, (0,)), (1, 2, (1,)), (2, 3, (0,)), (3, 4, (1,)))),
    "streamed": (("{}:0",), ((0, 4, (0,), 1),)),
    "streamed across the border": (("{}:0", "{}:1"), ((0, 1, (1,)), (1, 4, (0,), 2))),
    "within both": (("{}:0", "{}:1"), ((0, 1, (1,)), (1, 3, (0,)), (3, 4, (1,)))),
}
TENSOR = {
    "shards of two": (("{}:0", "{}:1"), ((0, 4, (0, 1)),)),
    "shards and cuts": (("{}:0", "{}:1"), ((0, 1, (0,)), (1, 3, (0, 1)), (3, 4, (1, 0)))),
}
MODES = {
    "plain": {},
    "delayed and poisoned": {"FIRESTEEL_TEST_DELAY": "1", "FIRESTEEL_TEST_POISON": "1"},
    "one slot": {"FIRESTEEL_SLOTS": "1"},
    "small batches, three slots": {"FIRESTEEL_BATCH_TOKENS": "140", "FIRESTEEL_SLOTS": "3"},
}
GPU_MODES = {
    "late": {"SOFTCUDA_DEFER": "1"},
    "at once, poisoned": {"SOFTCUDA_DEFER": "0", "FIRESTEEL_TEST_POISON": "1"},
    "small batches": {"FIRESTEEL_BATCH_TOKENS": "140", "FIRESTEEL_SLOTS": "3"},
}


ALL, SHORT = ("0", str(len(LENGTHS))), ("1", "12")  # rows; a GPU in software takes its time


def flat(rows):
    return np.concatenate(rows), np.concatenate([[0], np.cumsum([len(row) for row in rows])]).astype(np.int64)


def compute(folder: str, to: str, backend: str, dtype: str, first: str, last: str, *plans: str) -> None:
    """In the process of one mode: {plan: float32 [target tokens, width]} into the file `to`."""
    from firesteel import _core
    from firesteel.model.checkpoint import Checkpoint

    checkpoint = Checkpoint.open(folder)
    some = slice(int(first), int(last))
    (rows, offsets), (targets, ends) = map(flat, tiny_torch.rows(checkpoint.config, 5, LENGTHS[some], TARGETS[some]))
    results = {}
    for name in plans:
        devices, plan = (SPLIT | TENSOR)[name]
        engine = _core.Engine(
            config=checkpoint.config,
            tensors=checkpoint.tensors,
            files=checkpoint.files,
            devices=[device.format(backend) for device in devices] if len(devices) > 1 else [backend],
            dtype=dtype,
            plan=plan,
        )
        out = np.full((int(ends[-1]), engine.settings["width"]), np.nan, dtype=np.float32)
        job = engine.submit(rows, offsets, out, task="hidden_states", targets=targets, target_offsets=ends)
        assert job.wait(240) and not job.errors
        engine.close()
        results[name] = out
    np.savez(to, **results)


def run(folder, to, backend, dtype, plans, knobs, some=ALL):
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("FIRESTEEL_", "SOFTCUDA_"))}
    path = os.pathsep.join([str(HERE), clean.get("PYTHONPATH", "")]).rstrip(os.pathsep)
    code = "import sys, test_torch_transformer as t; t.compute(*sys.argv[1:])"
    command = [sys.executable, "-c", code, str(folder), str(to), backend, dtype, *some, *plans]
    ran = subprocess.run(command, env=clean | {"PYTHONPATH": path} | knobs, capture_output=True, text=True, timeout=300)
    assert ran.returncode == 0, ran.stderr
    with np.load(to) as stored:
        return dict(stored)


PLANNED = {"ids, norm first": {"vocab_size": 60, "norm_first": True}, "features": {"causal_targets": True}}


@pytest.fixture(scope="module", params=PLANNED)
def planned(request, tmp_path_factory) -> Path:
    place = tmp_path_factory.mktemp("planned")
    return tiny_torch.write(place / "model", "transformer", seed=5, **PLANNED[request.param])


def test_cuts_and_modes_keep_the_bits_and_shards_repeat_theirs(planned, tmp_path):
    results = {
        mode: run(planned, tmp_path / f"{number}.npz", "cpu", "auto", SPLIT | TENSOR, knobs)
        for number, (mode, knobs) in enumerate(MODES.items())
    }
    whole = results["plain"]["one stage"]
    assert np.isfinite(whole).all()
    for mode in MODES:
        for plan in SPLIT:
            same(results[mode][plan], whole)
        for plan in TENSOR:
            same(results[mode][plan], results["plain"][plan])
            assert tiny.error_per_row(results[mode][plan], whole) < 1e-5


def test_on_gpus(planned, tmp_path, request):
    if os.environ.get("FIRESTEEL_TEST_GPU") == "1":
        plans, named, some = {"one stage": None}, {}, ALL
    else:
        plans, named, some = SPLIT, {"FIRESTEEL_LIBCUDA": request.getfixturevalue("software_driver")}, SHORT
    cpu = run(planned, tmp_path / "cpu.npz", "cpu", "auto", ["one stage"], {}, some)["one stage"]
    results = {
        mode: run(planned, tmp_path / f"{number}.npz", "cuda", "auto", plans, knobs | named, some)
        for number, (mode, knobs) in enumerate(GPU_MODES.items())
    }
    for mode in GPU_MODES:
        for plan in plans:
            same(results[mode][plan], results["late"]["one stage"])
    assert tiny.error_per_row(results["late"]["one stage"], cpu) < 1e-5
    narrowed = [plan for plan in ("one stage", "within both") if plan in plans]
    for dtype, limit in (("bf16", 4e-2), ("fp16", 5e-3)):
        narrow = run(planned, tmp_path / "narrow.npz", "cuda", dtype, narrowed, named, some)
        for plan in narrowed:
            same(narrow[plan], narrow["one stage"])
        assert tiny.error_per_row(narrow["one stage"], cpu) < limit


# ---- what rows may be ----


@pytest.fixture(scope="module")
def engines(tmp_path_factory):
    """One engine a kind, by name; opened when it is asked for."""
    place, opened = tmp_path_factory.mktemp("engines"), {}

    def engine(part, **changes):
        key = json.dumps([part, changes])
        if key not in opened:
            opened[key] = firesteel.Engine(tiny_torch.write(place / str(len(opened)), part, **changes), devices="cpu")
        return opened[key]

    yield engine
    for each in opened.values():
        each.close()


def features(*lengths, width=48):
    return [np.ones((length, width), np.float32) for length in lengths]


def test_settings_say_what_rows_are(engines):
    def kinds(*named, **changes):
        settings = engines(*named, **changes).settings
        return settings["rows"], settings["targets"]

    assert kinds("encoder") == ("features", None)
    assert kinds("encoder", vocab_size=60) == ("ids", None)
    assert kinds("decoder") == ("features", "features")
    assert kinds("decoder", vocab_size=60) == ("features", "ids")
    assert kinds("transformer", vocab_size=60) == ("ids", "ids")


def test_features_may_come_in_many_forms(engines):
    engine, rows = engines("encoder"), features(3, 3)
    rows[1] *= 2
    expected = engine.hidden_states(rows)
    as_double = [row.astype(np.float64) for row in rows]
    spread = [np.stack([row, row], axis=2)[:, :, 0] for row in rows]
    flat_rows = FlatRows(np.concatenate(rows), np.array([0, 3, 6]))
    for form in (np.stack(rows), [row.tolist() for row in rows], as_double, spread, tuple(rows), flat_rows):
        for found, wanted in zip(engine.hidden_states(form), expected, strict=True):
            same(found, wanted)


def test_windows_are_bounded_by_features(engines):
    """What is copied together stays small, whichever side is large."""
    small, large = [np.ones((1, 48))] * 9, [np.ones((40_000, 48))] * 9
    assert [end - begin for begin, end in windows_of(small, False, [small], 48)] == [9]
    for features in ([large], [large, small], [small, large]):
        assert [end - begin for begin, end in windows_of(features[0], False, features, 48)] == [2, 2, 2, 2, 1]


def test_nothing_in_nothing_out(engines):
    assert engines("encoder").hidden_states([]) == []
    assert engines("transformer").hidden_states([], []) == []
    (none,) = engines("encoder").hidden_states([np.empty((0, 48), np.float32)])
    assert none.shape == (0, 48)
    (none,) = engines("transformer").hidden_states(features(3), [[]])
    assert none.shape == (0, 48)


def test_embeddings_are_pooled_states(engines):
    engine = engines("encoder")
    rows = tiny_torch.rows(tiny_torch.config("encoder"), 5, LENGTHS)[0]
    means = np.stack([state.mean(axis=0) for state in engine.hidden_states(rows)])
    assert tiny.error_per_row(engine.embed(rows), means) < 1e-5
    assert engine.embed(rows, pooling=["cls", "max"]).shape == (len(rows), 96)
    with pytest.raises(RequestError, match="embed takes models without a decoder; ask this one for hidden_states"):
        engines("decoder").embed(features(3))


def test_nan_stays_in_its_row(engines):
    for engine, extra in ((engines("encoder"), ()), (engines("transformer"), (features(4, 4, 4),))):
        rows = tiny_torch.rows(tiny_torch.config("encoder"), 5, (7, 9, 8))[0]
        clean = engine.hidden_states(rows, *extra)
        rows[1][2, 5] = np.nan
        found = engine.hidden_states(rows, *extra)
        assert np.isnan(found[1]).any()
        same(found[0], clean[0])
        same(found[2], clean[2])


def test_later_targets_are_not_felt_when_causal(engines):
    engine = engines("decoder", causal_targets=True)
    memory, target = features(5)[0], tiny_torch.rows(tiny_torch.config("encoder"), 5, (9,))[0][0]
    whole = engine.hidden_states([memory], [target])[0]
    changed = target.copy()
    changed[6:] = np.nan
    same(engine.hidden_states([memory], [changed])[0][:6], whole[:6])
    same(engine.hidden_states([memory], [target[:6]])[0], whole[:6])


REFUSED_ROWS = {
    "no targets": (("transformer", {}), (features(2),), "the model has a decoder, whose input is missing; give"),
    "needless targets": (("encoder", {}), (features(2), features(2)), "targets were given to a model without a"),
    "too few targets": (("decoder", {}), (features(2, 2), features(2)), "there are 1 targets and 2 rows"),
    "ids": (("encoder", {}), ([[1, 2]],), "of shape [2] and type int64; the model takes features, numbers"),
    "ids as targets": (("decoder", {}), (features(2), [[1, 2]]), "of its targets, the row is of shape [2]"),
    "features": (("encoder", {"vocab_size": 60}), (features(2),), "type float32; the model takes token ids"),
    "features as targets": (
        ("transformer", {"vocab_size": 60}),
        ([[1]], features(2)),
        "its targets, the row is of shape",
    ),
    "texts": (("encoder", {}), (["a"],), "the rows are texts; the model takes features"),
    "another width": (("encoder", {}), (features(2, width=47),), "of shape [2, 47] and type float32; the model takes"),
    "ragged": (("encoder", {}), ([[[1.0], [1.0, 2.0]]],), "of no one shape; the model takes features"),
    "foreign id": (("encoder", {"vocab_size": 60}), ([[1, 60]],), "token id 60 at token 1; the vocabulary has 0 to 59"),
    "foreign target": (("decoder", {"vocab_size": 60}), (features(2), [[1, -1]]), "token id -1 at target 1"),
    "nothing to attend to": (("decoder", {}), (features(0), features(2)), "its targets need at least one to attend to"),
    "too long": (("encoder", {}), (features(2049),), "2049 tokens; a batch has room for 2048, so shorten it or raise"),
    "too long together": (
        ("transformer", {}),
        (features(2000), features(49)),
        "the row has 2049 tokens, 49 of them targets; a batch has room for 2048",
    ),
    "None": (("decoder", {}), (features(2), [None]), "the row is missing"),
}


@pytest.mark.parametrize("case", REFUSED_ROWS)
def test_wrong_rows_are_refused(engines, case):
    (part, changes), given, sentence = REFUSED_ROWS[case]
    with pytest.raises(RequestError) as raised:
        engines(part, **changes).hidden_states(*given)
    assert sentence in str(raised.value)


def test_a_wrong_target_spoils_no_other_row(engines):
    engine = engines("decoder", vocab_size=60)
    rows, targets = tiny_torch.rows(tiny_torch.config("decoder", vocab_size=60), 5, (3, 4, 5, 6))
    expected = engine.hidden_states(rows, targets)
    with pytest.raises(RequestError) as raised:
        engine.hidden_states([*rows, features(2)[0], "x"], [*targets[:3], 7, [1, 2, 99], [1]])
    assert [row for row, _, _ in raised.value.rows] == [3, 4, 5]
    mixed = [targets[0], 7, None, targets[3], [1]]
    pending = engine._start("hidden_states", [*rows, None], "auto", False, None, "", None, True, mixed)
    found, errors = pending.result()
    assert [row for row, _, _ in errors] == [1] and pending.nulls.tolist() == [False, False, True, False, True]
    same(found[0], expected[0])
    same(found[3], expected[3])
    assert [len(found[row]) for row in (1, 2, 4)] == [0, 0, 0]


def test_the_longest_row_fits(engines):
    (whole,) = engines("encoder").hidden_states(features(2048))
    assert np.isfinite(whole).all()
    (whole,) = engines("transformer").hidden_states(features(1), features(2047))
    assert np.isfinite(whole).all()


REFUSED_ARRAYS = {
    "features where ids belong": ("encoder", 60, {"rows": features(2)[0]}, "rows are features where the model takes"),
    "ids where features belong": ("encoder", None, {"rows": np.arange(2, dtype=np.int32)}, "rows are token ids where"),
    "another width": ("encoder", None, {"rows": features(2, width=3)[0]}, "features of width 3; the model takes"),
    "targets missing": ("decoder", None, {"rows": features(2)[0]}, "give targets, one for each row"),
    "targets not asked for": (
        "encoder",
        None,
        {"rows": features(2)[0], "targets": features(2)[0], "target_offsets": np.array([0, 2])},
        "without a decoder",
    ),
    "target offsets that fall": (
        "decoder",
        None,
        {"rows": features(2)[0], "targets": features(2)[0], "target_offsets": np.array([0, 3, 2])},
        "offsets of targets fall from 3 to 2 at row 1",
    ),
    "other targets": (
        "decoder",
        None,
        {"rows": features(2)[0], "targets": np.arange(2, dtype=np.int32), "target_offsets": np.array([0, 2])},
        "targets are token ids where the model takes features",
    ),
}


@pytest.mark.parametrize("case", REFUSED_ARRAYS)
def test_the_core_checks_for_itself(engines, case):
    part, vocabulary, given, sentence = REFUSED_ARRAYS[case]
    core = engines(part, vocab_size=vocabulary)._core
    rows = given.pop("rows")
    ends = given.get("target_offsets", np.array([0, 2]))
    offsets = np.linspace(0, 2, len(ends)).astype(np.int64)
    with pytest.raises(RequestError, match=sentence):
        core.submit(rows, offsets, np.empty((2, 48), np.float32), task="hidden_states", **given)


@pytest.mark.parametrize(
    ("given", "error", "sentence"),
    [
        ({"targets": features(2)[0]}, TypeError, "target_offsets must be"),
        ({"targets": features(2)[0], "target_offsets": np.array([0, 1])}, ValueError, "target_offsets must run from 0"),
        ({"targets": features(2)[0], "target_offsets": np.array([0, 1, 2])}, ValueError, "2 targets and 1 rows"),
        ({"targets": np.ones((2, 48)), "target_offsets": np.array([0, 2])}, TypeError, "NumPy array of float32"),
        ({"targets": [1], "target_offsets": np.array([0, 1])}, TypeError, "targets must be an array of token ids"),
    ],
)
def test_the_core_takes_arrays_only(engines, given, error, sentence):
    core, rows = engines("decoder")._core, features(2)[0]
    with pytest.raises(error, match=sentence):
        core.submit(rows, np.array([0, 2]), np.empty((2, 48), np.float32), task="hidden_states", **given)


# ---- what a folder may be ----

REFUSED_KEYS = {
    "unknown part": ({"part": "both"}, 'part = "both"; it must be one of encoder_layer, encoder, decoder_layer, deco'),
    "no part": ({"part": None}, "lacks part, which a torch_transformer model needs"),
    "unknown activation": ({"activation": "silu"}, 'activation = "silu"; it must be one of relu, gelu'),
    "heads": ({"nhead": 5}, "d_model = 48 cannot be cut into nhead = 5 heads"),
    "wide heads": ({"d_model": 514, "nhead": 1}, "d_model / nhead = 514; heads of at most 256 are read"),
    "no flag": ({"norm_first": 1}, "norm_first = 1; it must be true or false"),
    "unknown key": ({"batch_first": True}, "batch_first = true"),
    "no size": ({"dim_feedforward": "many"}, 'dim_feedforward = "many"; it must be a whole number from 1'),
    "no tokens": ({"vocab_size": 0}, "vocab_size = 0; it must be a whole number from 1"),
    "eps": ({"layer_norm_eps": 0}, "layer_norm_eps = 0; it must be a number above 0"),
}


@pytest.mark.parametrize("case", REFUSED_KEYS)
def test_wrong_keys_are_refused(case):
    changes, sentence = REFUSED_KEYS[case]
    with pytest.raises(ConfigError) as raised:
        firesteel._core.trace(tiny_torch.CONFIG | changes, [3])
    assert sentence in str(raised.value)


def test_defaults_are_those_of_pytorch():
    bare = {"model_type": "torch_transformer", "part": "transformer"}
    full = {
        "d_model": 512,
        "nhead": 8,
        "num_encoder_layers": 6,
        "num_decoder_layers": 6,
        "dim_feedforward": 2048,
        "activation": "relu",
        "layer_norm_eps": 1e-5,
        "norm_first": False,
        "bias": True,
        "causal_targets": False,
        "vocab_size": None,
    }
    assert firesteel._core.trace(bare, [3]) == firesteel._core.trace(bare | full, [3])


def retensored(tmp_path, change, part="transformer", **changes):
    """A folder whose tensors were changed by `change`."""
    settings = tiny_torch.config(part, **changes)
    folder = tiny_torch.write(tmp_path / "model", part, **changes)
    tensors = tiny_torch.tensors(settings)
    change(tensors)
    tiny.write_safetensors(folder / "model.safetensors", tensors)
    return folder


REFUSED_TENSORS = {
    "missing": (lambda t: t.pop("decoder.layers.1.norm3.bias"), {}, "1 missing: decoder.layers.1.norm3.bias"),
    "missing in_proj": (
        lambda t: t.pop("decoder.layers.0.multihead_attn.in_proj_weight"),
        {},
        "1 missing: decoder.layers.0.multihead_attn.in_proj_weight",
    ),
    "no norm": (lambda t: t.pop("encoder.norm.weight"), {}, "1 missing: encoder.norm.weight"),
    "extra": (lambda t: t.update(head=np.ones((2, 2), np.float32)), {}, "1 not part of it: head"),
    "extra embedding": (
        lambda t: t.update({"embedding.weight": np.ones((60, 48), np.float32)}),
        {},
        "1 not part of it: embedding.weight",
    ),
    "no embedding": (lambda t: t.pop("embedding.weight"), {"vocab_size": 60}, "1 missing: embedding.weight"),
    "biases": (
        lambda t: t.update({"encoder.layers.0.linear1.bias": np.ones(100, np.float32)}),
        {"bias": False},
        "1 not part of it: encoder.layers.0.linear1.bias",
    ),
    "shape": (
        lambda t: t.update({"encoder.layers.0.self_attn.in_proj_weight": np.ones((48, 48), np.float32)}),
        {},
        "encoder.layers.0.self_attn.in_proj_weight is [48, 48] where config.json means [144, 48]",
    ),
    "a norm's bias alone": (
        lambda t: t.update({"norm.bias": np.ones(48, np.float32)}),
        {"part": "encoder"},
        "norm.weight",
    ),
}


@pytest.mark.parametrize("case", REFUSED_TENSORS)
def test_wrong_tensors_are_refused(tmp_path, case):
    change, changes, sentence = REFUSED_TENSORS[case]
    folder = retensored(tmp_path, change, **changes)
    with pytest.raises(CheckpointError) as raised:
        firesteel.Engine(folder, devices="cpu")
    assert sentence in str(raised.value)


def test_tensors_of_another_architecture_are_recognised(tmp_path):
    folder = tiny_torch.write(tmp_path / "model", "encoder", vocab_size=60)
    tiny.write_safetensors(folder / "model.safetensors", tiny.tensors(tiny.config()))
    with pytest.raises(CheckpointError, match="the names look like bert"):
        firesteel.Engine(folder, devices="cpu")
    folder = tiny.write(tmp_path / "bert")
    made = tiny_torch.tensors(tiny_torch.config("encoder"), prefix="any.prefix.")
    tiny.write_safetensors(folder / "model.safetensors", made)
    with pytest.raises(CheckpointError, match="the names look like torch_transformer"):
        firesteel.Engine(folder, devices="cpu")


@pytest.mark.parametrize(
    ("prefix", "embedding"),
    [("", ""), ("model.encoder.", ""), ("model.encoder.", "model."), ("a.b.", "a.b."), ("e.", "")],
)
def test_prefixes_are_found(tmp_path, engines, prefix, embedding):
    rows = tiny.rows(5, (3, 9), 60)
    folder = tiny_torch.write(
        tmp_path / "model", "encoder", vocab_size=60, norm=True, prefix=prefix, embedding_prefix=embedding
    )
    with firesteel.Engine(folder, devices="cpu") as engine:
        found = engine.hidden_states(rows)
    for state, expected in zip(found, engines("encoder", vocab_size=60, norm=True).hidden_states(rows), strict=True):
        same(state, expected)


def test_a_folder_with_a_tokenizer_takes_texts(tmp_path):
    folder = tiny_torch.write(tmp_path / "model", "encoder", vocab_size=160)
    tiny.write_tokenizer(folder)
    with firesteel.Engine(folder, devices="cpu") as engine:
        (state,) = engine.hidden_states(["date string"])
        assert state.shape[1] == 48 and len(state) >= 4
