"""Where models come from: every form of `model`, resolved once, and the same files everywhere or a sentence.

No test asks a network. The hub's cache is laid out by hand as huggingface_hub does it, and read by huggingface_hub
itself, offline. MLflow is heavy, so a module stands in for it that has the functions firesteel calls, with their
names and arguments, over folders of this test.
"""

import os
import pickle
import shutil
import sys
import types
from pathlib import Path

import firesteel
import numpy as np
import pytest
import tiny
from firesteel.model import locate, node_cache
from firesteel.model.locate import Located

COMMIT, OTHER = "a" * 40, "b" * 40


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("FIRESTEEL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(node_cache, "_held", {})
    return tmp_path / "cache" / f"firesteel-models-{os.geteuid()}"


def fails(kind, model, *words, ask=locate.find):
    with pytest.raises(kind) as failed:
        ask(model)
    said = str(failed.value)
    assert "\n" not in said and all(word in said for word in words), said


# --- folders ----------------------------------------------------------------------------------------------------------


def test_folders_by_every_spelling(tmp_path, monkeypatch):
    model = tiny.write(tmp_path / "org" / "model")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for given in (str(model), model, "org/model", "./org/model", "~/org/model", "org/model/"):
        assert locate.resolve(given) == Located(str(model))
        assert locate.find(given) == str(model)


@pytest.mark.parametrize(
    ("given", "path"),
    [
        ("dbfs:/models/minilm", "/dbfs/models/minilm"),
        ("dbfs:///models/minilm", "/dbfs/models/minilm"),
        ("dbfs:/Volumes/main/default/minilm", "/Volumes/main/default/minilm"),
        ("/Volumes/main/default/minilm", "/Volumes/main/default/minilm"),
        ("/models/../models//minilm/", "/models/minilm"),
        ("file:///models/minilm", "/models/minilm"),
        ("file:/models/minilm/", "/models/minilm"),
        ("FILE://localhost/models/minilm", "/models/minilm"),
        (Path("file:///models/minilm"), "/models/minilm"),
        ("file:////models/minilm", "/models/minilm"),
        ("file:///a%20b/%C3%A9t%C3%A9", "/a b/\u00e9t\u00e9"),
        ("file:/a b/c%zz", "/a b/c%zz"),
        ("file:///bytes/%FF", "/bytes/\udcff"),
        ("./no/such", "./no/such"),
        ("no/such/", "./no/such"),
        ("a/b/../c/d/", "./a/c/d"),
        ("../none", "../none"),
        (".none", "./.none"),
        ("none", "./none"),
        (np.str_("none"), "./none"),
    ],
)
def test_paths_need_not_be_there_to_be_resolved(given, path):
    assert locate.resolve(given) == Located(path)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (3, ["model is a int", "hub id"]),
        ("", ["model is ''"]),
        ("a\0b", ["belongs there"]),
        (b"model", ["as a string"]),
        ("s3://bucket/model", ["s3://bucket/model: cannot be opened", "copy the model", "a Volume"]),
        ("s3a://bucket/model", ["s3a://bucket/model: cannot be opened", "copy the model"]),
        (Path("gs://bucket/model"), ["gs:/bucket/model: cannot be opened", "copy the model"]),
        ("abfss://c@account.dfs.core.windows.net/model", ["cannot be opened", "copy the model to a folder"]),
        ("hdfs:///models/minilm", ["hdfs:///models/minilm: cannot be opened", "copy the model"]),
        ("https://example.com/org/name", ["https://example.com/org/name: cannot be opened"]),
        ("https://huggingface.co/org/name", ["an address of the hub", 'give the id of a model there: "org/name"']),
        ("https://huggingface.co/org/name/", ['there: "org/name"']),
        ("http://hf.co/org/name?library=x", ['there: "org/name"']),
        (Path("https://huggingface.co/org/name"), ['there: "org/name"']),
        ("https://www.huggingface.co/org/name.v2/tree/v1.0/sub", ['there: "org/name.v2@v1.0"']),
        ("https://huggingface.co/org/name/blob/main/config.json", ['there: "org/name@main"']),
        ("https://huggingface.co/bert-base-uncased", ['there: "org/name"']),
        ("https://huggingface.co/datasets/org/name", ['there: "org/name"']),
        ("hf://org/name@v1", ['there: "org/name@v1"']),
        ("runs:/0123/model", ["mlflow.register_model", '"models:/name/version"']),
        ("file://models/minilm", ["names another host, models", "file:///models/minilm"]),
        ("file://server:80/share", ["names another host, server:80"]),
        ("file:minilm", ["takes a path from the root, as file:///models/minilm"]),
        ("file:", ["takes a path from the root"]),
        ("file://localhost", ["takes a path from the root"]),
        ("file:///a%00b", ["has a NUL"]),
        ("models:/a/b/c", ["is no model of MLflow"]),
        ("models:", ["is no model of MLflow"]),
    ],
)
def test_what_is_no_model(given, words):
    fails(firesteel.CheckpointError, given, *words, ask=locate.resolve)


