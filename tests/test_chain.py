"""Modules behind Pooling: Dense, LayerNorm, Normalize and Dropout, in any order, as sentence-transformers runs them.

What they compute is compared with NumPy, on every way a model is placed, in this process and in a manager; what does
not fit, or is not known, is refused on opening, by the module's folder. test_reference.py asks sentence-transformers.
"""

import json
import shutil

import chain_kit
import firesteel
import numpy as np
import pytest
import tiny
from chain_kit import CHAINS
from firesteel import CheckpointError, ConfigError, RequestError, _core
from firesteel.model import locate, node_cache
from firesteel.model.chain import MOST_STEPS
from firesteel.model.checkpoint import Checkpoint, files_read

TEXTS = ["the first row", "a date", "", "of the table of rows and columns as it was"]
ROWS = tiny.rows(4, (1, 2, 17, 64, 33, 8))


def mean(engine):
    return np.stack([states.mean(axis=0) for states in engine.hidden_states(ROWS)])


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("chains")
    return {name: chain_kit.write(root / str(i), listed) for i, (name, listed) in enumerate(CHAINS.items())}


@pytest.fixture
def folder(tmp_path):
    """One to damage."""
    return chain_kit.write(tmp_path / "model", [("Dense", 16, 8, "Tanh"), ("LayerNorm", 8)])


def put(folder, name, **changes):
    path = folder / name
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def refused(error, folder, *parts):
    with pytest.raises(error) as raised:
        Checkpoint.open(folder)
    for part in parts:
        assert part in str(raised.value), (part, str(raised.value))
    assert "\n" not in str(raised.value)


# --- what they compute ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CHAINS)
@pytest.mark.parametrize("opens", [firesteel.Engine, firesteel.connect])
def test_vectors(folders, name, opens):
    with opens(folders[name], threads=1) as engine:
        expected = chain_kit.behind(folders[name], mean(engine))
        found = engine.embed(ROWS)
        assert tiny.error_per_row(found, expected) < 1e-5
        assert engine.dimension() == engine.settings["vector_width"] == expected.shape[1]
        assert engine.settings["normalize"] == (CHAINS[name][-1][0] == "Normalize" or name == "norm, unit")
        assert engine.embed([]).shape == (0, expected.shape[1])


@pytest.mark.parametrize("name", CHAINS)
def test_normalize_is_the_last_module_and_no_other(folders, name):
    """normalize=False leaves out a Normalize at the end; those between two modules are part of what was trained."""
    with firesteel.Engine(folders[name], threads=1) as engine:
        bare = engine.embed(TEXTS, normalize=False)
        length = engine.embed(TEXTS, normalize=True)
        assert np.abs(np.linalg.norm(bare, axis=1) - 1).max() > 1e-3
        assert tiny.error_per_row(length, chain_kit.unit(bare)) < 1e-6
        as_saved = length if engine.settings["normalize"] else bare
        np.testing.assert_array_equal(engine.embed(TEXTS), as_saved)


def test_dimensions_are_those_of_the_chain(folders):
    with firesteel.Engine(folders["dense, unit"], threads=1) as engine:
        whole = engine.embed(TEXTS, normalize=False)
        assert whole.shape[1] == 24  # more than the model's 16
        np.testing.assert_array_equal(engine.embed(TEXTS, normalize=False, dimensions=20), whole[:, :20])
        assert tiny.error_per_row(engine.embed(TEXTS, dimensions=20), chain_kit.unit(whole[:, :20])) < 1e-6
        assert engine.dimension(dimensions=20) == 20
        for ask in (lambda: engine.embed(TEXTS, dimensions=25), lambda: engine.dimension(dimensions=25)):
            with pytest.raises(RequestError, match="dimensions is 25; vectors have 24, so 1 to 24 belongs there"):
                ask()


@pytest.mark.parametrize("first", [[], [("Normalize",)]], ids=str)
def test_several_poolings_in_front(tmp_path, first):
    pooling = {"pooling_mode": ["max", "mean"]}
    folder = chain_kit.write(tmp_path / "model", [*first, ("Dense", 32, 6, "Tanh")], pooling=pooling)
    with firesteel.Engine(folder, threads=1) as engine:
        pooled = np.stack([np.concatenate([row.max(0), row.mean(0)]) for row in engine.hidden_states(ROWS)])
        assert tiny.error_per_row(engine.embed(ROWS), chain_kit.behind(folder, pooled)) < 1e-5
        assert engine.embed(TEXTS, pooling=["cls", "mean"]).shape == (4, 6)
        assert engine.hidden_states(["a"])[0].shape[1] == 16


