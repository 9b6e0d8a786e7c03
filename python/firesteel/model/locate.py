"""Where models come from: what a user gives as `model` -> a folder on this machine.

    resolve("org/name@main")    -> Located("org/name@1f2e..."): an alias or a branch, which others move, is asked once
    describe(located)           -> the same with the fingerprint of its files, where this machine sees them
    find(model)                 -> its folder, fetched, on a disk of this node (node_cache); raises where files differ

A Located travels from Spark's driver to its executors and means the same on all of them. Libraries of the registries
are imported where a name of theirs is given, and only then.

    a folder             "/models/minilm", "~/minilm", "file:///models/minilm", any os.PathLike; a folder of that name
                         comes before a hub's id
    a relative folder    "minilm", "./minilm": of the working directory where it is there; else it stays relative, and
                         whoever opens it looks in its own, then where Spark puts what it ships (SparkFiles)
    Databricks           "/Volumes/...", "/Workspace/...", "dbfs:/..." (which is /dbfs/...)
    MLflow               "models:/name/3", "models:/name@alias", "models:/name/Staging", "models:/name/latest"
    Hugging Face         "org/name", "org/name@revision"
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import threading
import urllib.parse
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from types import ModuleType

from .._core import CheckpointError, ConfigError
from ..host import task
from . import node_cache
from .checkpoint import NAMES_READ, TOKENIZER_FILES, files_read
from .files import exists, opened, path_of, there, unreadable
from .safetensors import INDEX

FORMS = 'a folder, "file:///...", "dbfs:/...", "models:/name/version" or a hub id "org/name@revision"'
SAMPLES = 16  # blocks of a file of weights that are looked at: models of one shape have one header
SAMPLE_BYTES = 4096

_HUB = re.compile(r"([\w.-]+/[\w.-]+)(?:@([\w./-]+))?", re.ASCII)
_MODELS = re.compile(r"models:/+([^/@]+)(?:/([^/@]+)|@([^/@]+))?")
_RELATIVE = ("./", "../")  # how the name of a relative folder begins
_URI = re.compile(r"([A-Za-z][\w+.-]*):/", re.ASCII)
_HUB_PAGE = re.compile(r"(?:https?:/+(?:www\.)?(?:huggingface\.co|hf\.co)|hf:/)/*(.*)", re.IGNORECASE)
_IN_HUB = re.compile(r"(?!datasets/|spaces/)([\w.-]+/[\w.-]+)(?:(?:/(?:tree|blob|resolve)/|@)([\w.-]+))?(?:[/?#].*)?")
_SMALL = [
    *NAMES_READ,
    "adapter_config.json",
    INDEX,
    "[0-9]*_*/*.json",
    "[0-9]*_*/vocab.txt",
]  # of a hub's repository: all but weights
_WEIGHTS = ["model.safetensors", "model-*.safetensors", "[0-9]*_*/model*.safetensors"]


@dataclass(frozen=True)
class Located(os.PathLike[str]):
    """A model, by a name that does not move, and what the machine that resolved it knows."""

    name: str  # absolute path, or one that begins with ./ or ../, "models:/name/3", "org/name@commit"
    files: tuple[tuple[str, str], ...] = ()  # name in the folder -> digest, of the files that were seen; sorted
    stamp: str = (
        ""  # of a folder: sizes and times where it was seen, which tell a model saved anew and no machine apart
    )
    registry: tuple[str, ...] = ()  # MLflow's tracking and registry URIs, and when the version was made

    @property
    def with_weights(self) -> bool:
        """Whether weights are among the files that were seen; the driver need not have those of a hub's model."""
        return any(name.endswith((".safetensors", INDEX)) for name, _ in self.files)

    def __fspath__(self) -> str:
        return self.name

    def __str__(self) -> str:
        return self.name