def test_engine_plan_and_connect_take_every_form(tmp_path, monkeypatch):
    """They ask locate, all of them: a form that only it knows is refused by its sentence."""
    for ask in (firesteel.Engine, firesteel.connect, firesteel.plan, firesteel.embed_udf, firesteel.hidden_states_udf):
        fails(firesteel.CheckpointError, "s3://bucket/model", "s3://bucket/model: cannot be opened", ask=ask)


# --- relative folders, and where Spark puts what it ships ------------------------------------------------------------


@pytest.fixture
def ships(tmp_path, monkeypatch) -> Path:
    """Stands in for pyspark, with the one thing that is asked of it: the folder of shipped files. An empty directory is
    the working one."""
    root = tmp_path / "shipped files"
    root.mkdir()
    (tmp_path / "working").mkdir()
    monkeypatch.chdir(tmp_path / "working")
    spark = types.ModuleType("pyspark")
    spark.SparkFiles = types.SimpleNamespace(getRootDirectory=lambda: str(root))
    spark.TaskContext = types.SimpleNamespace(get=lambda: "a task")
    monkeypatch.setitem(sys.modules, "pyspark", spark)
    return root


@pytest.mark.parametrize("given", ["minilm", "./minilm/", "models/minilm", "./a/b/minilm", Path("minilm")], ids=str)
def test_a_relative_folder_is_found_where_it_is_shipped(ships, given):
    model = tiny.write(ships / given)
    located = locate.resolve(given)
    assert located.name == f"./{Path(given)}"  # each machine has its own place for it
    assert locate.find(located) == str(model) == locate.here(located)
    seen, folder = locate.describe(located)
    assert folder == str(model) and dict(seen.files).keys() >= {"config.json", "model.safetensors"}


def test_the_working_directory_comes_first(ships, tmp_path):
    here, shipped = tiny.write(tmp_path / "working" / "minilm", seed=1), tiny.write(ships / "minilm")
    assert locate.resolve("minilm") == Located(str(here))  # a driver that has it means its own
    located = Located("./minilm")
    assert locate.find(located) == str(here)
    shutil.rmtree(here)
    assert locate.find(located) == str(shipped)
    (tmp_path / "working" / "minilm").write_text("the archive that was unpacked under its own name")
    assert locate.find(located) == str(shipped)
    assert locate.resolve("minilm") == located


def test_a_shipped_folder_with_other_files_is_named(ships, tmp_path):
    tiny.write(ships / "minilm")
    located = described("minilm")
    other = tiny.write(tmp_path / "working" / "minilm", act="relu")
    fails(firesteel.CheckpointError, located, f"{other}/config.json: differs from the file that the driver saw")


