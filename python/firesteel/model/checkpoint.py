"""A model folder, read and checked: its config, where every tensor lies, its tokenizer, how to make sentence vectors.

Nothing here knows an architecture. JSON is parsed by the standard library and every number of a safetensors header is
checked against its file; the C side then looks the model_type up, checks names, shapes and config keys against the
architecture's tables, and reads the weights. Weights are never touched here, so opening costs milliseconds.

    firesteel.checkpoint.Checkpoint.open("models/all-MiniLM-L6-v2").sentence.pooling     # ("mean",)
"""

from __future__ import annotations

import os
from dataclasses import dataclass

from .._core import CheckpointError
from . import kinds
from .files import absolute, exists, folder_there, optional_json, path_of, read_json, there
from .heads import head_of
from .safetensors import INDEX, Tensor, has_weights, read_tensors, weight_files
from .sentence import TRANSFORMER_SETTINGS, Sentence, read_modules, read_sentence

# Not read, but without tokenizer.json a folder that has one is refused, on every machine alike.
OTHER_VOCABULARIES = ("tokenizer.model", "tekken.json", "tiktoken.model")
# The first of these that is there; which of them can be used, the tokenizer's class says.
VOCABULARIES = ("tokenizer.json", "vocab.txt", "vocab.json", "sentencepiece.bpe.model", "spiece.model")
TOKENIZER_FILES = (
    *VOCABULARIES,
    "merges.txt",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    *OTHER_VOCABULARIES,
)
# What is read of a model's folder and of its modules' folders, beside the weights.
NAMES_READ = (
    "config.json",
    *TOKENIZER_FILES,
    "modules.json",
    *TRANSFORMER_SETTINGS,
    "config_sentence_transformers.json",
)


@dataclass(frozen=True)
class Checkpoint:
    """One model folder. Nothing in it changes after `open`, and no file stays open."""

    folder: str  # absolute; where config, weights and tokenizer lie
    config: dict[str, object]
    tensors: list[Tensor]
    files: list[str]  # absolute paths
    tokenizer_file: str | None  # the first of VOCABULARIES, or None
    tokenizer_config: dict[str, object]
    sentence: Sentence
    head: str | None = None  # a classifier's or such, by name; None: there is none

    @staticmethod
    def open(model: str | os.PathLike[str], weights: bool = True) -> Checkpoint:
        """Reads the folder `model`. With weights=False there need be none.

        Raises CheckpointError when the folder or one of its files is missing, damaged or a pickle, and ConfigError when
        its sentence-transformers modules are more than Transformer, Pooling and Normalize.
        """
        root = _model_folder(model)
        modules = read_modules(root)
        folder = modules[0].folder if modules else root
        config = _config(folder)
        files, tensors = read_tensors(folder, config) if weights or has_weights(folder) else ([], [])
        found = [path for path in (os.path.join(folder, name) for name in NAMES_READ) if there(path)]
        tokenizer_config = optional_json(os.path.join(folder, "tokenizer_config.json"))
        names = (os.path.join(folder, name) for name in VOCABULARIES)
        return Checkpoint(
            folder=folder,
            config=config,
            tensors=tensors,
            files=files,
            tokenizer_file=next((name for name in names if name in found), None),
            tokenizer_config=tokenizer_config,
            sentence=read_sentence(root, folder, modules, config, tokenizer_config),
            head=head_of(config, (tensor[0] for tensor in tensors)),
        )


def config_and_tensors(model: str | os.PathLike[str]) -> tuple[str, dict[str, object], list[Tensor]]:
    """The folder of config.json, what it says, and the table of tensors, which is empty where no weights are there.

    Raises CheckpointError and ConfigError as Checkpoint.open does.
    """
    root = _model_folder(model)
    modules = read_modules(root)
    folder = modules[0].folder if modules else root
    config = _config(folder)
    return folder, config, read_tensors(folder, config)[1] if has_weights(folder) else []


def files_read(model: str | os.PathLike[str], weights: bool = True) -> list[str]:
    """Names, relative to the folder, of all files in it that `open` and the tokenizer read.

    weights    False: they may be missing

    Raises CheckpointError and ConfigError as Checkpoint.open does.
    """
    root = _model_folder(model)
    folders = [module.folder for module in read_modules(root)] or [root]
    config = _config(folders[0])
    paths = [os.path.join(folder, name) for folder in dict.fromkeys([root, *folders]) for name in NAMES_READ]
    files, where = weight_files(folders[0], config) if weights or has_weights(folders[0]) else ([], None)
    if where is not None:
        paths.append(os.path.join(folders[0], INDEX))
    return [os.path.relpath(path, root) for path in [*filter(there, paths), *files]]


# --- the folder ------------------------------------------------------------------------------------------------------


def _model_folder(model: str | os.PathLike[str]) -> str:
    given = path_of(model, "the path of a model folder")
    folder = absolute(given)
    if not exists(folder):
        raise CheckpointError(f"{given}: no such folder; give the folder that holds config.json and *.safetensors")
    if os.path.isfile(folder):
        raise CheckpointError(kinds.of_file(given, folder))
    folder_there(folder)
    return folder


def _config(folder: str) -> dict[str, object]:
    """Its config.json. Raises CheckpointError and ConfigError where the folder is of a kind that does not run here."""
    path = os.path.join(folder, "config.json")
    kinds.check_adapter(folder)
    if not there(path):
        raise CheckpointError(kinds.without_config(folder))
    config = read_json(path)
    kinds.check_type(path, config)
    return config