def resolve(model: str | os.PathLike[str]) -> Located:
    """Asks registries what an alias or a revision is now. Nothing else is asked, and no folder need be there.

    Raises CheckpointError for what is no model or not known, ConfigError where a registry's library is missing.
    """
    if isinstance(model, Located):
        return model
    given = str(path_of(model, FORMS))
    if given.startswith("dbfs:/"):
        path = os.path.normpath("/" + given.removeprefix("dbfs:").lstrip("/"))
        return Located(path if path.startswith("/Volumes/") else f"/dbfs{path}")
    if given.startswith("models:"):
        return _resolve_mlflow(given.rstrip("/"))
    if given[:5].lower() == "file:":
        return Located(_path_of_uri(given))
    path = os.path.normpath(os.path.expanduser(given))
    found = _first_there(path)
    if found is not None and found != _shipped(path):
        return Located(found)
    if found is None and (scheme := _URI.match(given)):
        raise CheckpointError(_elsewhere(given, scheme[1].lower()))
    match = _HUB.fullmatch(given)
    if found is None and match and given[0] not in "./~":
        return _resolve_hub(given, *match.groups())
    return Located(path if path.startswith(("/", "../")) else f"./{path}")


def describe(located: Located) -> tuple[Located, str | None]:
    """The same with its fingerprint, and the folder, as this machine sees it: not copied, perhaps without weights.

    (located, None) where there is nothing to be seen, which other machines may see.
    """
    folder = _seen_here(located)
    if folder is None:
        return located, None
    return replace(located, files=fingerprint(folder), stamp=_stamp(located, folder)), folder


def find(model: str | os.PathLike[str]) -> str:
    """The model's folder on this machine, on a disk of its own: downloaded and copied where need be.

    Raises CheckpointError and ConfigError; a Located with a fingerprint is compared with it, file by file.
    """
    located = resolve(model)
    kind = _kind(located.name)
    folder = {"hub": _fetch_hub, "mlflow": _fetch_mlflow, "folder": _own_folder}[kind](located)
    copy = node_cache.near(folder)
    if located.files:
        _compare(located, copy, folder if kind == "folder" else None)
    return copy


def seen(model: str | os.PathLike[str]) -> str:
    """As find, for those who need no weights: nothing large is fetched or copied."""
    located = resolve(model)
    return _seen_here(located) or find(located)


def here(located: Located) -> str | None:
    """Where a folder that has a path lies on this machine; None where it does not, and for models of a registry."""
    return _first_there(located.name) if _kind(located.name) == "folder" else None


def unseen(located: Located) -> str:
    """One line on a folder that this machine, a driver, does not have; empty for models of a registry."""
    name = located.name
    if _kind(name) != "folder":
        return ""
    line = f"{name} is not on this machine; the first task will tell what is wrong with it, if anything is"
    if os.path.isabs(name):
        return line
    line += ", and looks for it in its working directory, then where Spark puts what it ships (spark.archives)"
    return f'{line}; a hub id would be "org/{name[2:]}"' if _is_bare(name) else line


def _is_bare(name: str) -> bool:
    """Whether it may be a hub's, of which its owner was left out."""
    return re.fullmatch(r"\./\w[\w.-]*", name, re.ASCII) is not None


def _kind(name: str) -> str:
    if os.path.isabs(name) or name.startswith(_RELATIVE):
        return "folder"
    return "mlflow" if name.startswith("models:") else "hub"


def _seen_here(located: Located) -> str | None:
    kind = _kind(located.name)
    if kind == "hub":
        return _snapshot(located.name, *_HUB.fullmatch(located.name).groups(), _SMALL)
    if kind == "mlflow":
        copy = node_cache.kept(_mlflow_key(located))
        return _model_inside(copy, located.name) if copy else None
    return _first_there(located.name)


# --- folders ----------------------------------------------------------------------------------------------------------


def _first_there(path: str) -> str | None:
    """The absolute path of what is there, of a relative one in the working directory or among what Spark ships."""
    places = [at for at in (_working(path), _shipped(path)) if at is not None]
    # model.tgz may be the archive in one of them, and the folder that it was unpacked to in the other
    return next(filter(os.path.isdir, places), None) or next(filter(exists, places), None)


def _working(path: str) -> str | None:
    try:
        return os.path.abspath(path)
    except OSError:  # the directory was removed
        return None


def _shipped(path: str) -> str | None:
    """None for an absolute path, where Spark ships nothing, and where it ships into the working directory."""
    root = None if os.path.isabs(path) else task.files_root()
    at = os.path.normpath(os.path.join(root, path)) if root is not None else None
    return at if at != _working(path) else None