@pytest.mark.parametrize("given", ["minilm", "./models/minilm", "../minilm"])
def test_a_relative_folder_that_is_nowhere(ships, tmp_path, given):
    working = str(tmp_path / "working")
    fails(firesteel.CheckpointError, Located(locate.resolve(given).name), "no such folder", working, str(ships))


def test_a_relative_folder_outside_of_spark(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "pyspark", None)
    fails(firesteel.CheckpointError, "minilm", f"no such folder in the working directory ({tmp_path})", '"org/minilm"')
    fails(firesteel.CheckpointError, "./a/b", f"./a/b: no such folder in the working directory ({tmp_path})")


def test_a_driver_without_a_place_for_files(tmp_path, monkeypatch):
    """As with Spark Connect, or before there is a session."""
    monkeypatch.chdir(tmp_path)

    def none():
        raise AssertionError

    spark = types.ModuleType("pyspark")
    spark.SparkFiles = types.SimpleNamespace(getRootDirectory=none)
    monkeypatch.setitem(sys.modules, "pyspark", spark)
    assert locate.describe(locate.resolve("./minilm")) == (Located("./minilm"), None)


def test_a_working_directory_that_was_removed(tmp_path, monkeypatch):
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    model = tiny.write(tmp_path / "model")
    assert locate.find(model) == str(model)
    fails(firesteel.CheckpointError, "./minilm", "the working directory (which was removed)")
    monkeypatch.chdir(tmp_path)


def test_escapes_of_a_uri_are_escapes_unless_they_are_the_name(tmp_path):
    literal = tiny.write(tmp_path / "a%20b")
    assert locate.find(f"file://{literal}") == str(literal)  # as Hadoop writes it
    spaced = tiny.write(tmp_path / "a b")
    assert locate.find(f"file://{literal}") == str(spaced)
    assert locate.find(spaced.as_uri()) == str(spaced)
    assert locate.find(literal.as_uri()) == str(literal)
    with firesteel.Engine(literal.as_uri(), devices="cpu", threads=1) as engine:
        assert engine.embed(["a row"]).shape == (1, 48)


# --- the same files everywhere ----------------------------------------------------------------------------------------


def described(model) -> Located:
    return locate.describe(locate.resolve(model))[0]


def test_a_described_model_is_small_hashable_and_travels(tmp_path):
    model = tiny.write(tmp_path / "model", shards=3, sentence={})
    located = described(model)
    names = [name for name, _ in located.files]
    assert "model-00002-of-00003.safetensors" in names and "1_Pooling/config.json" in names and "config.json" in names
    again = pickle.loads(pickle.dumps(located))
    assert again == located and hash(again) == hash(located) and len(pickle.dumps(located)) < 2000
    assert locate.find(again) == str(model)


def touched_weight(model):
    path = model / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-3] ^= 1  # same header, same size
    path.write_bytes(data)


def other_weights(model):
    tiny.write(model, seed=1)


def other_config(model):
    (model / "config.json").write_text((model / "config.json").read_text() + "\n")


def lost(model):
    (model / "tokenizer_config.json").unlink()


def more(model):
    (model / "vocab.txt").write_text("[PAD]\n")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (other_config, ["config.json: differs", "make the function again", "give all of them the same"]),
        (other_weights, ["model.safetensors: differs"]),
        (touched_weight, ["model.safetensors: differs"]),
        (lost, ["tokenizer_config.json: is missing here"]),
        (more, ["vocab.txt: is here; the driver did not see it"]),
    ],
)
def test_a_file_that_differs_is_named(tmp_path, change, words):
    model = tiny.write(tmp_path / "model")
    located = described(model)
    change(model)
    fails(firesteel.CheckpointError, located, str(model), *words)
    assert locate.find(described(model)) == str(model)  # made again, it is what there is


def test_what_nobody_reads_may_differ(tmp_path):
    model = tiny.write(tmp_path / "model")
    located = described(model)
    (model / "README.md").write_text("a model")
    (model / "trainer_state.json").write_text("{}")
    os.utime(model / "config.json", ns=(1, 1))
    assert locate.find(located) == str(model)


