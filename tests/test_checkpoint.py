"""What a model folder must be: every way in which one can be wrong has one sentence that says so."""

import json
import os
import shutil

import numpy as np
import pytest
import tiny
from firesteel import CheckpointError, ConfigError
from firesteel.model.checkpoint import Checkpoint
from firesteel.model.files import JSON_LIMIT
from firesteel.model.safetensors import read_header


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    return tiny.write(tmp_path_factory.mktemp("good") / "model", hidden=16, heads=2, inner=24, layers=1)


@pytest.fixture
def folder(good, tmp_path):
    """A copy to damage."""
    return shutil.copytree(good, tmp_path / "model")


def put(folder, name, value):
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_text(value if isinstance(value, str) else json.dumps(value))


def says(error, folder, *parts):
    """Opening fails with `error`, in one sentence that holds all parts."""
    with pytest.raises(error) as raised:
        Checkpoint.open(folder)
    text = str(raised.value)
    assert type(raised.value) is error
    assert "\n" not in text
    for part in parts:
        assert part in text, f"{part!r} is not in {text!r}"


# --- a good folder ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16"])
@pytest.mark.parametrize("shards", [1, 3])
def test_tensors_lie_where_the_table_says(tmp_path, dtype, shards):
    folder = tiny.write(
        tmp_path / "m", hidden=16, heads=2, inner=24, layers=1, dtype=dtype, shards=shards, prefix="bert."
    )
    opened = Checkpoint.open(folder)
    expected = tiny.tensors(opened.config)
    assert {tensor[0] for tensor in opened.tensors} == {"bert." + name for name in expected}
    assert len(opened.files) == shards and all(os.path.isabs(file) for file in opened.files)
    for name, kind, shape, file, offset, size in opened.tensors:
        array = expected[name.removeprefix("bert.")]
        assert (kind, shape) == (dtype, array.shape)
        with open(opened.files[file], "rb") as data:
            data.seek(offset)
            assert data.read(size) == tiny.encode(array, dtype), name


def test_agrees_with_the_safetensors_library(good):
    library = pytest.importorskip("safetensors.numpy").load_file(good / "model.safetensors")
    for name, _, shape, _, offset, size in read_header(str(good / "model.safetensors")):
        with open(good / "model.safetensors", "rb") as data:
            data.seek(offset)
            found = np.frombuffer(data.read(size), np.float32).reshape(shape)
        np.testing.assert_array_equal(found, library.pop(name))
    assert not library


def test_a_bare_folder_means_what_sentence_transformers_makes_of_it(good):
    opened = Checkpoint.open(str(good))
    assert opened.sentence.pooling == ("mean",) and opened.sentence.normalize is False
    assert opened.sentence.max_length == 64  # tokenizer_config.json
    assert opened.tokenizer_file == str(good / "tokenizer.json")


def test_paths_may_be_relative_or_path_objects(good, monkeypatch):
    monkeypatch.chdir(good.parent)
    assert Checkpoint.open("model") == Checkpoint.open(good)


# --- not a folder, not a checkpoint ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "model, part",
    [
        ("no/such/folder/here", "no such folder"),
        ("/no/such/folder", "no such folder"),
        ("", "path of a model folder"),
        ("a\0b", "path of a model folder"),
        (3, "model is a int"),
        (None, "model is a NoneType"),
        (b"bytes", "as a string"),
    ],
)
def test_what_is_no_folder(model, part):
    says(CheckpointError, model, part)


def test_a_file_is_not_a_folder(good):
    says(CheckpointError, good / "config.json", "is a file")


@pytest.mark.parametrize(
    "lost, parts",
    [
        ("config.json", ("config.json is missing", "model.safetensors")),
        ("model.safetensors", ("model.safetensors is missing", "found config.json, tokenizer.json")),
    ],
)
def test_what_is_missing_is_named_and_what_is_there(folder, lost, parts):
    (folder / lost).unlink()
    says(CheckpointError, folder, *parts)


def test_an_empty_folder(tmp_path):
    says(CheckpointError, tmp_path, "config.json is missing", "found nothing")


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "model.pth", "epoch=1.ckpt"])
def test_pickles_are_refused_with_the_way_to_convert(folder, name):
    (folder / "model.safetensors").unlink()
    (folder / name).write_bytes(b"\x80\x04")
    says(CheckpointError, folder, name, "refused", "save_pretrained")


def test_a_missing_tokenizer_is_no_fault_of_the_folder(folder):
    (folder / "tokenizer.json").unlink()
    assert Checkpoint.open(folder).tokenizer_file is None
    (folder / "vocab.txt").write_text("[PAD]\n")
    assert Checkpoint.open(folder).tokenizer_file == str(folder / "vocab.txt")


