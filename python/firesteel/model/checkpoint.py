"""A model folder, read and checked: its config, where every tensor lies, its tokenizer, how to make sentence vectors.

Nothing here knows an architecture. JSON is parsed by the standard library and every number of a safetensors header is
checked against its file; the C side then looks the model_type up, checks names, shapes and config keys against the
architecture's tables, and reads the weights. Weights are never touched here, so opening costs milliseconds.

    firesteel.checkpoint.Checkpoint.open("models/all-MiniLM-L6-v2").sentence.pooling     # ("mean",)
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from .._core import CheckpointError, ConfigError

# name, dtype as safetensors spells it, shape, index into files, byte offset in that file, bytes
Tensor = tuple[str, str, tuple[int, ...], int, int, int]

JSON_LIMIT = 100_000_000  # bytes; what the safetensors library allows a header, and far beyond any config

# bits of one element, by the names safetensors uses
_BITS = {
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E4M3", "F8_E5M2", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ"), 8),
    **dict.fromkeys(("U16", "I16", "F16", "BF16"), 16),
    **dict.fromkeys(("U32", "I32", "F32"), 32),
    **dict.fromkeys(("U64", "I64", "F64", "C64"), 64),
    **{"F4": 4, "F6_E2M3": 6, "F6_E3M2": 6},
}
INDEX = "model.safetensors.index.json"
# What is read of a model's folder and of its modules' folders, beside the weights.
NAMES_READ = (
    "config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.txt",
    "modules.json",
    "sentence_bert_config.json",
    "config_sentence_transformers.json",
)
_PICKLES = (".bin", ".pt", ".pth", ".ckpt")
_NO_MODEL = ("training_args.bin", "optimizer.pt", "optimizer.bin", "scheduler.pt", "rng_state.pth")

# Pooling, in the words of sentence-transformers and in ours; several are concatenated in the order given, the old
# booleans in the order of this table (theirs).
POOLINGS = {
    "cls": "cls",
    "max": "max",
    "mean": "mean",
    "mean_sqrt_len_tokens": "mean_sqrt_len",
    "weightedmean": "weightedmean",
    "lasttoken": "lasttoken",
}
_POOLING_FLAGS = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
# Keys of sentence_bert_config.json that say nothing new while they hold one of these values.
_TRANSFORMER_NEUTRAL = {
    "transformer_task": (None, "feature-extraction"),
    "modality_config": (None, {"text": {"method": "forward", "method_output_name": "last_hidden_state"}}),
    "module_output_name": (None, "token_embeddings"),
    "unpad_inputs": (None, True, False),
    **dict.fromkeys(("query_length", "document_length", "query_expansion", "tokenizer_name_or_path"), (None,)),
    **dict.fromkeys(("model_args", "tokenizer_args", "config_args", "processing_kwargs"), (None, {})),
    **dict.fromkeys(("model_kwargs", "processor_kwargs", "config_kwargs"), (None, {})),
}


@dataclass(frozen=True)
class Sentence:
    """How a folder of sentence-transformers turns hidden states into one vector; the defaults are a bare model's."""

    pooling: tuple[str, ...] = ("mean",)
    normalize: bool = False
    include_prompt: bool = True  # False: a prompt's tokens are left out of the pooling
    max_length: int | None = None  # tokens of a row, special ones included; None: the model's positions
    do_lower_case: bool = False
    prompts: Mapping[str, str] = field(default_factory=dict)
    default_prompt_name: str | None = None
    truncate_dim: int | None = None