def _own_folder(located: Located) -> str:
    """The absolute path. Raises CheckpointError for a relative one that is nowhere, and one that the driver saw."""
    name = located.name
    if not os.path.isabs(name):
        return _first_there(name) or _nowhere(name)
    if located.files and node_cache.network_mount(name) is None and not exists(name):
        raise CheckpointError(
            f"{name}: no such folder; the driver saw it when the column function was made: it was moved or "
            f"removed since, or this node does not have it"
        )
    return name


def _nowhere(name: str) -> str:
    working, root = _working("."), task.files_root()
    places = f"the working directory ({working or 'which was removed'})"
    if root is not None:
        places += f", nor where Spark puts what it ships (SparkFiles: {root})"
    first = name.removeprefix("./").partition("/")[0]
    ways = f"ship it as spark.archives=FILE.tgz#{first}, or give a folder that every executor has"
    if task.current() is None:
        ways = "give the folder that holds config.json and *.safetensors"
    if _is_bare(name):
        ways += f', or of a hub the whole id, "org/{first}"'
    raise CheckpointError(f"{name}: no such folder in {places}; {ways}")


def _path_of_uri(given: str) -> str:
    """The path of a file: URI, escapes decoded; Hadoop writes some without escapes, so what alone is there is meant."""
    rest = given[5:]
    host = ""
    if rest.startswith("//") and not rest.startswith("///"):
        host, slash, rest = rest[2:].partition("/")
        rest = slash + rest
    if host and host.lower() != "localhost":
        raise CheckpointError(
            f"{given}: names another host, {host}, whose files cannot be opened; a folder of this machine has three "
            f"slashes: file:///{host}{rest}"
        )
    if not rest.startswith("/"):
        raise CheckpointError(f"{given}: a file: URI takes a path from the root, as file:///models/minilm")
    literal = os.path.normpath("/" + rest.lstrip("/"))
    path = os.path.normpath(os.fsdecode(urllib.parse.unquote_to_bytes(os.fsencode(literal))))
    if "\0" in path:
        raise CheckpointError(f"{given}: has a NUL in its path, which no folder has")
    return literal if path != literal and os.path.exists(literal) and not os.path.exists(path) else path


def _elsewhere(given: str, scheme: str) -> str:
    """Why a URI of such a scheme is no folder, and what to give instead."""
    if page := _HUB_PAGE.fullmatch(given):
        found = _IN_HUB.fullmatch(page[1])
        name = found[1] + (f"@{found[2]}" if found[2] else "") if found else "org/name"
        return f'{given}: is an address of the hub; give the id of a model there: "{name}"'
    if scheme in ("runs", "mlflow-artifacts"):
        return f'{given}: cannot be opened; register the model (mlflow.register_model) and give "models:/name/version"'
    return (
        f"{given}: cannot be opened; {FORMS} can be: copy the model to a folder that every executor has, a Volume or "
        f"a mount for one"
    )


# --- the same files everywhere ----------------------------------------------------------------------------------------


def fingerprint(folder: str) -> tuple[tuple[str, str], ...]:
    """Of each file that is read: its digest; of weights that of header, size and blocks here and there.

    Takes milliseconds, whatever the model's size. Raises what checkpoint.files_read raises.
    """
    names = files_read(folder, weights=not _is_snapshot(folder))
    return tuple(sorted((name, _digest(os.path.join(folder, name))) for name in names))


def _stamp(located: Located, folder: str) -> str:
    if _kind(located.name) != "folder":
        return ""  # a commit and a version are what they are
    listed = repr([(name, node_cache.size_and_time(os.path.join(folder, name))) for name in files_read(folder)])
    return hashlib.sha256(listed.encode()).hexdigest()[:16]


def _is_snapshot(folder: str) -> bool:
    """Of a hub: on the driver it may have no weights."""
    return os.path.basename(os.path.dirname(folder)) == "snapshots"


