"""What people give for a model's folder: files that cannot be opened, and folders of kinds that do not run here.

Each has one sentence that says what it is; a file that is there and cannot be opened is never taken for absent.
"""

import errno
import io
import json
import os
import re
import shlex
import shutil
import socket
import subprocess
import sys

import firesteel
import pytest
import tiny
from firesteel import CheckpointError, ConfigError
from firesteel.model import files, kinds, locate, node_cache
from firesteel.model.checkpoint import Checkpoint, files_read, outline

INDEX = "model.safetensors.index.json"


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    """With every file that is read."""
    folder = tiny.write(tmp_path_factory.mktemp("good") / "model", hidden=16, heads=2, inner=24, layers=1)
    tiny.write_sentence(folder, 16, transformer={"max_seq_length": 32}, settings={"prompts": {"q": "query: "}})
    for name, value in (("special_tokens_map.json", {}), ("added_tokens.json", {}), ("2_Normalize/config.json", {})):
        put(folder, name, value)
    put(folder, "vocab.txt", "\n".join(tiny.vocabulary(160)))
    return folder


@pytest.fixture
def folder(good, tmp_path):
    """A copy to damage."""
    return shutil.copytree(good, tmp_path / "model")


def put(folder, name, value):
    (folder / name).parent.mkdir(exist_ok=True, parents=True)
    (folder / name).write_text(value if isinstance(value, str) else json.dumps(value))


def said(kind, function, *given):
    with pytest.raises(kind) as raised:
        function(*given)
    assert type(raised.value) is kind
    assert "\n" not in str(raised.value)
    return str(raised.value)


def named(fault):
    return getattr(fault, "__name__", "")


# --- there, and cannot be opened --------------------------------------------------------------------------------------

READ = [
    "config.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.txt",
    "special_tokens_map.json",
    "added_tokens.json",
    "modules.json",
    "sentence_bert_config.json",
    "config_sentence_transformers.json",
    "1_Pooling/config.json",
    "2_Normalize/config.json",
]
LOOKED_FOR = ["adapter_config.json", "sentence_roberta_config.json"]  # whose absence changes something


def gone(path):
    path.symlink_to("../../blobs/gone")


def two_links(path):
    path.with_name("between").symlink_to("nowhere")
    path.symlink_to("between")


def loop(path):
    path.symlink_to(path.name)


def loop_of_two(path):
    path.with_name("other").symlink_to(path.name)
    path.symlink_to("other")


def through_a_file(path):
    path.with_name("file").write_text("")
    path.symlink_to("file/within")


def folder_of_models(path):
    path.mkdir()


def fifo(path):
    os.mkfifo(path)


def listening(path):
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(os.path.relpath(path))  # such an address has at most 107 bytes


def device(path):
    path.symlink_to("/dev/zero")


FAULTS = [
    (gone, "is a link to ../../blobs/gone, which is not there; copy or download the model again"),
    (two_links, "is a link to between, which is not there"),
    (loop, "is a link that leads back to itself"),
    (loop_of_two, "is a link that leads back to itself"),
    (through_a_file, "cannot be read: Not a directory"),
    (folder_of_models, "is a directory; a file belongs there"),
    (fifo, "is a FIFO; a file belongs there"),
    (listening, "is a socket; a file belongs there"),
    (device, "is a device; a file belongs there"),
]


@pytest.mark.parametrize(("fault", "words"), FAULTS, ids=named)
@pytest.mark.parametrize("name", READ + LOOKED_FOR)
def test_a_file_that_cannot_be_opened_is_not_taken_for_absent(folder, name, fault, words, monkeypatch):
    monkeypatch.chdir(folder)
    (folder / name).unlink(missing_ok=True)
    fault(folder / name)
    for reads in (Checkpoint.open, files_read, locate.fingerprint):
        assert said(CheckpointError, reads, folder).startswith(f"{folder / name}: {words}")


@pytest.mark.parametrize("name", [INDEX, "model-00002-of-00002.safetensors"])
@pytest.mark.parametrize(("fault", "words"), FAULTS[:4:3] + FAULTS[5:7], ids=named)
def test_shards_and_their_index(tmp_path, name, fault, words, monkeypatch):
    folder = tiny.write(tmp_path / "model", hidden=16, heads=2, inner=24, layers=1, shards=2)
    (folder / name).unlink()
    fault(folder / name)
    for reads in (Checkpoint.open, files_read, outline):
        assert said(CheckpointError, reads, folder).startswith(f"{folder / name}: {words}")


