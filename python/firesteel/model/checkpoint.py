"""A model folder, read and checked: its config, where every tensor lies, its tokenizer, how to make sentence vectors.

Nothing here knows an architecture. JSON is parsed by the standard library and every number of a safetensors header is
checked against its file; the C side then looks the model_type up, checks names, shapes and config keys against the
architecture's tables, and reads the weights. Weights are never touched here, so opening costs milliseconds.

    firesteel.checkpoint.Checkpoint.open("models/all-MiniLM-L6-v2").sentence.pooling     # ("mean",)
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from .._core import CheckpointError
from . import kinds
from .chain import Chain, check_weights, read_chain
from .chain import weight_files as module_weights
from .files import absolute, exists, folder_there, optional_json, path_of, read_json, there
from .heads import head_of
from .safetensors import INDEX, Tensor, has_weights, read_tensors, weight_files
from .sentence import TRANSFORMER_SETTINGS, Module, Sentence, hidden_width, read_modules, read_sentence

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
    tensors: list[Tensor]  # of the model, then of the modules behind pooling
    files: list[str]  # absolute paths
    tokenizer_file: str | None  # the first of VOCABULARIES, or None
    tokenizer_config: dict[str, object]
    sentence: Sentence
    head: str | None = None  # a classifier's or such, by name; None: there is none
    chain: Chain = Chain()  # the modules behind pooling

    @staticmethod
    def open(model: str | os.PathLike[str], weights: bool = True) -> Checkpoint:
        """Reads the folder `model`. With weights=False there need be none.

        Raises CheckpointError when the folder or one of its files is missing, damaged or a pickle, and ConfigError when
        its sentence-transformers modules are others than run here, or do not fit each other.
        """
        root = _model_folder(model)
        modules = read_modules(root)
        folder = modules[0].folder if modules else root
        config = _config(folder)
        weights = weights or _all_weights(folder, modules)
        files, tensors = read_tensors(folder, config) if weights else ([], [])
        found = [path for path in (os.path.join(folder, name) for name in NAMES_READ) if there(path)]
        tokenizer_config = optional_json(os.path.join(folder, "tokenizer_config.json"))
        names = (os.path.join(folder, name) for name in VOCABULARIES)
        sentence, width = read_sentence(root, folder, modules, config, tokenizer_config), hidden_width(config)
        chain = read_chain(modules, width and width * len(sentence.pooling), weights)
        return Checkpoint(
            folder=folder,
            config=config,
            tensors=[*tensors, *_behind(files, chain)] if weights else [],
            files=[*files, *chain.files] if weights else [],
            tokenizer_file=next((name for name in names if name in found), None),
            tokenizer_config=tokenizer_config,
            sentence=sentence,
            head=head_of(config, (tensor[0] for tensor in tensors)),
            chain=chain,
        )


class Outline(NamedTuple):
    """What placing a model needs to know of it."""

    folder: str  # of config.json
    config: dict[str, object]
    tensors: list[Tensor]  # of the model; none where its weights are not there
    chain: Chain


def outline(model: str | os.PathLike[str]) -> Outline:
    """The model's shape. Weights need not be there. Raises CheckpointError and ConfigError as Checkpoint.open does."""
    root = _model_folder(model)
    modules = read_modules(root)
    folder = modules[0].folder if modules else root
    config = _config(folder)
    tensors = read_tensors(folder, config)[1] if has_weights(folder) else []
    return Outline(folder, config, tensors, read_chain(modules, None, _all_weights(folder, modules)))


def files_read(model: str | os.PathLike[str], weights: bool = True) -> list[str]:
    """Names, relative to the folder, of all files in it that `open` and the tokenizer read.

    weights    False: they may be missing; where some are, none are named

    Raises CheckpointError and ConfigError as Checkpoint.open does.
    """
    root = _model_folder(model)
    modules = read_modules(root)
    folders = [module.folder for module in modules] or [root]
    config = _config(folders[0])
    paths = [os.path.join(folder, name) for folder in dict.fromkeys([root, *folders]) for name in NAMES_READ]
    files: list[str] = []
    if weights or _all_weights(folders[0], modules):
        files, where = weight_files(folders[0], config)
        if where is not None:
            paths.append(os.path.join(folders[0], INDEX))
        check_weights(modules)
        files = list(dict.fromkeys([*files, *module_weights(modules)]))
    return [os.path.relpath(path, root) for path in [*filter(there, paths), *files]]


def _all_weights(folder: str, modules: Sequence[Module]) -> bool:
    """Whether there are weights of the model in `folder` and of each module that has some."""
    return has_weights(folder) and all(map(there, module_weights(modules)))


def _behind(files: Sequence[str], chain: Chain) -> list[Tensor]:
    """The chain's tensors, whose files stand behind `files`."""
    return [(*tensor[:3], len(files) + tensor[3], *tensor[4:]) for tensor in chain.tensors]


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