def test_a_folder_that_was_moved_is_named(tmp_path):
    model = tiny.write(tmp_path / "model")
    located = described(model)
    model.rename(tmp_path / "moved")
    fails(firesteel.CheckpointError, located, f"{model}: no such folder; the driver saw it", "moved or removed")


def test_a_driver_without_the_folder_leaves_it_to_the_others(tmp_path):
    assert locate.describe(locate.resolve(str(tmp_path / "none"))) == (Located(str(tmp_path / "none")), None)


def test_a_copy_is_compared_too(tmp_path, monkeypatch):
    monkeypatch.setattr(node_cache, "_mounts", lambda: [(str(tmp_path / "mount"), "nfs4")])
    model = tiny.write(tmp_path / "mount" / "model")
    located = described(model)
    assert locate.find(located) != str(model)
    other_weights(model)
    fails(firesteel.CheckpointError, located, f"{model}/model.safetensors: differs")


def read_by_this_process() -> int:
    """Bytes, so far."""
    return int(Path("/proc/self/io").read_text().split()[1])


def test_a_fingerprint_reads_little_of_large_weights(tmp_path):
    folder = tiny.write(tmp_path / "model")
    os.truncate(folder / "model.safetensors", 4 << 30)  # takes no room on the disk
    before = read_by_this_process()
    assert dict(locate.fingerprint(folder))["model.safetensors"]
    assert read_by_this_process() - before < 1 << 20


# --- Hugging Face hub -------------------------------------------------------------------------------------------------


