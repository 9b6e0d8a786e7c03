"""What sentence-transformers says of a folder: modules.json and the settings beside it -> how a vector is made.

    Transformer -> hidden states      sentence_bert_config.json in its folder: the length, lower case
    Pooling     -> one vector         config.json in its folder
    Normalize   -> of length 1        a second one changes nothing
    Dense, LayerNorm                  in any order behind Pooling, Normalize between them: chain.py reads what they hold
    Dropout                           changes nothing where nothing is trained

Other modules, and a key that may change the mathematics, are refused by name.

A Router (Asym of old) picks modules by task, "query" or "document", and an engine has one chain. It is refused, with
the command that makes a folder of each route: whichever route was taken without asking, rows of the other kind would
get vectors that mean nothing, and nobody would be told.

A CrossEncoder's Transformer, which is a classifier, stands alone; what becomes of its logits labels.py says.
"""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from .._core import CheckpointError, ConfigError
from .files import content, folder_there, inside, optional_json, parsed, read_json, some, there

# Of the Transformer module, in its folder: the first of these names that says anything.
TRANSFORMER_SETTINGS = tuple(
    f"sentence_{kind}_config.json"
    for kind in ("bert", "roberta", "distilbert", "camembert", "albert", "xlm-roberta", "xlnet")
)
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
SIZED = ("Dense", "LayerNorm")  # modules that have weights
_BEHIND = (*SIZED, "Normalize", "Dropout")  # Pooling, in any order
_MODULES = ("Transformer", "Pooling", *_BEHIND)
# Those that do not run, and why: what a folder has instead of, or beside, one transformer's hidden states.
_OTHERS = {
    "BoW": "counts words",
    "CLIPModel": "embeds images and text",
    "CNN": "puts convolutions behind a model of words",
    "CSRSparsity": "makes sparse vectors",
    "LSTM": "puts an LSTM behind a model of words",
    "MLMTransformer": "makes sparse vectors",
    "MultiVectorMask": "makes a vector of each token",
    "SparseAutoEncoder": "makes sparse vectors",
    "SparseStaticEmbedding": "makes sparse vectors",
    "SpladePooling": "makes sparse vectors",
    "StaticEmbedding": "has vectors of words and no transformer",
    "TokenPooling": "makes several vectors of a text",
    "WeightedLayerPooling": "mixes the hidden states of several layers",
    "WordEmbeddings": "has vectors of words and no transformer",
    "WordWeights": "weighs words",
}
_ROUTERS = ("Router", "Asym")
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