@dataclass(frozen=True)
class Checkpoint:
    """One model folder. Nothing in it changes after `open`, and no file stays open."""

    folder: str  # absolute; where config, weights and tokenizer lie
    config: dict[str, object]
    tensors: list[Tensor]
    files: list[str]  # absolute paths
    tokenizer_file: str | None  # tokenizer.json, else vocab.txt, else None
    tokenizer_config: dict[str, object]
    sentence: Sentence

    @staticmethod
    def open(model: str | os.PathLike[str], weights: bool = True) -> Checkpoint:
        """Reads the folder `model`. With weights=False there need be none.

        Raises CheckpointError when the folder or one of its files is missing, damaged or a pickle, and ConfigError when
        its sentence-transformers modules are more than Transformer, Pooling and Normalize.
        """
        root = _model_folder(model)
        modules = _modules(root)
        folder = _inside(root, modules[0][1], "modules.json") if modules else root
        config = _config(folder)
        tokenizer_config = _optional_json(os.path.join(folder, "tokenizer_config.json"))
        files, tensors = _tensors(folder) if weights or _has_weights(folder) else ([], [])
        names = (os.path.join(folder, name) for name in ("tokenizer.json", "vocab.txt"))
        return Checkpoint(
            folder=folder,
            config=config,
            tensors=tensors,
            files=files,
            tokenizer_file=next((name for name in names if os.path.isfile(name)), None),
            tokenizer_config=tokenizer_config,
            sentence=_sentence(root, folder, modules, config, tokenizer_config),
        )


def config_and_tensors(model: str | os.PathLike[str]) -> tuple[dict[str, object], list[Tensor]]:
    """config.json of a model folder and the table of its tensors, which is empty where no weights are there.

    Raises CheckpointError and ConfigError as Checkpoint.open does.
    """
    root = _model_folder(model)
    modules = _modules(root)
    folder = _inside(root, modules[0][1], "modules.json") if modules else root
    return _config(folder), _tensors(folder)[1] if _has_weights(folder) else []


def files_read(model: str | os.PathLike[str], weights: bool = True) -> list[str]:
    """Names, relative to the folder, of all files in it that `open` and the tokenizer read.

    weights    False: they may be missing

    Raises CheckpointError and ConfigError as Checkpoint.open does.
    """
    root = _model_folder(model)
    modules = _modules(root)
    folders = [_inside(root, path, "modules.json") for _, path in modules] or [root]
    _config(folders[0])
    paths = [os.path.join(folder, name) for folder in dict.fromkeys([root, *folders]) for name in NAMES_READ]
    files, where = _weights(folders[0]) if weights or _has_weights(folders[0]) else ([], None)
    if where is not None:
        paths.append(os.path.join(folders[0], INDEX))
    return [os.path.relpath(path, root) for path in [*filter(os.path.isfile, paths), *files]]


# --- the folder ------------------------------------------------------------------------------------------------------


def path_of(model: str | os.PathLike[str], wanted: str) -> str:
    """`model` as text. Raises CheckpointError, with what is `wanted` there, for what is no path."""
    try:
        given = os.fspath(model)
    except TypeError:
        raise CheckpointError(f"model is a {type(model).__name__}; {wanted} belongs there") from None
    if not isinstance(given, str) or not given or "\0" in given:
        raise CheckpointError(f"model is {given!r}; {wanted} belongs there, as a string")
    return given


def _model_folder(model: str | os.PathLike[str]) -> str:
    given = path_of(model, "the path of a model folder")
    folder = os.path.abspath(os.path.expanduser(given))
    if os.path.isdir(folder):
        return folder
    if os.path.exists(folder):
        raise CheckpointError(f"{given}: is a file; give the folder that holds config.json and *.safetensors")
    raise CheckpointError(f"{given}: no such folder; give the folder that holds config.json and *.safetensors")


def _config(folder: str) -> dict[str, object]:
    path = os.path.join(folder, "config.json")
    if not os.path.isfile(path):
        raise CheckpointError(f"{folder}: not a model folder, config.json is missing; found {_listing(folder)}")
    config = _json(path)
    kind = config.get("model_type")
    if not isinstance(kind, str) or not kind:
        raise CheckpointError(f'{path}: has no model_type, so the architecture is unknown; add it ("bert", ...)')
    return config


def _names(folder: str) -> list[str]:
    try:
        return sorted(name for name in os.listdir(folder) if not name.startswith("."))
    except OSError as error:
        raise CheckpointError(f"{folder}: cannot be read: {error.strerror}") from None


def _listing(folder: str) -> str:
    return _some(_names(folder), 12) or "nothing"