def test_a_pooling_that_does_not_fit_is_told(folders):
    sentence = 'pooling makes vectors of 32, and the folder\'s module behind it takes 16; use pooling="auto"'
    with firesteel.Engine(folders["dense"], threads=1) as engine:
        assert engine.embed(TEXTS, pooling="max").shape == (4, 8)
        for ask in (engine.embed, engine.start_embed):
            with pytest.raises(RequestError) as raised:
                ask(TEXTS, pooling=["max", "mean"])
            assert str(raised.value) == sentence
        with pytest.raises(RequestError) as raised:  # the same, by the C side
            out = np.zeros((1, 8), np.float32)
            ids, offsets = np.array([1, 2], np.int32), np.array([0, 2], np.int64)
            engine._core.submit(ids, offsets, out, task="embed", pooling=("max", "mean"))
        assert str(raised.value) == sentence
    with pytest.raises(RequestError) as raised:  # on the line that makes a column function
        firesteel.embed_udf(str(folders["dense"]), pooling=["max", "mean"])
    assert str(raised.value) == sentence
    with pytest.raises(RequestError, match="dimensions is 9; vectors have 8"):
        firesteel.embed_udf(str(folders["dense"]), dimensions=9)


# --- where they are placed --------------------------------------------------------------------------------------------

CPUS = [f"cpu:{i}" for i in range(2)]
WAYS = [
    {"devices": CPUS, "parallel": "replicate"},
    {"devices": CPUS, "parallel": "split"},
    {"devices": CPUS, "parallel": "tensor"},
    {"devices": "cpu", "dtype": "fp32", "cpu_path": "portable"},
]


@pytest.mark.parametrize("name", ["unit, dense, norm, dropout", "dense, units, dense, unit"])
@pytest.mark.parametrize("way", WAYS, ids=str)
def test_every_way_of_placing(folders, name, way):
    with firesteel.Engine(folders[name], **way) as engine, firesteel.Engine(folders[name], threads=1) as alone:
        found, plain = engine.embed(ROWS), alone.embed(ROWS)
        assert tiny.error_per_row(found, plain) < 1e-5
        if way.get("parallel") in ("replicate", "split"):
            np.testing.assert_array_equal(found, plain)
        planned = firesteel.plan(folders[name], **way)
        assert [d.weights for d in planned.devices] == [d.weights for d in engine.placement.devices]


GPUS = """
import sys, numpy as np, firesteel, tiny
folder, rows = sys.argv[1], tiny.rows(4, (1, 2, 17, 8))
expected = firesteel.Engine(folder, devices="cpu", threads=1).embed(rows)
for devices, parallel in ((["cuda:0"], "auto"), (["cuda:0", "cuda:1"], "split"), (["cuda:0", "cuda:1"], "tensor")):
    with firesteel.Engine(folder, devices=devices, parallel=parallel, dtype="fp32") as engine:
        assert tiny.error_per_row(engine.embed(rows), expected) < 1e-5, parallel
"""


@pytest.mark.parametrize("name", ["unit, dense, norm, dropout", "dense, units, dense, unit"])
@pytest.mark.parametrize("mode", [{}, {"FIRESTEEL_TEST_POISON": "1", "FIRESTEEL_BATCH_TOKENS": "20"}], ids=str)
def test_on_gpus(on_gpus, folders, name, mode):
    on_gpus(GPUS, str(folders[name]), FIRESTEEL_LIBCUBLASLT="off", **mode)


def test_a_plan_without_weights_is_that_of_the_folder_with_them(folders, tmp_path):
    bare = shutil.copytree(folders["dense"], tmp_path / "bare")
    for path in bare.glob("**/*.safetensors"):
        path.unlink()
    assert firesteel.plan(bare, memory="1GB") == firesteel.plan(folders["dense"], memory="1GB")
    (bare / "config.json").write_text(json.dumps(json.loads((bare / "config.json").read_text()) | {"dtype": "float16"}))
    planned = firesteel.plan(bare, devices="cuda:0", memory="1GB")
    assert "fp16" in planned.title


@pytest.mark.spark
def test_in_a_column(folders, spark):
    folder = str(folders["dense, units, dense, unit"])
    df = spark.createDataFrame([(text,) for text in TEXTS], "text string").coalesce(1)
    found = [row[0] for row in df.select(firesteel.embed_udf(folder)("text")).collect()]
    with firesteel.Engine(folder, threads=1) as engine:
        np.testing.assert_array_equal(np.float32(found), engine.embed(TEXTS))


# --- the files that a model is made of --------------------------------------------------------------------------------