def test_weights_that_cannot_be_opened_are_not_looked_for_in_shards(tmp_path):
    folder = tiny.write(tmp_path / "model", hidden=16, heads=2, inner=24, layers=1, shards=2)
    gone(folder / "model.safetensors")
    assert "model.safetensors: is a link to" in said(CheckpointError, Checkpoint.open, folder)


@pytest.mark.parametrize("weights", [True, False])
def test_weights_that_may_be_missing_may_not_be_broken(folder, weights):
    (folder / "model.safetensors").unlink()
    gone(folder / "model.safetensors")
    assert "which is not there" in said(CheckpointError, Checkpoint.open, folder, weights)


@pytest.mark.parametrize("path", ["0_Transformer", "1_Pooling", "2_Normalize"])
@pytest.mark.parametrize(
    ("fault", "words"),
    [(gone, "is a link to"), (loop, "leads back"), (fifo, "is a FIFO; a folder belongs there")],
    ids=named,
)
def test_folders_of_modules(folder, path, fault, words):
    listed = json.loads((folder / "modules.json").read_text())
    listed[0]["path"] = "0_Transformer"
    put(folder, "modules.json", listed)
    (folder / "0_Transformer").mkdir()
    for name in ("config.json", "model.safetensors", "tokenizer.json"):
        (folder / name).rename(folder / "0_Transformer" / name)
    Checkpoint.open(folder)
    shutil.rmtree(folder / path)
    fault(folder / path)
    assert words in said(CheckpointError, Checkpoint.open, folder)
    (folder / path).unlink()
    (folder / path).write_text("{}")
    assert said(CheckpointError, Checkpoint.open, folder) == f"{folder / path}: is a file; a folder belongs there"


def test_a_module_without_settings_needs_no_folder(folder):
    """Git and archives drop empty ones."""
    shutil.rmtree(folder / "2_Normalize")
    assert Checkpoint.open(folder).sentence.normalize


@pytest.mark.parametrize(
    "name",
    [
        "pytorch_model.bin",
        "README.md",
        "tf_model.h5",
        "onnx/model.onnx",
        "1_Pooling/notes.txt",
        ".gitattributes",
        INDEX,
    ],
)
@pytest.mark.parametrize(("fault", "_"), FAULTS[:1] + FAULTS[2:3] + FAULTS[5:7], ids=named)
def test_what_is_never_read_may_be_broken(good, folder, name, fault, _):
    (folder / name).parent.mkdir(exist_ok=True)
    fault(folder / name)
    assert Checkpoint.open(folder).sentence == Checkpoint.open(good).sentence
    assert files_read(folder) == files_read(good)


def refuse(monkeypatch, call, path, code):
    """As root no mode is in the way: the system call itself fails, for this one file."""
    real = getattr(call[0], call[1])

    def refused(asked, *args, **options):
        if os.fspath(asked) == str(path):
            raise OSError(code, os.strerror(code), str(asked))
        return real(asked, *args, **options)

    monkeypatch.setattr(*call, refused)


@pytest.mark.parametrize("code", [errno.EACCES, errno.EIO, errno.ENAMETOOLONG, errno.ESTALE, errno.EMFILE])
@pytest.mark.parametrize("name", READ)
@pytest.mark.parametrize("call", ["lstat", "stat", "open"])
def test_what_the_system_refuses(folder, name, code, call, monkeypatch):
    where = (files, "open") if call == "open" else (os, call)
    monkeypatch.setattr(files, "open", open, raising=False)
    refuse(monkeypatch, where, folder / name, code)
    sentence = said(CheckpointError, Checkpoint.open, folder)
    assert sentence == f"{folder / name}: cannot be read: {os.strerror(code)}"


@pytest.mark.parametrize("name", ["config.json", "modules.json", "model.safetensors"])
def test_a_disk_that_fails_while_it_is_read(folder, name, monkeypatch):
    class Failing(io.FileIO):
        def read(self, *_):
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    def failing(path, mode):
        return Failing(path) if path == str(folder / name) else open(path, mode)

    monkeypatch.setattr(files, "open", failing, raising=False)
    assert said(CheckpointError, Checkpoint.open, folder) == f"{folder / name}: cannot be read: Input/output error"