def _some(names: Iterable[object], most: int = 10) -> str:
    """`a, b, c and 4 more`."""
    names = [str(name) for name in names]
    rest = len(names) - most
    return ", ".join(names[:most]) + (f" and {rest} more" if rest > 0 else "")


def _inside(folder: str, relative: object, said_by: str) -> str:
    """Joins a path that a file of the folder names, unless it would lead out of the folder."""
    if isinstance(relative, str) and "\0" not in relative and not os.path.isabs(relative):
        path = os.path.normpath(os.path.join(folder, relative))
        if path == folder or path.startswith(folder.rstrip(os.sep) + os.sep):
            return path
    raise CheckpointError(f"{os.path.join(folder, said_by)}: names {relative!r}, which is no path inside the folder")


# --- JSON ------------------------------------------------------------------------------------------------------------


def _json(path: str) -> dict[str, object]:
    """The JSON object in a file."""
    try:
        if os.path.getsize(path) > JSON_LIMIT:
            raise CheckpointError(f"{path}: has {os.path.getsize(path)} bytes; the limit is {JSON_LIMIT}")
        with open(path, "rb") as file:
            value = _parsed(file.read(), path)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from None
    if not isinstance(value, dict):
        raise CheckpointError(f"{path}: holds a JSON {_kind(value)}; an object ({{...}}) belongs there")
    return value


def _optional_json(path: str) -> dict[str, object]:
    return _json(path) if os.path.isfile(path) else {}


def _parsed(data: bytes, what: str) -> object:
    def object_of(pairs: list[tuple[str, object]]) -> dict[str, object]:
        found = dict(pairs)
        if len(found) < len(pairs):
            names = [name for name, _ in pairs]
            twice = sorted({name for name in names if names.count(name) > 1})
            raise CheckpointError(f"{what}: names {_some(twice)} twice; one of the two would be lost")
        return found

    try:
        value = json.loads(data.decode("utf-8-sig"), object_pairs_hook=object_of)
        if b"\\u" in data:  # only escapes can bring in what is no text
            _check_text(value, what)
        return value
    except UnicodeDecodeError as error:
        raise CheckpointError(f"{what}: byte {error.start} is not UTF-8; the file is damaged or not JSON") from None
    except json.JSONDecodeError as error:
        raise CheckpointError(f"{what}: line {error.lineno}, column {error.colno}: {error.msg}") from None
    except (RecursionError, ValueError) as error:  # thousands of brackets, or of digits
        raise CheckpointError(f"{what}: is no JSON that can be read: {error}") from None


def _check_text(value: object, what: str) -> None:
    """Refuses strings that no file name, tensor name or setting can be: with a NUL or half of a surrogate pair."""
    if isinstance(value, str):
        if "\0" in value or any("\ud800" <= c <= "\udfff" for c in value):
            raise CheckpointError(f"{what}: {value!r} holds a NUL or half of a surrogate pair, which is no text")
    elif isinstance(value, dict):
        for key, item in value.items():
            _check_text(key, what)
            _check_text(item, what)
    elif isinstance(value, list):
        for item in value:
            _check_text(item, what)


def _kind(value: object) -> str:
    names = {dict: "object", list: "array", str: "string", bool: "boolean", type(None): "null"}
    return names.get(type(value), "number")


# --- weights ---------------------------------------------------------------------------------------------------------


def _has_weights(folder: str) -> bool:
    return any(name.endswith(".safetensors") for name in _names(folder))


def _weights(folder: str) -> tuple[list[str], dict[str, str] | None]:
    """The files of weights, and where they are shards, which of them holds which tensor."""
    single = os.path.join(folder, "model.safetensors")
    index = os.path.join(folder, INDEX)
    if os.path.isfile(single):
        return [single], None
    if os.path.isfile(index):
        return _shards(folder, index)
    pickles = [name for name in _names(folder) if name.endswith(_PICKLES) and name not in _NO_MODEL]
    if pickles:
        raise CheckpointError(
            f"{folder}: has only {_some(pickles)}; pickles can run code when they are read and are refused; convert "
            f'once: python -c "from transformers import AutoModel as M; p = {folder!r}; '
            f'M.from_pretrained(p).save_pretrained(p)"'
        )
    raise CheckpointError(f"{folder}: model.safetensors is missing; found {_listing(folder)}")