def _digest(path: str) -> str:
    made = hashlib.sha256()
    with opened(path) as file:
        try:
            size = os.fstat(file.fileno()).st_size
            if not path.endswith(".safetensors"):
                for block in iter(lambda: file.read(1 << 20), b""):
                    made.update(block)
            else:
                head = file.read(8)
                length = min(int.from_bytes(head, "little"), size)
                made.update(b"%d " % size + head + file.read(length))
                for number in range(SAMPLES):
                    file.seek(8 + length + max(0, size - 8 - length - SAMPLE_BYTES) * number // (SAMPLES - 1))
                    made.update(file.read(SAMPLE_BYTES))
        except OSError as error:
            raise CheckpointError(unreadable(path, error)) from None
    return made.hexdigest()[:16]


def _compare(located: Located, copy: str, folder: str | None) -> None:
    """`folder`: what a sentence calls the place of the files; None: by the model's name."""
    before, now = dict(located.files), dict(fingerprint(copy))
    if not located.with_weights:
        now = {name: digest for name, digest in now.items() if not name.endswith((".safetensors", INDEX))}
    for name in sorted(before.keys() | now.keys()):
        if before.get(name) == now.get(name):
            continue
        fault = "differs from the file that the driver saw"
        if name not in now:
            fault = "is missing here; the driver saw it"
        elif name not in before:
            fault = "is here; the driver did not see it"
        path = os.path.join(folder, name) if folder is not None else f"{located.name}, {name}"
        raise CheckpointError(
            f"{path}: {fault} when the column function was made; the model was changed since: "
            f"make the function again, or nodes have different files: give all of them the same"
        )


# --- Hugging Face hub -------------------------------------------------------------------------------------------------


def _resolve_hub(given: str, repository: str, revision: str | None) -> Located:
    """The revision as its commit. Downloads what is small; without a network the hub's own cache has to know."""
    folder = _snapshot(given, repository, revision, _SMALL)
    return Located(f"{repository}@{os.path.basename(os.path.normpath(folder))}")


def _fetch_hub(located: Located) -> str:
    """The snapshot, whole. Whoever has it already asks nobody."""
    asked = (located.name, *_HUB.fullmatch(located.name).groups())
    with suppress(CheckpointError):  # it is not here, or parts of it
        folder = _snapshot(*asked, _SMALL, local_files_only=True)
        files_read(folder)
        if all(there(os.path.join(folder, name)) for name, _ in located.files):
            return folder
    folder = _snapshot(*asked, [*_SMALL, *_WEIGHTS])
    try:
        files_read(folder)
    except CheckpointError as error:
        raise CheckpointError(
            f"{located.name}: the hub gives no whole model ({error}); where there is no network, or HF_HUB_OFFLINE, "
            f"download it before (hf download)"
        ) from None
    return folder


def _snapshot(given: str, repository: str, revision: str | None, patterns: list[str], **options: bool) -> str:
    none = f'{given}: no such folder (one that only executors have begins with "./")'
    hub = _library("huggingface_hub", "hub", f"{none}; as a hub id it")
    try:
        return str(hub.snapshot_download(repository, revision=revision, allow_patterns=patterns, **options))
    except Exception as error:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise CheckpointError(
                f"{given}: the hub's cache on this node is full; set HF_HUB_CACHE to a larger disk"
            ) from None
        raise CheckpointError(
            f"{given}: no such folder, and the hub does not give it ({_said(error)}); mind the name and the revision, "
            f"set HF_TOKEN for a private model, or download it (hf download) and give its folder; a folder that only "
            f"executors have begins with ./"
        ) from None


# --- MLflow -----------------------------------------------------------------------------------------------------------


def _resolve_mlflow(given: str) -> Located:
    match = _MODELS.fullmatch(given)
    if match is None:
        raise CheckpointError(
            f'{given}: is no model of MLflow; "models:/name/version", "models:/name@alias" or a stage belongs there'
        )
    name, version, alias = match.groups()
    mlflow = _library("mlflow", "mlflow", f"{given}: a name of MLflow's registry")
    registry = (mlflow.get_tracking_uri(), mlflow.get_registry_uri())
    where = re.sub(r"//[^/@]*@", "//", registry[1])  # without a password
    if version is None and alias is None:
        if name.startswith("m-"):  # MLflow 3 gives each logged model such a name
            return Located(f"models:/{name}", registry=(*registry, ""))
        raise CheckpointError(f"{given}: does not say which version; give {given}/1, {given}/latest or {given}@ALIAS")
    try:
        client = mlflow.MlflowClient()
        if alias is not None:
            found = [client.get_model_version_by_alias(name, alias)]
        elif version.isdecimal():
            found = [client.get_model_version(name, version)]
        elif version == "latest":
            found = list(client.search_model_versions(f"name = '{name}'"))
        else:
            found = list(client.get_latest_versions(name, [version]))
    except Exception as error:
        raise CheckpointError(
            f"{given}: MLflow's registry {where} does not give it ({_said(error)}); mind the name, the version "
            f"and MLFLOW_REGISTRY_URI"
        ) from None
    if not found:
        raise CheckpointError(f"{given}: MLflow's registry {where} has no such version; give models:/{name}/NUMBER")
    latest = max(found, key=lambda one: int(one.version))
    return Located(f"models:/{name}/{latest.version}", registry=(*registry, str(latest.creation_timestamp)))


def _fetch_mlflow(located: Located) -> str:
    key = _mlflow_key(located)
    if (copy := node_cache.kept(key)) is not None:  # before MLflow is imported, which takes a second
        return _model_inside(copy, located.name)
    mlflow = _library("mlflow", "mlflow", f"{located.name}: a name of MLflow's registry")

    def fill(into: str, progress: node_cache.Progress) -> None:
        try:
            with _registry(mlflow, located.registry[:2]):
                mlflow.artifacts.download_artifacts(artifact_uri=located.name, dst_path=into)
        except OSError:
            raise
        except Exception as error:
            raise CheckpointError(f"{located.name}: MLflow does not give it ({_said(error)})") from None
        model = _model_inside(into, located.name)
        if model != into:
            _join_tokenizer(model)

    copy = node_cache.keep(key, fill, located.name, measure=_bytes_below)
    return _model_inside(copy, located.name)


def _mlflow_key(located: Located) -> str:
    said = "\0".join(("mlflow", *located.registry, located.name))
    return hashlib.sha256(said.encode("utf-8", "surrogatepass")).hexdigest()[:32]


_registries = threading.Lock()


@contextmanager
def _registry(mlflow: ModuleType, wanted: tuple[str, ...]) -> Iterator[None]:
    """MLflow with the driver's registry; executors know another one, or none."""
    with _registries:
        before = (mlflow.get_tracking_uri(), mlflow.get_registry_uri())
        setters: tuple[Callable[[str], None], ...] = (mlflow.set_tracking_uri, mlflow.set_registry_uri)
        for change, now, uri in zip(setters, before, wanted, strict=True):
            if now != uri:
                change(uri)
        try:
            yield
        finally:
            for change, now, uri in zip(setters, before, wanted, strict=True):
                if now != uri:
                    change(now)


def _model_inside(folder: str, name: str) -> str:
    """The nearest folder to the top with a model in it: MLflow's flavours put it in one of theirs."""
    level = [folder]
    while level:
        found = [at for at in level if _is_model(at)]
        if len(found) > 1:
            listed = ", ".join(os.path.relpath(at, folder) for at in found)
            raise CheckpointError(f"{name}: holds several models ({listed}); give the folder of one of them")
        if found:
            return found[0]
        level = sorted(entry.path for at in level for entry in os.scandir(at) if entry.is_dir(follow_symlinks=False))
    raise CheckpointError(f"{name}: holds no folder with config.json and *.safetensors; log the model with these")


def _is_model(folder: str) -> bool:
    names = os.listdir(folder)
    return "modules.json" in names or ("config.json" in names and any(n.endswith(".safetensors") for n in names))


def _join_tokenizer(model: str) -> None:
    """MLflow's transformers flavour puts the tokenizer into another folder than the model."""
    apart = os.path.join(os.path.dirname(model), "components", "tokenizer")
    for name in TOKENIZER_FILES:
        if there(os.path.join(apart, name)) and not there(os.path.join(model, name)):
            os.rename(os.path.join(apart, name), os.path.join(model, name))


def _bytes_below(folder: str, progress: node_cache.Progress) -> int:
    count = 0
    for at, _, names in os.walk(folder):
        for name in names:
            with suppress(OSError):
                count += os.lstat(os.path.join(at, name)).st_size
    return count


# --- libraries --------------------------------------------------------------------------------------------------------


def _library(name: str, extra: str, what: str) -> ModuleType:
    from importlib import import_module

    try:
        return import_module(name)
    except ImportError:
        raise ConfigError(
            f"{what} takes {name}, on the driver and on every executor: pip install 'firesteel[{extra}]', or give "
            f"a folder"
        ) from None


def _said(error: Exception) -> str:
    """The first line of another library's error."""
    text = str(error).strip().partition("\n")[0].rstrip(".:; ")
    return f"{type(error).__name__}: {text[:300]}" if text else type(error).__name__