def test_files_of_modules_are_files_of_the_model(folder, tmp_path):
    named = [
        "2_Dense/config.json",
        "3_LayerNorm/config.json",
        "2_Dense/model.safetensors",
        "3_LayerNorm/model.safetensors",
    ]
    assert [name for name in files_read(folder) if name[0] in "23"] == named
    assert Checkpoint.open(folder).files[1:] == [str(folder / name) for name in named[2:]]
    before = locate.fingerprint(str(folder))
    data = bytearray((folder / named[2]).read_bytes())
    data[-1] ^= 1
    (folder / named[2]).write_bytes(data)
    changed = {name for name, _ in set(before) ^ set(locate.fingerprint(str(folder)))}
    assert changed == {named[2]}


def test_weights_that_are_partly_there_are_not_there(folder):
    """A driver that has the hub's small files, and of the weights what another library has fetched."""
    whole = files_read(folder)
    (folder / "3_LayerNorm" / "model.safetensors").unlink()
    names = files_read(folder, weights=False)
    assert not any(name.endswith(".safetensors") for name in names) and set(names) < set(whole)
    opened = Checkpoint.open(folder, weights=False)
    assert not opened.files and not opened.tensors and opened.chain.makes == 8
    with pytest.raises(CheckpointError, match="3_LayerNorm: model.safetensors is missing"):
        files_read(folder)