def _shards(folder: str, index: str) -> tuple[list[str], dict[str, str]]:
    where = _json(index).get("weight_map")
    if not isinstance(where, dict) or not where or not all(isinstance(shard, str) for shard in where.values()):
        raise CheckpointError(f"{index}: has no weight_map from tensor names to file names")
    shards = sorted(set(where.values()))
    files = [_inside(folder, shard, os.path.basename(index)) for shard in shards]
    missing = [shard for shard, path in zip(shards, files, strict=True) if not os.path.isfile(path)]
    if missing:
        raise CheckpointError(f"{folder}: {len(missing)} of {len(shards)} shards are missing: {_some(missing)}")
    return files, where


def _tensors(folder: str) -> tuple[list[str], list[Tensor]]:
    files, where = _weights(folder)
    if where is None:
        return files, read_header(files[0], 0)
    index = os.path.join(folder, INDEX)
    tensors: list[Tensor] = []
    home: dict[str, str] = {}
    for number, (shard, path) in enumerate(zip(sorted(set(where.values())), files, strict=True)):
        for tensor in read_header(path, number):
            first = home.setdefault(tensor[0], shard)
            if first != shard:
                raise CheckpointError(f"{folder}: tensor {tensor[0]} lies in both {first} and {shard}")
            tensors.append(tensor)
    lost = [f"{name} ({shard})" for name, shard in where.items() if home.get(name) != shard]
    if lost:
        raise CheckpointError(f"{index}: names tensors that are not in the shard it gives: {_some(lost)}")
    return files, tensors


def read_header(path: str, number: int = 0) -> list[Tensor]:
    """The tensors of one safetensors file, in the order of their bytes; `number` is the file's index in the answer.

    bytes 0-7         length H of the header, little endian
    bytes 8 .. 8+H    {"name": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}, ...}, blanks at the end
    bytes 8+H ..      data, which the tensors cover from first to last byte without a gap or an overlap
    """
    try:
        size = os.path.getsize(path)
        with open(path, "rb") as file:
            head = file.read(8)
            if head == b"version ":
                raise CheckpointError(f"{path}: is a Git LFS pointer, not the weights; run: git lfs pull")
            length = int.from_bytes(head, "little")
            if len(head) == 8 and length > JSON_LIMIT:
                raise CheckpointError(f"{path}: claims a header of {length} bytes; the limit is {JSON_LIMIT}")
            if len(head) < 8 or 8 + length > size:
                needed = 8 + length if len(head) == 8 else 8
                raise CheckpointError(
                    f"{path}: truncated, {needed - size} bytes of its header are missing; copy or download it again"
                )
            header = _parsed(file.read(length), f"{path}: header")
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from None
    if not isinstance(header, dict):
        raise CheckpointError(f"{path}: its header is a JSON {_kind(header)}; an object belongs there")
    header.pop("__metadata__", None)
    entries = sorted((_entry(path, name, value) for name, value in header.items()), key=lambda entry: entry[3:])
    _check_cover(path, entries, size - 8 - length)
    data = 8 + length
    return [(name, dtype, shape, number, data + begin, end - begin) for name, dtype, shape, begin, end in entries]


_Entry = tuple[str, str, tuple[int, ...], int, int]  # name, dtype, shape, first byte of the data, one past the last