# --- JSON ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text, part",
    [
        ("", "line 1, column 1"),
        ('{\n  "hidden_size": 16,\n}', "line 3, column 1"),
        ("[1, 2]", "JSON array"),
        ('"bert"', "JSON string"),
        ("null", "JSON null"),
        ("{}", "no model_type"),
        ('{"model_type": 3}', "no model_type"),
        ('{"model_type": "bert", "hidden_size": 1, "hidden_size": 2}', "hidden_size twice"),
        ('{"a": ' + "[" * 100_000 + "]" * 100_000 + "}", "no JSON that can be read"),
        ('{"a": ' + "9" * 5000 + "}", "no JSON that can be read"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_config_that_is_no_config(folder, text, part):
    put(folder, "config.json", text)
    says(CheckpointError, folder, "config.json", part)


def test_config_that_is_not_utf8(folder):
    (folder / "config.json").write_bytes(b'{"model_type": "b\xff"}')
    says(CheckpointError, folder, "byte 17 is not UTF-8")


# --- safetensors -----------------------------------------------------------------------------------------------------


def entry(dtype="F32", shape=(2,), offsets=(0, 8)):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


@pytest.mark.parametrize(
    "header, data, parts",
    [
        ({"a": entry()}, 8, None),
        ({"a": entry(shape=(0, 3), offsets=(0, 0)), "b": entry()}, 8, None),
        ({"b": entry(offsets=(8, 16)), "a": entry()}, 16, None),
        ({"a": entry(shape=(), offsets=(0, 4))}, 4, None),
        ({"a": entry("F4", (4,), (0, 2))}, 2, None),
        ({}, 0, None),
        ({"a": entry()}, 5, ("truncated, 3 of 8 data bytes are missing", "tensor a")),
        ({"a": entry()}, 12, ("4 bytes after the last tensor",)),
        ({"a": entry(), "b": entry(offsets=(4, 12))}, 12, ("a and b overlap by 4 bytes",)),
        ({"a": entry(), "b": entry()}, 8, ("overlap by 8 bytes",)),
        ({"a": entry(), "b": entry(offsets=(12, 20))}, 20, ("4 bytes before tensor b belong to no tensor",)),
        ({"a": entry(offsets=(4, 12))}, 12, ("4 bytes before tensor a",)),
        ({"a": entry(offsets=(8, 0))}, 8, ("data_offsets [8, 0]",)),
        ({"a": entry(offsets=(0, 9))}, 9, ("shape [2] of F32, 8 bytes", "span 9 bytes")),
        ({"a": entry(shape=(2**40, 2**40))}, 8, ("span 8 bytes",)),
        ({"a": entry(shape=(2**63,))}, 8, ("shape",)),
        ({"a": entry(shape=[2] * 17)}, 8, ("at most 16 sizes",)),
        ({"a": entry(shape=(-2,))}, 8, ("shape [-2]",)),
        ({"a": entry(shape=(2.0,))}, 8, ("shape [2.0]",)),
        ({"a": entry(shape=(True, 2))}, 8, ("shape [True, 2]",)),
        ({"a": entry(offsets=(0, 8, 8))}, 8, ("data_offsets",)),
        ({"a": entry(offsets=("0", "8"))}, 8, ("data_offsets",)),
        ({"a": entry("F33")}, 8, ("dtype 'F33'", "BF16")),
        ({"a": entry(None)}, 8, ("dtype None",)),
        ({"a": {"dtype": "F32"}}, 8, ("shape None",)),
        ({"a": [1]}, 8, ("tensor a is a JSON array",)),
        ([entry()], 8, ("header is a JSON array",)),
        (b'{"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}, "a": {}}', 8, ("a twice",)),
        (b'{"a": ', 8, ("header: line 1",)),
        (b"\xff\xfe", 8, ("not UTF-8",)),
    ],
    ids=lambda value: str(value)[:60] if isinstance(value, tuple) else "",
)
def test_safetensors_header(tmp_path, header, data, parts):
    path = tmp_path / "model.safetensors"
    tiny.write_raw(path, header, bytes(data))
    if parts is None:
        assert {tensor[0] for tensor in read_header(str(path))} == set(header)
        return
    with pytest.raises(CheckpointError) as raised:
        read_header(str(path))
    for part in (str(path), *parts):
        assert part in str(raised.value)


@pytest.mark.parametrize(
    "content, parts",
    [
        (b"", ("truncated", "8 bytes")),
        (b"\1\0\0", ("truncated", "5 bytes")),
        ((100).to_bytes(8, "little") + b"{}", ("truncated, 98 bytes of its header are missing",)),
        ((2**63).to_bytes(8, "little"), (f"limit is {JSON_LIMIT}",)),
        (b"version https://git-lfs.github.com/spec/v1\n", ("git lfs pull",)),
    ],
    ids=repr,
)
def test_safetensors_that_is_none(folder, content, parts):
    (folder / "model.safetensors").write_bytes(content)
    says(CheckpointError, folder, "model.safetensors", *parts)


def test_every_truncation_is_seen(good, tmp_path):
    whole = (good / "model.safetensors").read_bytes()
    path = tmp_path / "model.safetensors"
    for length in (*range(0, 4000, 97), len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(CheckpointError, match="truncated"):
            read_header(str(path))


# --- shards ----------------------------------------------------------------------------------------------------------

INDEX = "model.safetensors.index.json"


@pytest.fixture
def sharded(tmp_path):
    return tiny.write(tmp_path / "model", hidden=16, heads=2, inner=24, layers=1, shards=2)


def test_shards_that_are_missing_are_named(sharded):
    (sharded / "model-00002-of-00002.safetensors").unlink()
    says(CheckpointError, sharded, "1 of 2 shards are missing", "model-00002-of-00002.safetensors")


@pytest.mark.parametrize("path", ["../other/x.safetensors", "/etc/passwd", "a/../../x", ""])
def test_shards_stay_in_the_folder(sharded, path):
    where = json.loads((sharded / INDEX).read_text())["weight_map"]
    where["pooler.dense.bias"] = path
    put(sharded, INDEX, {"weight_map": where})
    says(CheckpointError, sharded, "no path inside the folder" if path else "is a directory")


@pytest.mark.parametrize("index", [{}, {"weight_map": []}, {"weight_map": {}}, {"weight_map": {"a": 1}}], ids=str)
def test_index_without_a_map(sharded, index):
    put(sharded, INDEX, index)
    says(CheckpointError, sharded, INDEX, "weight_map")


def test_tensors_that_the_index_gives_to_the_wrong_shard(sharded):
    where = json.loads((sharded / INDEX).read_text())["weight_map"]
    put(sharded, INDEX, {"weight_map": where | {"extra.weight": "model-00001-of-00002.safetensors"}})
    says(CheckpointError, sharded, "extra.weight (model-00001-of-00002.safetensors)")


def test_a_tensor_in_two_shards(sharded):
    shutil.copy(sharded / "model-00001-of-00002.safetensors", sharded / "model-00002-of-00002.safetensors")
    says(CheckpointError, sharded, "lies in both model-00001-of-00002.safetensors and model-00002-of-00002.safetensors")


# --- sentence-transformers -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "pooling, modes, include_prompt",
    [
        ({"pooling_mode_cls_token": True}, ("cls",), True),
        ({"pooling_mode_mean_tokens": False}, ("mean",), True),
        ({"pooling_mode_lasttoken": True, "pooling_mode_mean_tokens": False}, ("lasttoken",), True),
        ({"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": True}, ("cls", "mean"), True),
        ({"pooling_mode_mean_sqrt_len_tokens": True, "include_prompt": False}, ("mean_sqrt_len",), False),
        ({"pooling_mode": "max", "embedding_dimension": 16}, ("max",), True),
        ({"pooling_mode": ["mean", "cls"]}, ("mean", "cls"), True),
        ({"pooling_mode": "weightedmean", "pooling_mode_cls_token": True}, ("weightedmean",), True),
    ],
    ids=str,
)
@pytest.mark.parametrize("normalize", [True, False])
def test_pooling(folder, pooling, modes, include_prompt, normalize):
    tiny.write_sentence(folder, 16, pooling=pooling, normalize=normalize)
    sentence = Checkpoint.open(folder).sentence
    assert (sentence.pooling, sentence.include_prompt, sentence.normalize) == (modes, include_prompt, normalize)


@pytest.mark.parametrize(
    "file, value, error, parts",
    [
        ("1_Pooling/config.json", {"word_embedding_dimension": 17}, ConfigError, ("is 17", "hidden_size is 16")),
        ("1_Pooling/config.json", {"embedding_dimension": 17}, ConfigError, ("embedding_dimension is 17",)),
        ("1_Pooling/config.json", {"pooling_mode": "median"}, ConfigError, ("median", "lasttoken")),
        ("1_Pooling/config.json", {"pooling_mode": [3]}, ConfigError, ("pooling 3 is not known",)),
        ("1_Pooling/config.json", {"pooling_mode": []}, ConfigError, ("list of modes",)),
        ("1_Pooling/config.json", {"pooling_mode_new": True}, ConfigError, ("pooling_mode_new = true",)),
        ("2_Normalize/config.json", {"module_input_name": "token_embeddings"}, ConfigError, ("module_input_name",)),
        ("sentence_bert_config.json", {"max_seq_length": 0}, ConfigError, ("max_seq_length is 0",)),
        ("sentence_bert_config.json", {"max_seq_length": "64"}, ConfigError, ("'64'",)),
        ("sentence_bert_config.json", {"transformer_task": "fill-mask"}, ConfigError, ("fill-mask", "IGNORE_KEYS")),
        ("sentence_bert_config.json", {"model_args": {"x": 1}}, ConfigError, ("model_args",)),
        ("config_sentence_transformers.json", {"prompts": ["a"]}, CheckpointError, ("prompts",)),
        ("config_sentence_transformers.json", {"default_prompt_name": "q"}, ConfigError, ("'q'", "none")),
        ("config_sentence_transformers.json", {"model_type": "CrossEncoder"}, ConfigError, ("CrossEncoder",)),
        ("modules.json", {}, CheckpointError, ("array of modules",)),
        ("modules.json", [], CheckpointError, ("array of modules",)),
        ("modules.json", [{"type": "x"}], CheckpointError, ("no type or no path",)),
        ("modules.json", [{"type": "sentence_transformers.models.CNN", "path": ""}], ConfigError, ("CNN", "Pooling")),
        ("modules.json", [{"type": "mine.Pooling", "path": ""}], ConfigError, ("mine.Pooling",)),
    ],
    ids=lambda value: str(value)[:50],
)
def test_sentence_files_that_cannot_be_honoured(folder, file, value, error, parts):
    tiny.write_sentence(folder, 16)
    put(folder, file, value)
    says(error, folder, file, *parts)


def modules(*listed):
    package = "sentence_transformers.sentence_transformer.modules.x."
    return [{"idx": i, "name": str(i), "path": path, "type": package + kind} for i, (kind, path) in enumerate(listed)]


@pytest.mark.parametrize(
    "listed, error, parts",
    [
        ([("Transformer", ""), ("Pooling", "../x")], CheckpointError, ("no path inside the folder",)),
        ([("Transformer", ".."), ("Pooling", "1_Pooling")], CheckpointError, ("no path inside the folder",)),
        ([("Transformer", ""), ("Pooling", "9_Pooling")], CheckpointError, ("9_Pooling", "is missing")),
        ([("Transformer", "")], ConfigError, ("the modules are Transformer",)),
        ([("Pooling", ""), ("Transformer", "")], ConfigError, ("Pooling, Transformer",)),
        (
            [("Transformer", ""), ("Pooling", "1_Pooling"), ("Dense", "2_Dense")],
            CheckpointError,
            ("2_Dense/config.json: is",),
        ),
        ([("Transformer", ""), ("Dense", "1_Dense"), ("Pooling", "2_Pooling")], ConfigError, ("Dense, Pooling; only",)),
    ],
    ids=str,
)
def test_modules(folder, listed, error, parts):
    tiny.write_sentence(folder, 16)
    put(folder, "modules.json", modules(*listed))
    says(error, folder, *parts)


def test_the_transformer_may_live_in_a_subfolder(good, tmp_path):
    root = tmp_path / "model"
    shutil.copytree(good, root / "0_Transformer")
    tiny.write_sentence(root, 16, settings={"prompts": {"query": "query: "}})
    put(root, "modules.json", modules(("Transformer", "0_Transformer"), ("Pooling", "1_Pooling")))
    put(root, "0_Transformer/sentence_bert_config.json", {"max_seq_length": 20, "do_lower_case": True})
    opened = Checkpoint.open(root)
    assert opened.folder == str(root / "0_Transformer")
    assert opened.files == [str(root / "0_Transformer" / "model.safetensors")]
    assert opened.sentence.max_length == 20 and opened.sentence.do_lower_case
    assert opened.sentence.prompts == {"query": "query: "} and not opened.sentence.normalize


def test_settings_of_sentence_transformers(folder):
    settings = {"prompts": {"q": "query: ", "d": None}, "default_prompt_name": "q", "truncate_dim": 8}
    tiny.write_sentence(folder, 16, settings=settings, transformer={"max_seq_length": None, "do_lower_case": False})
    sentence = Checkpoint.open(folder).sentence
    assert sentence.prompts == {"q": "query: ", "d": ""} and sentence.default_prompt_name == "q"
    assert sentence.max_length == 64 and sentence.truncate_dim == 8


def test_a_harmless_key_can_be_let_through(folder, monkeypatch):
    tiny.write_sentence(folder, 16, transformer={"new_key": 1})
    says(ConfigError, folder, "FIRESTEEL_IGNORE_KEYS=new_key")
    monkeypatch.setenv("FIRESTEEL_IGNORE_KEYS", "other, new_key")
    assert Checkpoint.open(folder).sentence.normalize


def test_minilm(minilm):
    opened = Checkpoint.open(minilm)
    assert opened.config["hidden_size"] == 384 and len(opened.tensors) == 104
    sentence = opened.sentence
    assert (sentence.pooling, sentence.normalize, sentence.max_length) == (("mean",), True, 256)