# The same of a CrossEncoder, whose only module it is.
_CLASSIFIER_NEUTRAL = _TRANSFORMER_NEUTRAL | {
    "transformer_task": ("sequence-classification",),
    "modality_config": (None, {"text": {"method": "forward", "method_output_name": "logits"}}),
    "module_output_name": (None, "scores"),
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
    activation: str | None = None  # of a CrossEncoder's scores, a class of torch's by name


class Module(NamedTuple):
    kind: str  # "Transformer", "Pooling", ...: the class, without its package, which moved from release to release
    folder: str  # absolute


def read_modules(root: str) -> list[Module]:
    """The modules that modules.json lists; empty where there is none.

    Raises CheckpointError where it is damaged, ConfigError for modules, or an order of them, that do not run here.
    """
    path = os.path.join(root, "modules.json")
    if not there(path):
        return []
    listed = parsed(content(path), path)
    if not isinstance(listed, list) or not listed or not all(isinstance(module, dict) for module in listed):
        raise CheckpointError(f'{path}: an array of modules ({{"type", "path"}}) belongs there')
    modules = []
    for module in listed:
        kind = module.get("type")
        if not isinstance(kind, str) or not isinstance(module.get("path"), str):
            raise CheckpointError(f"{path}: module {module!r} has no type or no path")
        package, _, name = kind.rpartition(".")
        theirs = package.partition(".")[0] == "sentence_transformers"
        if theirs and name in _ROUTERS:
            raise ConfigError(_routed(root, inside(root, module["path"], "modules.json"), kind))
        if not theirs or name not in _MODULES:
            why = f"{_OTHERS[name]}, which does not run here" if theirs and name in _OTHERS else "is not understood"
            raise ConfigError(f"{path}: module {kind} {why}; known are sentence-transformers' {', '.join(_MODULES)}")
        modules.append(Module(name, inside(root, module["path"], "modules.json")))
        folder_there(modules[-1].folder)  # a file in its place is an error; of modules without settings none need be
    order = [module.kind for module in modules]
    if order == ["Transformer"]:  # a CrossEncoder's, or so read_sentence finds
        return modules
    if order[:2] != ["Transformer", "Pooling"] or not set(order[2:]) <= set(_BEHIND):
        raise ConfigError(
            f"{path}: the modules are {', '.join(order)}; only Transformer, Pooling and then {', '.join(_BEHIND)} in "
            f"any order run"
        )
    return modules


def _routed(root: str, folder: str, kind: str) -> str:
    """The sentence for a Router whose settings lie in `folder`; Asym of old kept them in config.json."""
    path = os.path.join(folder, "router_config.json")
    structure = optional_json(path if there(path) else os.path.join(folder, "config.json")).get("structure")
    routes = list(structure) if isinstance(structure, dict) else []
    said = f"{os.path.join(root, 'modules.json')}: module {kind} picks modules by task"
    if not routes or not all(name.isidentifier() for name in routes):
        return f"{said}, which does not run here; save a model of each of its routes, and give the folder of one"
    code = (
        "import sys; from sentence_transformers import SentenceTransformer as S; p = sys.argv[1]; "
        "m = S(p, device='cpu'); [S(modules=[y for x in m for y in (x.sub_modules[r] if hasattr(x, 'sub_modules') else "
        "[x])], device='cpu', prompts=m.prompts, default_prompt_name=r if r in m.prompts else None)"
        ".save(p.rstrip('/') + '-' + r) for r in sys.argv[2:]]"
    )
    return (
        f"{said} ({some(routes)}), which does not run here; make a folder of each once, and give the one that your "
        f'texts are for: python -c "{code}" {shlex.quote(root)} {" ".join(routes)}'
    )


def last_sized(modules: list[Module]) -> int:
    """The place of the last module that vectors leave with other values, whatever their length; Pooling's at least."""
    return max((i for i, module in enumerate(modules) if module.kind in SIZED), default=1)


def hidden_width(config: Mapping[str, object]) -> int | None:
    """Floats of a token's hidden state, where config.json says so under a name that is known here."""
    return next((config[key] for key in ("hidden_size", "dim") if type(config.get(key)) is int), None)


def read_sentence(
    root: str,
    folder: str,
    modules: list[Module],
    config: Mapping[str, object],
    tokenizer_config: Mapping[str, object],
) -> Sentence:
    """What the settings say together; `folder` is the Transformer's. Raises CheckpointError and ConfigError."""
    length = _tokenizer_length(folder, tokenizer_config)
    if not modules:
        return Sentence(max_length=length)

    path, transformer = _transformer(folder)
    if len(modules) == 1 and transformer.get("transformer_task") != "sequence-classification":
        raise ConfigError(
            f"{os.path.join(root, 'modules.json')}: the modules are Transformer; alone it has to be a classifier of a "
            f'CrossEncoder, whose settings say transformer_task = "sequence-classification"'
        )
    neutral = _TRANSFORMER_NEUTRAL if len(modules) > 1 else _CLASSIFIER_NEUTRAL
    expect_known(path, transformer, ("max_seq_length", "do_lower_case"), neutral)
    length = optional_int(path, transformer, "max_seq_length") or length
    lower = flag(path, transformer, "do_lower_case")

    pooling, include_prompt = ("mean",), True
    if len(modules) > 1:
        pooling, include_prompt = _pooling(os.path.join(modules[1].folder, "config.json"), config)
    path = os.path.join(root, "config_sentence_transformers.json")
    settings = optional_json(path)
    known = ("__version__", "prompts", "default_prompt_name", "truncate_dim", "similarity_fn_name")
    neutral = {"model_type": (None, "SentenceTransformer")}
    if len(modules) == 1:
        known += ("activation_fn",)
        neutral = {"model_type": (None, "CrossEncoder"), "keep_in_fp32_modules": (None, [])}
    expect_known(path, settings, known, neutral)
    prompts = settings.get("prompts") or {}
    if not isinstance(prompts, dict) or not all(text is None or isinstance(text, str) for text in prompts.values()):
        raise CheckpointError(f"{path}: prompts is no object from names to strings")
    default = settings.get("default_prompt_name")
    if default is not None and (not isinstance(default, str) or default not in prompts):
        raise ConfigError(f"{path}: default_prompt_name is {default!r}; the prompts are {some(prompts) or 'none'}")
    return Sentence(
        pooling=pooling,
        normalize=any(module.kind == "Normalize" for module in modules[last_sized(modules) + 1 :]),
        include_prompt=include_prompt,
        max_length=length,
        do_lower_case=lower,
        prompts={name: text or "" for name, text in prompts.items()},
        default_prompt_name=default,
        truncate_dim=optional_int(path, settings, "truncate_dim"),
        activation=settings.get("activation_fn"),
    )


def _tokenizer_length(folder: str, settings: Mapping[str, object]) -> int | None:
    """tokenizer_config.json's model_max_length, or max_len, its name of old; no limit is 1e30 there."""
    key = "model_max_length" if "model_max_length" in settings else "max_len"
    value = settings.get(key)
    if value is None or (type(value) in (int, float) and value >= 2**31):
        return None
    if type(value) in (int, float) and value >= 1 and value == int(value):
        return int(value)
    path = os.path.join(folder, "tokenizer_config.json")
    raise ConfigError(f"{path}: {key} is {repr(value)[:100]}; a whole number of tokens belongs there")


def _transformer(folder: str) -> tuple[str, dict[str, object]]:
    """The settings of the Transformer module, and their file."""
    for name in TRANSFORMER_SETTINGS:
        path = os.path.join(folder, name)
        if settings := optional_json(path):
            return path, settings
    return folder, {}


def _pooling(path: str, config: Mapping[str, object]) -> tuple[tuple[str, ...], bool]:
    """(modes, include_prompt) of a Pooling module, in the old spelling (one boolean a mode) or the new."""
    if not there(path):
        raise CheckpointError(f"{path}: is missing, but modules.json names its folder as the Pooling module")
    pooling = read_json(path)
    width_keys = ("embedding_dimension", "word_embedding_dimension")
    expect_known(path, pooling, ("pooling_mode", "include_prompt", *width_keys, *_POOLING_FLAGS), {})
    width = hidden_width(config)
    for key in width_keys:
        if key in pooling and width is not None and pooling[key] != width:
            raise ConfigError(f"{path}: {key} is {pooling[key]!r}, but the model's hidden_size is {width}")
    modes = pooling.get("pooling_mode")
    if modes is None:
        modes = [mode for key, mode in _POOLING_FLAGS.items() if flag(path, pooling, key)] or ["mean"]
    elif isinstance(modes, str):
        modes = [modes]
    return pooling_modes(modes, path), flag(path, pooling, "include_prompt", True)


def pooling_modes(modes: object, said_by: str) -> tuple[str, ...]:
    """The names the engine knows for one or several pooling modes."""
    listed = [modes] if isinstance(modes, str) else modes
    known = {**POOLINGS, "mean_sqrt_len": "mean_sqrt_len"}
    if not isinstance(listed, (list, tuple)) or not listed:
        raise ConfigError(f"{said_by}: pooling is {modes!r}; a mode or a list of modes belongs there")
    wrong = [mode for mode in listed if not isinstance(mode, str) or mode not in known]
    if wrong:
        raise ConfigError(f"{said_by}: pooling {some(wrong)} is not known; known are {', '.join(POOLINGS)}")
    return tuple(known[mode] for mode in listed)


def expect_known(
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


def optional_int(path: str, settings: Mapping[str, object], key: str) -> int | None:
    value = settings.get(key)
    if value is None or (type(value) is int and 0 < value < 2**31):
        return value
    raise ConfigError(f"{path}: {key} is {value!r}; a positive whole number or null belongs there")


def flag(path: str, settings: Mapping[str, object], key: str, default: bool = False) -> bool:
    value = settings.get(key, default)
    if value is None or isinstance(value, bool) or (type(value) is int and value in (0, 1)):
        return bool(value)
    raise ConfigError(f"{path}: {key} is {value!r}; true or false belongs there")