@pytest.fixture
def hub(tmp_path, monkeypatch) -> Path:
    """An empty cache of the hub, and a process without a network."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return tmp_path / "hub"


def put(hub: Path, commit: str, ref: str | None = "main", weights: bool = True, **model: object) -> Path:
    """org/name at a commit as huggingface_hub keeps it: blobs, snapshots of links to them, refs."""
    storage, source = hub / "models--org--name", tiny.write(hub.parent / f"source-{commit}", **model)
    snapshot = storage / "snapshots" / commit
    for path in sorted(p for p in source.rglob("*") if p.is_file() and (weights or p.suffix != ".safetensors")):
        blob = storage / "blobs" / f"{commit[:4]}-{path.relative_to(source).as_posix().replace('/', '-')}"
        blob.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, blob)
        link = snapshot / path.relative_to(source)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(os.path.relpath(blob, link.parent))
    if ref:
        (storage / "refs").mkdir(exist_ok=True)
        (storage / "refs" / ref).write_text(commit)
    return snapshot


@pytest.mark.parametrize("given", ["org/name", "org/name@main", f"org/name@{COMMIT}"])
def test_a_hub_id_is_its_commit_and_opens_offline(hub, given):
    snapshot = put(hub, COMMIT, sentence={})
    located = described(given)
    assert located.name == f"org/name@{COMMIT}" and located.with_weights
    assert Path(locate.find(located)) == snapshot
    with firesteel.Engine(given, devices="cpu") as engine, firesteel.Engine(snapshot, devices="cpu") as same:
        assert np.array_equal(engine.embed(["a row"]), same.embed(["a row"]))


def test_a_branch_that_moves_later_moves_nothing(hub):
    first = put(hub, COMMIT)
    located = described("org/name")
    second = put(hub, OTHER, seed=1)
    assert Path(locate.find(located)) == first
    assert Path(locate.find("org/name@main")) == second


def test_a_driver_with_the_small_files_only_describes_and_plans(hub):
    """It downloads no weights; executors do, or have them, and compare what the driver saw."""
    snapshot = put(hub, COMMIT, weights=False, sentence={})
    job = firesteel.embed_udf("org/name").job
    assert job.model.name == f"org/name@{COMMIT}" and not job.model.with_weights
    assert "1_Pooling/config.json" in dict(job.model.files)
    assert firesteel.plan("org/name").fits
    fails(
        firesteel.CheckpointError,
        job.model,
        "org/name@" + COMMIT,
        "gives no whole model",
        "model.safetensors is missing",
    )
    shutil.copy(hub.parent / f"source-{COMMIT}" / "model.safetensors", snapshot)
    assert Path(locate.find(job.model)) == snapshot
    (snapshot / "config.json").unlink()
    other = tiny.config(hidden=24)
    (snapshot / "config.json").write_text(str(other).replace("'", '"').replace("None", "null").replace("True", "true"))
    fails(firesteel.CheckpointError, job.model, f"org/name@{COMMIT}, config.json: differs")


def test_options_are_checked_against_a_hub_model_on_the_driver(hub):
    put(hub, COMMIT, weights=False)
    with pytest.raises(firesteel.RequestError, match="max_length is 65; the model has 64 positions"):
        firesteel.embed_udf("org/name", max_length=65)


def test_a_local_folder_comes_before_a_hub_id(hub, tmp_path, monkeypatch):
    put(hub, COMMIT)
    tiny.write(tmp_path / "here" / "org" / "name")
    monkeypatch.chdir(tmp_path / "here")
    assert locate.find("org/name") == str(tmp_path / "here" / "org" / "name")


@pytest.mark.parametrize("given", ["org/other", "org/name@other", f"org/name@{OTHER}"])
def test_a_hub_id_that_is_not_known(hub, given):
    put(hub, COMMIT)
    fails(firesteel.CheckpointError, given, f"{given}: no such folder, and the hub does not give it", "HF_TOKEN")


def test_what_is_asked_of_the_hub(hub, monkeypatch):
    """Once on the driver, for small files; once on an executor without the weights, for a commit and for no pickle."""
    import huggingface_hub

    snapshot, asked = put(hub, COMMIT, weights=False), []

    def download(repository, *, revision=None, allow_patterns=None, local_files_only=False):
        if not local_files_only:
            asked.append((repository, revision))
            matches = huggingface_hub.utils.filter_repo_objects
            wanted = [
                "model.safetensors",
                "pytorch_model.bin",
                "1_Pooling/config.json",
                "0_Transformer/model.safetensors",
            ]
            asked.append(list(matches([*wanted, "onnx/model.onnx", "README.md"], allow_patterns=allow_patterns)))
            if "model.safetensors" in asked[-1] and not (snapshot / "model.safetensors").exists():
                shutil.copy(hub.parent / f"source-{COMMIT}" / "model.safetensors", snapshot)
        return str(snapshot)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    located = locate.resolve("org/name@v2")
    assert asked == [("org/name", "v2"), ["1_Pooling/config.json"]]
    asked.clear()
    locate.find(located)
    weights = ["model.safetensors", "1_Pooling/config.json", "0_Transformer/model.safetensors"]
    assert asked == [("org/name", COMMIT), weights]
    asked.clear()
    locate.find(located)
    assert asked == []


def test_a_hub_cache_that_is_full(hub, monkeypatch):
    import errno

    import huggingface_hub

    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", full)
    fails(firesteel.CheckpointError, "org/name", "is full; set HF_HUB_CACHE to a larger disk")


def test_a_library_that_is_missing_is_named_with_its_extra(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    monkeypatch.setitem(sys.modules, "mlflow", None)
    fails(firesteel.ConfigError, "org/name", "org/name: no such folder", "pip install 'firesteel[hub]'")
    fails(firesteel.ConfigError, "models:/name/1", "models:/name/1", "pip install 'firesteel[mlflow]'")


def test_folders_import_no_library(tmp_path, monkeypatch):
    for name in ("huggingface_hub", "mlflow"):
        monkeypatch.setitem(sys.modules, name, None)
    model = tiny.write(tmp_path / "model")
    assert locate.find(described(model)) == str(model)


# --- MLflow -----------------------------------------------------------------------------------------------------------


class Registry:
    """Versions of models as folders, aliases and stages, and what was asked."""

    def __init__(self) -> None:
        self.versions: dict[tuple[str, str], Path] = {}
        self.made: dict[tuple[str, str], int] = {}
        self.aliases: dict[tuple[str, str], str] = {}
        self.stages: dict[tuple[str, str], list[str]] = {}
        self.downloads: list[tuple[str, str]] = []
        self.uri = "databricks-uc"

    def put(self, name: str, version: str, folder: Path, made: int = 1) -> None:
        self.versions[name, version] = folder
        self.made[name, version] = made

    def version(self, name: str, version: str) -> types.SimpleNamespace:
        if (name, version) not in self.versions:
            raise KeyError(f"RESOURCE_DOES_NOT_EXIST: {name} has no version {version}\nand a second line")
        return types.SimpleNamespace(version=version, creation_timestamp=self.made[name, version])


@pytest.fixture
def registry(monkeypatch) -> Registry:
    """Stands in for mlflow, with the functions that firesteel calls."""
    made, uris = Registry(), {"tracking": "databricks", "registry": "databricks-uc"}

    class MlflowClient:
        def get_model_version(self, name, version):
            return made.version(name, version)

        def get_model_version_by_alias(self, name, alias):
            return made.version(name, made.aliases[name, alias])

        def get_latest_versions(self, name, stages):
            return [made.version(name, version) for version in made.stages.get((name, *stages), [])]

        def search_model_versions(self, filter_string):
            return [made.version(n, v) for n, v in made.versions if filter_string == f"name = '{n}'"]

    def download_artifacts(artifact_uri, dst_path):
        name, _, version = artifact_uri.removeprefix("models:/").partition("/")
        made.downloads.append((artifact_uri, uris["registry"]))
        made.version(name, version)
        shutil.copytree(made.versions[name, version], dst_path, dirs_exist_ok=True)
        return dst_path

    module = types.ModuleType("mlflow")
    module.MlflowClient = MlflowClient
    module.artifacts = types.SimpleNamespace(download_artifacts=download_artifacts)
    module.get_tracking_uri, module.get_registry_uri = lambda: uris["tracking"], lambda: uris["registry"]
    module.set_tracking_uri = lambda uri: uris.update(tracking=uri)
    module.set_registry_uri = lambda uri: uris.update(registry=uri)
    monkeypatch.setitem(sys.modules, "mlflow", module)
    return made


def logged(top: Path, seed: int = 0, **model: object) -> Path:
    """As mlflow.transformers.log_model leaves it: the tokenizer is in a folder beside the model's."""
    tiny.write(top / "model", seed=seed, **model)
    (top / "components" / "tokenizer").mkdir(parents=True)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (top / "model" / name).rename(top / "components" / "tokenizer" / name)
    (top / "MLmodel").write_text("flavors:\n")
    return top