def _entry(path: str, name: str, value: object) -> _Entry:
    """One line of a header, its own numbers in agreement with each other."""
    what = f"{path}: tensor {name}"
    if not isinstance(value, dict):
        raise CheckpointError(f"{what} is a JSON {_kind(value)} in the header; an object belongs there")
    dtype, shape, offsets = value.get("dtype"), value.get("shape"), value.get("data_offsets")
    if not isinstance(dtype, str) or dtype not in _BITS:
        raise CheckpointError(f"{what} has dtype {dtype!r}; known are {', '.join(_BITS)}")
    if not _naturals(shape) or len(shape) > 16:
        raise CheckpointError(f"{what} has shape {shape!r}; a list of at most 16 sizes belongs there")
    if not _naturals(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise CheckpointError(f"{what} has data_offsets {offsets!r}; [begin, end] belongs there")
    bits = _BITS[dtype]
    for side in shape:
        bits *= side
    if bits != 8 * (offsets[1] - offsets[0]):
        raise CheckpointError(
            f"{what} has shape {list(shape)} of {dtype}, {(bits + 7) // 8} bytes, but data_offsets "
            f"{list(offsets)} span {offsets[1] - offsets[0]} bytes"
        )
    return name, dtype, tuple(shape), offsets[0], offsets[1]


def _naturals(value: object) -> bool:
    """A list of integers from 0 to what the C side can count (JSON's true is an int to Python, hence `type`)."""
    return isinstance(value, list) and all(type(item) is int and 0 <= item < 2**63 for item in value)


def _check_cover(path: str, entries: list[_Entry], size: int) -> None:
    """The tensors, sorted by offset, cover all `size` bytes of data once."""
    at, before = 0, ""
    for name, _, _, begin, end in entries:
        if begin < at:
            raise CheckpointError(f"{path}: tensors {before} and {name} overlap by {min(at, end) - begin} bytes")
        if begin > at:
            raise CheckpointError(f"{path}: {begin - at} bytes before tensor {name} belong to no tensor; damaged?")
        at, before = end, name
    if at > size:
        raise CheckpointError(
            f"{path}: truncated, {at - size} of {at} data bytes are missing (tensor {before} ends there); "
            f"copy or download it again"
        )
    if at < size:
        raise CheckpointError(f"{path}: {size - at} bytes after the last tensor belong to no tensor; damaged?")


# --- sentence-transformers -------------------------------------------------------------------------------------------


def _modules(root: str) -> list[tuple[str, str]]:
    """(class, path) of each module in modules.json; empty where there is none."""
    path = os.path.join(root, "modules.json")
    if not os.path.isfile(path):
        return []
    try:
        with open(path, "rb") as file:
            listed = _parsed(file.read(JSON_LIMIT), path)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from None
    if not isinstance(listed, list) or not listed or not all(isinstance(module, dict) for module in listed):
        raise CheckpointError(f'{path}: an array of modules ({{"type", "path"}}) belongs there')
    modules = []
    for module in listed:
        kind = module.get("type")
        if not isinstance(kind, str) or not isinstance(module.get("path"), str):
            raise CheckpointError(f"{path}: module {module!r} has no type or no path")
        package, _, name = kind.rpartition(".")
        if name not in ("Transformer", "Pooling", "Normalize") or package.partition(".")[0] != "sentence_transformers":
            raise ConfigError(
                f"{path}: module {kind} is not understood; known are sentence-transformers' Transformer, Pooling and "
                f"Normalize."
            )
        modules.append((name, module["path"]))
    order = [name for name, _ in modules]
    if order not in (["Transformer", "Pooling"], ["Transformer", "Pooling", "Normalize"]):
        raise ConfigError(f"{path}: the modules are {', '.join(order)}; only Transformer, Pooling[, Normalize] runs")
    return modules


def _sentence(
    root: str,
    folder: str,
    modules: list[tuple[str, str]],
    config: Mapping[str, object],
    tokenizer_config: Mapping[str, object],
) -> Sentence:
    # Newer releases of sentence-transformers keep the length with the tokenizer; "no limit" is 1e30 there.
    length = tokenizer_config.get("model_max_length")
    length = int(length) if type(length) in (int, float) and 0 < length < 2**31 else None
    if not modules:
        return Sentence(max_length=length)

    path = os.path.join(folder, "sentence_bert_config.json")
    transformer = _optional_json(path)
    _expect_known(path, transformer, ("max_seq_length", "do_lower_case"), _TRANSFORMER_NEUTRAL)
    length = _optional_int(path, transformer, "max_seq_length") or length

    pooling_file = os.path.join(_inside(root, modules[1][1], "modules.json"), "config.json")
    pooling, include_prompt = _pooling(pooling_file, config)
    if len(modules) == 3:
        path = os.path.join(_inside(root, modules[2][1], "modules.json"), "config.json")
        neutral = dict.fromkeys(("module_input_name", "module_output_name"), (None, "sentence_embedding"))
        _expect_known(path, _optional_json(path), (), neutral)

    path = os.path.join(root, "config_sentence_transformers.json")
    settings = _optional_json(path)
    known = ("__version__", "prompts", "default_prompt_name", "truncate_dim", "similarity_fn_name")
    _expect_known(path, settings, known, {"model_type": (None, "SentenceTransformer")})
    prompts = settings.get("prompts") or {}
    if not isinstance(prompts, dict) or not all(text is None or isinstance(text, str) for text in prompts.values()):
        raise CheckpointError(f"{path}: prompts is no object from names to strings")
    default = settings.get("default_prompt_name")
    if default is not None and default not in prompts:
        raise ConfigError(f"{path}: default_prompt_name is {default!r}; the prompts are {_some(prompts) or 'none'}")
    return Sentence(
        pooling=pooling,
        normalize=len(modules) == 3,
        include_prompt=include_prompt,
        max_length=length,
        do_lower_case=bool(transformer.get("do_lower_case", False)),
        prompts={name: text or "" for name, text in prompts.items()},
        default_prompt_name=default,
        truncate_dim=_optional_int(path, settings, "truncate_dim"),
    )


def _pooling(path: str, config: Mapping[str, object]) -> tuple[tuple[str, ...], bool]:
    """(modes, include_prompt) of a Pooling module, in the old spelling (one boolean a mode) or the new."""
    if not os.path.isfile(path):
        raise CheckpointError(f"{path}: is missing, but modules.json names its folder as the Pooling module")
    pooling = _json(path)
    width_keys = ("embedding_dimension", "word_embedding_dimension")
    _expect_known(path, pooling, ("pooling_mode", "include_prompt", *width_keys, *_POOLING_FLAGS), {})
    for key in width_keys:
        if key in pooling and "hidden_size" in config and pooling[key] != config["hidden_size"]:
            raise ConfigError(
                f"{path}: {key} is {pooling[key]!r}, but the model's hidden_size is {config['hidden_size']!r}"
            )
    modes = pooling.get("pooling_mode")
    if modes is None:
        modes = [mode for key, mode in _POOLING_FLAGS.items() if pooling.get(key)] or ["mean"]
    elif isinstance(modes, str):
        modes = [modes]
    return pooling_modes(modes, path), bool(pooling.get("include_prompt", True))


def pooling_modes(modes: object, said_by: str) -> tuple[str, ...]:
    """The names the engine knows for one or several pooling modes."""
    listed = [modes] if isinstance(modes, str) else modes
    known = {**POOLINGS, "mean_sqrt_len": "mean_sqrt_len"}
    if not isinstance(listed, (list, tuple)) or not listed:
        raise ConfigError(f"{said_by}: pooling is {modes!r}; a mode or a list of modes belongs there")
    wrong = [mode for mode in listed if not isinstance(mode, str) or mode not in known]
    if wrong:
        raise ConfigError(f"{said_by}: pooling {_some(wrong)} is not known; known are {', '.join(POOLINGS)}")
    return tuple(known[mode] for mode in listed)


def _expect_known(
    path: str, settings: Mapping[str, object], known: tuple[str, ...], neutral: Mapping[str, tuple[object, ...]]
) -> None:
    """A key that may change the mathematics and is not understood is an error, unless the user knows better."""
    ignored = os.environ.get("FIRESTEEL_IGNORE_KEYS", "").replace(" ", "").split(",")
    for key, value in settings.items():
        if key in known or key in ignored or (key in neutral and value in neutral[key]):
            continue
        raise ConfigError(
            f"{path}: {key} = {json.dumps(value)} is not supported; if it is harmless, set FIRESTEEL_IGNORE_KEYS={key}"
        )


def _optional_int(path: str, settings: Mapping[str, object], key: str) -> int | None:
    value = settings.get(key)
    if value is None or (type(value) is int and 0 < value < 2**31):
        return value
    raise ConfigError(f"{path}: {key} is {value!r}; a positive whole number or null belongs there")