def test_a_copy_on_this_node_has_them(folder, tmp_path, monkeypatch):
    monkeypatch.setenv("FIRESTEEL_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(node_cache, "network_mount", lambda path: "/net" if path == str(folder) else None)
    near = node_cache.near(str(folder))
    assert near != str(folder) and files_read(near) == files_read(folder)
    with firesteel.Engine(folder, threads=1) as there, firesteel.Engine(near, threads=1) as here:
        np.testing.assert_array_equal(here.embed(TEXTS), there.embed(TEXTS))


def test_another_module_is_another_model(folders, tmp_path):
    """To a manager, which keeps results: two folders that differ in one bit of a module's weights."""
    other = shutil.copytree(folders["dense"], tmp_path / "other")
    data = bytearray((other / "2_Dense" / "model.safetensors").read_bytes())
    data[-2] ^= 1
    (other / "2_Dense" / "model.safetensors").write_bytes(data)
    with firesteel.connect(folders["dense"], threads=1) as one, firesteel.connect(other, threads=1) as two:
        assert (one.embed(TEXTS) != two.embed(TEXTS)).any()
        np.testing.assert_array_equal(one.embed(TEXTS), one.embed(TEXTS))


@pytest.mark.parametrize("dtype", ["F16", "BF16"])
def test_weights_of_other_types(tmp_path, dtype):
    folder = chain_kit.write(tmp_path / "model", [("Dense", 16, 8, "Tanh")], dtype=dtype)
    plain = chain_kit.write(tmp_path / "plain", [("Dense", 16, 8, "Tanh")])
    with firesteel.Engine(folder, threads=1, dtype="fp32") as engine, firesteel.Engine(plain, threads=1) as exact:
        assert tiny.error_per_row(engine.embed(TEXTS), exact.embed(TEXTS)) < 3e-2


# --- what is refused --------------------------------------------------------------------------------------------------

DENSE = "2_Dense/config.json"


@pytest.mark.parametrize(
    ("name", "changes", "parts"),
    [
        (DENSE, {"in_features": 17}, ("in_features is 17, but Pooling before it makes vectors of 16",)),
        ("3_LayerNorm/config.json", {"dimension": 9}, ("dimension is 9, but 2_Dense before it makes vectors of 8",)),
        (DENSE, {"in_features": "16"}, ("in_features is '16'; a whole number",)),
        (DENSE, {"in_features": True}, ("in_features is True",)),
        (DENSE, {"out_features": 0}, ("out_features is 0; a whole number from 1",)),
        (DENSE, {"out_features": 2**40}, ("out_features is 1099511627776",)),
        (DENSE, {"bias": "yes"}, ("bias is 'yes'; true or false",)),
        (DENSE, {"use_residual": True}, ("use_residual = true is not supported",)),
        (DENSE, {"module_input_name": "token_embeddings"}, ('module_input_name = "token_embeddings" is not',)),
        (DENSE, {"module_output_name": "other"}, ('module_output_name = "other" is not supported',)),
        (DENSE, {"gain": 2}, ("gain = 2 is not supported", "FIRESTEEL_IGNORE_KEYS=gain")),
        (
            DENSE,
            {"activation_function": "torch.nn.modules.activation.Sigmoid"},
            ("activation_function is 'torch.nn.modules.activation.Sigmoid'; torch.nn's Tanh, Identity, ReLU",),
        ),
        (DENSE, {"activation_function": "mine.Tanh"}, ("activation_function is 'mine.Tanh'",)),
        (DENSE, {"activation_function": None}, ("activation_function is 'None'",)),
        (DENSE, {"activation_function": "Tanh"}, ("activation_function is 'Tanh'",)),
        ("3_LayerNorm/config.json", {"eps": 1e-3}, ("eps = 0.001 is not supported",)),
    ],
    ids=lambda value: str(value)[:60],
)
def test_settings_that_cannot_be_honoured(folder, name, changes, parts):
    put(folder, name, **changes)
    refused(ConfigError, folder, str(folder / name), *parts)


@pytest.mark.parametrize(
    "name", ["torch.nn.modules.activation.Tanh", "torch.nn.Tanh", "torch.nn.modules.linear.Identity", "torch.nn.GELU"]
)
def test_activations_by_the_names_of_their_classes(folder, name):
    put(folder, DENSE, activation_function=name)
    wanted = {"Tanh": "tanh", "Identity": "linear", "GELU": "gelu"}[name.rpartition(".")[2]]
    assert Checkpoint.open(folder).chain.steps[0] == ("dense", wanted)


@pytest.mark.parametrize(
    ("weights", "parts"),
    [
        ({"linear.weight": (8, 16)}, ("holds linear.weight, but its config.json means a Dense of linear.weight and",)),
        ({"linear.weight": (8, 16), "linear.bias": (8,), "x": (1,)}, ("holds linear.bias, linear.weight, x, but",)),
        ({"weight": (8, 16), "bias": (8,)}, ("holds bias, weight, but",)),
        (
            {"linear.weight": (8, 17), "linear.bias": (8,)},
            ("linear.weight is [8, 17], but its config.json means [8, 16]",),
        ),
        ({"linear.weight": (16, 8), "linear.bias": (8,)}, ("linear.weight is [16, 8]", "[8, 16]")),
        ({"linear.weight": (8, 16), "linear.bias": (8, 1)}, ("linear.bias is [8, 1], but its config.json means [8]",)),
    ],
    ids=str,
)
def test_weights_that_are_not_what_the_config_means(folder, weights, parts):
    made = {name: np.ones(shape, np.float32) for name, shape in weights.items()}
    path = folder / "2_Dense" / "model.safetensors"
    tiny.write_safetensors(path, made)
    refused(CheckpointError, folder, str(path), *parts)


def test_weights_of_a_type_that_is_not_read(folder):
    path = folder / "3_LayerNorm" / "model.safetensors"
    entry = {"dtype": "F64", "shape": [8], "data_offsets": [0, 64]}
    tiny.write_raw(path, {"norm.weight": entry, "norm.bias": {**entry, "data_offsets": [64, 128]}}, bytes(128))
    refused(CheckpointError, folder, str(path), "is F64; F32, F16, BF16 are read")


def test_weights_that_are_damaged_or_missing(folder):
    path = folder / "2_Dense" / "model.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[:-3])
    refused(CheckpointError, folder, str(path), "truncated")
    path.unlink()
    refused(CheckpointError, folder, f"{folder}/2_Dense: model.safetensors is missing")
    (folder / "2_Dense" / "pytorch_model.bin").write_bytes(b"\x80\x04")
    refused(CheckpointError, folder, "2_Dense: has only pytorch_model.bin", "refused; convert once: python -c")
    (folder / "2_Dense" / "config.json").unlink()
    refused(CheckpointError, folder, "2_Dense/config.json: is missing, but modules.json names its folder as a Dense")


def test_as_many_modules_as_run(tmp_path):
    most = [("LayerNorm", 16), ("Normalize",)] * (MOST_STEPS // 2)
    folder = chain_kit.write(tmp_path / "most", [*most[:-1], ("LayerNorm", 16), ("Dropout",), ("Normalize",)])
    with firesteel.Engine(folder, threads=1) as engine:
        assert tiny.error_per_row(engine.embed(ROWS), chain_kit.behind(folder, mean(engine))) < 1e-5
    folder = chain_kit.write(tmp_path / "more", [*most, ("LayerNorm", 16)])
    refused(ConfigError, folder, f"{folder}: has 9 modules behind Pooling that compute something; at most 8 run")
    with pytest.raises(ConfigError, match="has 9 modules behind pooling; at most 8"):  # the C side counts as far
        _core.plan(config=tiny.config(), tensors=[("x", "F32", (1,), 0, 0, 4)], chain=[("unit",)] * 9)
    _core.plan(config=tiny.config(), tensors=[("x", "F32", (1,), 0, 0, 4)], devices=["cpu"], chain=[("unit",)] * 8)