def test_an_alias_is_a_version_from_then_on(registry, tmp_path):
    registry.put("main.ai.minilm", "3", logged(tmp_path / "3"))
    registry.put("main.ai.minilm", "4", logged(tmp_path / "4", seed=1))
    registry.aliases["main.ai.minilm", "champion"] = "3"
    registry.stages["main.ai.minilm", "Staging"] = ["3"]
    located = locate.resolve("models:/main.ai.minilm@champion")
    assert located.name == "models:/main.ai.minilm/3"
    assert locate.resolve("models:/main.ai.minilm/Staging") == located == locate.resolve("models:/main.ai.minilm/3")
    assert locate.resolve("models:/main.ai.minilm/3/") == located
    assert locate.resolve("models:/main.ai.minilm/latest").name == "models:/main.ai.minilm/4"
    registry.aliases["main.ai.minilm", "champion"] = "4"
    with firesteel.Engine(located, devices="cpu") as engine:
        first = engine.embed(["a row"])
    tiny.write(tmp_path / "plain")
    with firesteel.Engine(tmp_path / "plain", devices="cpu") as engine:
        assert np.array_equal(engine.embed(["a row"]), first)


def test_a_version_is_downloaded_once_a_node(registry, tmp_path):
    registry.put("minilm", "1", logged(tmp_path / "1"))
    found = [locate.find("models:/minilm/1") for _ in range(3)]
    assert len(set(found)) == 1 and len(registry.downloads) == 1
    assert locate.describe(locate.resolve("models:/minilm/1"))[1] == found[0]  # the driver has it by now