# --- the name of a model ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("fault", "words"), [*FAULTS[:5], *FAULTS[6:]], ids=named)
@pytest.mark.parametrize("name", ["org/name", "model"])
def test_a_name_that_leads_to_no_folder_is_no_hubs(tmp_path, name, fault, words, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / name).parent.mkdir(exist_ok=True)
    fault(tmp_path / name)
    path = str(tmp_path / name)
    words = words.replace("a file belongs", "a folder belongs")
    for given in (name, path):
        assert locate.resolve(given).name == path
        assert said(CheckpointError, Checkpoint.open, given).startswith(f"{path}: {words}")
        assert said(CheckpointError, firesteel.Engine, given).startswith(f"{path}: {words}")
        assert said(CheckpointError, locate.describe, locate.resolve(given)).startswith(f"{path}: {words}")


@pytest.mark.parametrize("name", ["n" * 256, "a/" * 2100 + "b", "x/" + "y" * 300])
def test_a_name_that_is_too_long(tmp_path, name, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x").mkdir()
    for opens in (Checkpoint.open, firesteel.Engine, firesteel.plan):
        assert "cannot be read: File name too long" in said(CheckpointError, opens, name)


def test_a_working_directory_that_was_removed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here").mkdir()
    os.chdir(tmp_path / "here")
    (tmp_path / "here").rmdir()
    sentence = "model: is relative to a working directory that was removed; give the path from the root"
    assert said(CheckpointError, Checkpoint.open, "model") == sentence
    for opens in (firesteel.Engine, firesteel.plan):  # a relative name is looked for in other places too
        assert "was removed" in said(CheckpointError, opens, "model")


@pytest.mark.parametrize("name", ["model\ud800", "a/\udfff/b"])
def test_a_name_that_no_file_can_have(name):
    assert said(CheckpointError, Checkpoint.open, name).startswith(
        f"model is {name!r}; the path of a model folder belongs"
    )


@pytest.mark.parametrize(("fault", "words"), [*FAULTS[:6:2], *FAULTS[5:7]], ids=named)
def test_nothing_broken_is_copied_from_a_mount(folder, fault, words, tmp_path, monkeypatch):
    monkeypatch.setenv("FIRESTEEL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(node_cache, "network_mount", lambda path: str(tmp_path) if path == str(folder) else None)
    (folder / "modules.json").unlink()
    fault(folder / "modules.json")
    assert said(CheckpointError, node_cache.near, str(folder)).startswith(f"{folder / 'modules.json'}: {words}")
    (folder / "modules.json").rmdir() if fault is folder_of_models else (folder / "modules.json").unlink()
    assert files_read(node_cache.near(str(folder))) == files_read(folder)


@pytest.mark.parametrize(("fault", "words"), [*FAULTS[:6:2], *FAULTS[5:7]], ids=named)
@pytest.mark.parametrize("name", ["tokenizer.json", "added_tokens.json"])
def test_mlflows_tokenizer_folder(folder, tmp_path, name, fault, words):
    """What its transformers flavour puts into another folder is moved to the model, or is an error."""
    apart = tmp_path / "components" / "tokenizer"
    apart.mkdir(parents=True)
    for moved in (
        "tokenizer.json",
        "tokenizer_config.json",
        "vocab.txt",
        "special_tokens_map.json",
        "added_tokens.json",
    ):
        (folder / moved).rename(apart / moved)
    whole = (apart / name).read_bytes()
    (apart / name).unlink()
    fault(apart / name)
    assert said(CheckpointError, locate._join_tokenizer, str(folder)).startswith(f"{apart / name}: {words}")
    (apart / name).rmdir() if fault is folder_of_models else (apart / name).unlink()
    (apart / name).write_bytes(whole)
    locate._join_tokenizer(str(folder))
    assert (folder / name).read_bytes() == whole and not (apart / name).exists()


def test_a_file_that_lfs_has_left_out(folder):
    for name in ("config.json", "tokenizer_config.json", "modules.json"):
        whole = (folder / name).read_text()
        put(folder, name, "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
        sentence = f"{folder / name}: is a Git LFS pointer, not the file; run: git lfs pull"
        assert said(CheckpointError, Checkpoint.open, folder) == sentence
        put(folder, name, whole)


# --- folders of another kind ------------------------------------------------------------------------------------------

ALL = ("model.safetensors", "config.json", "tokenizer.json", "tokenizer_config.json")  # what tiny.write makes


@pytest.fixture
def bare(tmp_path):
    return tiny.write(tmp_path / "model", hidden=16, heads=2, inner=24, layers=1)


KINDS = [
    # of the good folder stays, what lies there too, what it is, the way out
    (ALL[1:], ["model.onnx"], "an ONNX export (model.onnx)", "copy model.safetensors from where"),
    (
        ALL[1:],
        ["onnx/model.onnx", "onnx/model_O4.onnx"],
        "(onnx/model.onnx, onnx/model_O4.onnx)",
        "copy model.safetensors",
    ),
    ((), ["model.onnx", "model.onnx_data"], "config.json is missing; it holds an ONNX export", "give the folder that"),
    (ALL[1:], ["openvino/openvino_model.xml", "openvino/openvino_model.bin"], "an OpenVINO export", "copy model"),
    (ALL[1:], ["openvino_model.bin", "openvino_model.xml"], "an OpenVINO export", "copy model.safetensors"),
    (ALL[1:], ["model.bin", "vocabulary.json"], "a CTranslate2 model (model.bin)", "copy model.safetensors"),
    (ALL[1:], ["tf_model.h5"], "TensorFlow weights (tf_model.h5)", "copy model.safetensors"),
    (ALL[1:], ["flax_model.msgpack"], "Flax weights", "copy model.safetensors"),
    ((), ["llama.Q4_K_M.gguf"], "GGUF, llama.cpp's format (llama.Q4_K_M.gguf)", "give the folder that holds"),
    (ALL[1:], ["model-q8_0.gguf"], "GGUF, llama.cpp's format", "copy model.safetensors"),
    ((), ["adapter_config.json", "adapter_model.safetensors"], "has an adapter", "merge_and_unload"),
    (ALL, ["adapter_config.json", "adapter_model.safetensors"], "has an adapter", "merge_and_unload"),
    (ALL[1:], ["adapter_config.json", "adapter_model.bin"], "has an adapter", "merge_and_unload"),
    (ALL[2:], [], "it holds a tokenizer (tokenizer.json, tokenizer_config.json) and no model", "give the folder"),
    ((), ["optimizer.pt", "scheduler.pt", "rng_state_0.pth"], "state of a training (optimizer.pt,", "and no model"),
    (ALL[1:], ["optimizer.pt", "trainer_state.json"], "state of a training", "and no model; found config.json"),
    (ALL[1:], ["model-00001-of-00003.safetensors"], "model.safetensors.index.json is missing", "model-00001-of-00003"),
    (ALL[1:], ["weights.safetensors"], "found weights.safetensors", "name the one that holds the model so"),
    ((), ["a/config.json", "a/model.safetensors", "b/modules.json"], "models lie in a, b", "give the folder of one"),
    (
        (),
        ["snapshots/1f2e/config.json", "snapshots/1f2e/model.safetensors", "refs/main"],
        "snapshots/1f2e",
        "give that",
    ),
    (
        ALL[1:],
        ["checkpoint-9/config.json", "checkpoint-9/model.safetensors"],
        "lies in checkpoint-9",
        "give that folder",
    ),
    ((), ["x/config.json", "x/pytorch_model.bin"], "a model lies in x", "give that folder"),
    ((), ["model_index.json", "unet/config.json", "unet/a.safetensors"], "diffusers, which makes images", "are bert ("),
    (ALL[1:], ["last.ckpt"], "has only last.ckpt; pickles can run code", "save_pretrained"),
    ((), [], "config.json is missing", "found nothing"),
    ((), ["notes.txt"], "config.json is missing", "found notes.txt"),
]


@pytest.mark.parametrize(("stays", "also", "what", "way_out"), KINDS, ids=lambda value: str(value)[:40])
def test_a_folder_of_another_kind(bare, stays, also, what, way_out):
    for name in set(ALL) - set(stays):
        (bare / name).unlink()
    for name in also:
        put(bare, name, "{}" if name == "adapter_config.json" else "x")
    for opens in (Checkpoint.open, files_read, firesteel.Engine, firesteel.embed_udf):
        sentence = said(CheckpointError, opens, str(bare))
        assert sentence.startswith(f"{bare}: ") and what in sentence and way_out in sentence, sentence


FILES = [
    ("model.gguf", "is GGUF, llama.cpp's format, which does not run here; give the folder"),
    ("model.onnx", "is an ONNX export, which does not run here; give the folder"),
    ("pytorch_model.bin", "is a pickle, which can run code when it is read, and is refused; give the folder"),
    ("model.safetensors", "is a file; give the folder it lies in, "),
    ("config.json", "is a file; give the folder it lies in, "),
    ("model.zip", "is a file; give the folder that holds config.json and *.safetensors"),
]


@pytest.mark.parametrize(("name", "words"), FILES, ids=lambda value: str(value)[:20])
def test_a_file_instead_of_a_folder(bare, name, words):
    (bare / name).touch()
    for opens in (Checkpoint.open, firesteel.Engine, firesteel.plan):
        assert said(CheckpointError, opens, str(bare / name)).startswith(f"{bare / name}: {words}")


def test_a_folder_of_very_many_folders_is_not_searched_for_long(tmp_path):
    for number in range(1001):
        (tmp_path / f"{number:04}").mkdir()
    put(tmp_path, "0000/deep/config.json", {})
    put(tmp_path, "0000/deep/model.safetensors", "")
    assert "found 0000, 0001" in said(CheckpointError, Checkpoint.open, tmp_path)


def test_a_folder_in_itself_is_searched_to_an_end(tmp_path):
    (tmp_path / "again").symlink_to(tmp_path)
    (tmp_path / "lost").symlink_to("nowhere")
    assert "found again, lost" in said(CheckpointError, Checkpoint.open, tmp_path)


# --- types ------------------------------------------------------------------------------------------------------------

RUN = "supported are bert (encoders such as all-MiniLM-L6-v2), albert, "
TYPES = [
    ("roberta-prelayernorm", {}, "is an encoder that does not run here yet, the nearest is roberta (it normalises"),
    ("xlm-roberta-xl", {}, "the nearest is xlm-roberta (it normalises before each layer"),
    ("rembert", {}, "the nearest is albert (its token embeddings are narrower"),
    ("deberta", {}, "the nearest is bert (its attention weighs relative positions"),
    ("modernbert", {}, "the nearest is bert (its positions are rotary"),
    ("xlm_roberta", {}, "is not known; did you mean xlm-roberta?"),
    ("xlmroberta_xl", {}, "is not known; xlm-roberta-xl, the nearest name, is an encoder that does not run here yet"),
    ("reformer", {}, "the nearest is bert (its attention goes by hashes"),
    ("sentence-transformers", {}, "is not known; supported are"),
    ("robrta", {}, "is not known; did you mean roberta?"),
    (
        "gpt2",
        {},
        "is a decoder, which generates text, and does not run here yet; for vectors the nearest is",
    ),
    ("llama", {}, "is a decoder, which generates text"),
    ("qwen3", {}, "is a decoder, which generates text"),
    ("later", {"architectures": ["LaterForCausalLM"]}, "is a decoder, which generates text"),
    ("later", {"is_decoder": True}, "is a decoder, which generates text"),
    ("t5", {}, "is an encoder-decoder, which generates text"),
    ("t5-small", {}, "is not known; t5, the nearest name, is an encoder-decoder"),
    ("bart", {}, "is an encoder-decoder, which generates text"),
    ("later", {"architectures": ["LaterForConditionalGeneration"]}, "is an encoder-decoder, which generates text"),
    ("later", {"is_encoder_decoder": True}, "is an encoder-decoder, which generates text"),
    ("vit", {}, "is a model of images, which does not run here, and none that does is near it"),
    ("later", {"architectures": ["LaterForImageClassification"]}, "is a model of images"),
    ("later", {"image_size": 224, "patch_size": 16}, "is a model of images"),
    ("clip", {}, "is a model of images and text"),
    ("later", {"vision_config": {}}, "is a model of images and text"),
    ("whisper", {}, "is a model of sound"),
    ("brt", {}, "is not known; did you mean bert?"),
    ("BERT", {}, "is not known; did you mean bert?"),
    ("bert-base-uncased", {}, "is not known; did you mean bert?"),
    ("torch-transformers", {}, "is not known; did you mean torch_transformer?"),
    (
        "mine",
        {"architectures": ["BertModel"]},
        "did you mean bert, whose architectures (BertModel) it names?",
    ),
    (
        "later",
        {"auto_map": {"AutoModel": "code.Model"}},
        "it comes with Python code of its own, which is never run",
    ),
    ("later", {"architectures": ["LaterModel", 3]}, "(architectures: LaterModel) is not known"),
    ("later", {"architectures": "LaterModel"}, "is not known"),
    ("x" * 100_000, {}, f"model_type '{'x' * 60}' is not known"),
]


@pytest.mark.parametrize(("kind", "also", "words"), TYPES, ids=lambda value: str(value)[:40])
def test_a_type_that_does_not_run(bare, kind, also, words):
    config = json.loads((bare / "config.json").read_text())
    config.pop("architectures", None)
    put(bare, "config.json", config | {"model_type": kind} | also)
    for opens in (Checkpoint.open, firesteel.Engine, firesteel.embed_udf, firesteel.plan):
        sentence = said(ConfigError, opens, str(bare))
        assert sentence.startswith(f"{bare / 'config.json'}: model_type '{kind[:60]}'")
        assert words in sentence and RUN in sentence.replace("Supported", "supported"), sentence


UNTYPED = [
    ({}, 'so the architecture is unknown; add it ("bert", ...); supported are bert'),
    ({"model_type": 3}, "so the architecture is unknown"),
    ({"model_type": ""}, "so the architecture is unknown"),
    ({"model_type": None, "architectures": ["BertForMaskedLM"]}, 'those of bert: add "model_type": "bert"'),
    ({"part": "encoder", "d_model": 48, "nhead": 4}, 'add "model_type": "torch_transformer"'),
    ({"pooling_mode_mean_tokens": True}, "that of a sentence-transformers module; give the folder above, "),
    ({"architecture": "vit_base_patch16_224", "num_features": 768}, "that of a timm model, a model of images"),
]


@pytest.mark.parametrize(("config", "words"), UNTYPED, ids=str)
def test_a_config_without_a_type(bare, config, words):
    put(bare, "config.json", config)
    sentence = said(CheckpointError, Checkpoint.open, bare)
    assert sentence.startswith(f"{bare / 'config.json'}: has no model_type, ") and words in sentence


def test_no_type_that_runs_is_told_otherwise():
    """They are asked for what the registry does not have: what it has by now may still be in them."""
    for kind in {*kinds._ENCODERS, *kinds._WHAT} & set(kinds._known()):
        kinds.check_type("config.json", {"model_type": kind})
    assert set(kinds._RUNS) <= set(kinds._known())


@pytest.mark.reference
def test_the_tables_name_types_that_there_are():
    """transformers knows them, or they come with code of their own."""
    auto = pytest.importorskip("transformers.models.auto.configuration_auto")
    own_code = {"eurobert", "gte", "jina_bert", "minicpm", "mpt", "new", "nomic_bert", "byt5"}
    unknown = {*kinds._ENCODERS, *kinds._WHAT} - set(auto.CONFIG_MAPPING_NAMES) - own_code
    assert not unknown


@pytest.mark.reference
@pytest.mark.parametrize("name", ["BertModel", "BertForSequenceClassification", "BertForMaskedLM"])
def test_the_command_that_a_pickle_is_answered_with(tmp_path, name):
    """Run as it stands, it writes a folder that opens, with the same weights and the head kept."""
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    folder = tmp_path / "it's a $HOME"
    config = transformers.BertConfig(**tiny.config(hidden=16, heads=2, inner=24, layers=1))
    model = getattr(transformers, name)(config)
    model.save_pretrained(folder)
    (folder / "model.safetensors").unlink()
    torch.save(model.state_dict(), folder / "pytorch_model.bin")
    sentence = said(CheckpointError, Checkpoint.open, folder)
    command = re.search(r"convert once: (.*)", sentence)[1]
    python = f"{shlex.quote(sys.executable)} {command.removeprefix('python ')}"
    done = subprocess.run(["/bin/sh", "-c", python], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    opened = Checkpoint.open(folder)
    assert opened.config["architectures"] == [name]
    tied = {"cls.predictions.decoder.weight", "cls.predictions.decoder.bias"}
    expected = {key for key in model.state_dict() if "position_ids" not in key} - tied
    assert {tensor[0] for tensor in opened.tensors} - tied == expected