def test_a_name_that_was_given_to_another_model_is_another(registry, tmp_path):
    registry.put("minilm", "1", logged(tmp_path / "1"), made=1)
    first = locate.find("models:/minilm/1")
    registry.put("minilm", "1", logged(tmp_path / "2", seed=1), made=2)  # deleted, and registered anew
    assert locate.find("models:/minilm/1") != first


def test_executors_ask_the_drivers_registry(registry, tmp_path):
    registry.put("minilm", "1", logged(tmp_path / "1"))
    located = locate.resolve("models:/minilm/1")
    sys.modules["mlflow"].set_registry_uri("http://elsewhere")
    locate.find(located)
    assert registry.downloads == [("models:/minilm/1", "databricks-uc")]
    assert sys.modules["mlflow"].get_registry_uri() == "http://elsewhere"


def test_a_driver_resolves_and_downloads_nothing(registry, tmp_path):
    registry.put("minilm", "1", logged(tmp_path / "1"))
    registry.aliases["minilm", "prod"] = "1"
    job = firesteel.embed_udf("models:/minilm@prod").job
    assert job.model.name == "models:/minilm/1" and job.model.files == () and registry.downloads == []


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("models:/minilm/9", ["models:/minilm/9", "databricks-uc does not give it", "has no version 9"]),
        ("models:/minilm@none", ["models:/minilm@none", "does not give it"]),
        ("models:/minilm/Production", ["has no such version"]),
        ("models:/minilm", ["does not say which version", "models:/minilm@ALIAS"]),
    ],
)
def test_versions_that_are_not_there(registry, tmp_path, given, words):
    registry.put("minilm", "1", logged(tmp_path / "1"))
    fails(firesteel.CheckpointError, given, *words, ask=locate.resolve)


def test_a_download_that_fails_leaves_nothing(registry, tmp_path, cache):
    registry.put("minilm", "1", logged(tmp_path / "1"))
    located = locate.resolve("models:/minilm/1")
    folder = registry.versions.pop(("minilm", "1"))
    fails(firesteel.CheckpointError, located, "models:/minilm/1: MLflow does not give it", "has no version 1")
    assert [entry.name for entry in cache.iterdir() if entry.is_dir()] == []
    registry.put("minilm", "1", folder)
    assert os.path.isdir(locate.find(located))


def test_an_artifact_without_a_model_in_it(registry, tmp_path):
    (tmp_path / "1" / "data").mkdir(parents=True)
    (tmp_path / "1" / "data" / "model.pkl").write_bytes(b"pickle")
    registry.put("forest", "1", tmp_path / "1")
    fails(firesteel.CheckpointError, "models:/forest/1", "holds no folder with config.json and *.safetensors")


def test_an_artifact_with_two_models_in_it(registry, tmp_path):
    for name in ("query", "document"):
        tiny.write(tmp_path / "1" / name)
    registry.put("pair", "1", tmp_path / "1")
    fails(firesteel.CheckpointError, "models:/pair/1", "holds several models (document, query)")


def test_a_sentence_transformers_artifact(registry, tmp_path):
    tiny.write(tmp_path / "1" / "model.sentence_transformer", sentence={})
    registry.put("minilm", "1", tmp_path / "1")
    assert locate.find("models:/minilm/1").endswith("model.sentence_transformer")
