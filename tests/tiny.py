"""Tiny model folders, made from a seed with NumPy alone: the same bytes on every machine, and no torch.

    folder = tiny.write(tmp_path / "model", seed=3, hidden=36, heads=3)       # config, weights, tokenizer
    rows = tiny.rows(seed=3, lengths=(1, 7, 64))                              # token ids

Golden files hold outputs only: their weights are made again here, so a change to this file asks for make_golden.py.
"""

from __future__ import annotations

import json
import string
from pathlib import Path

import numpy as np

MODELS = Path(__file__).parent / "models" / "tiny"
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
WORDS = "the of and to in is it was for on are with as date parse string array column row table first last".split()

# name -> how `write` makes it; what make_golden.py stores and test_golden.py compares
GOLDEN = {
    "plain": {},
    "one-head": {"seed": 1, "hidden": 16, "heads": 1, "inner": 40, "layers": 1},
    "twelve-heads": {"seed": 2, "hidden": 96, "heads": 12, "inner": 52},
    "odd-width": {"seed": 3, "hidden": 36, "heads": 3, "inner": 100, "layers": 3},
    "bf16-gelu_new": {"seed": 4, "dtype": "BF16", "act": "gelu_new", "hidden": 40, "heads": 2},
    "f16-relu-sharded": {"seed": 5, "dtype": "F16", "act": "relu", "shards": 3, "prefix": "bert."},
}
GOLDEN_LENGTHS = (1, 2, 17, 64)


def config(
    *, hidden: int = 48, heads: int = 3, layers: int = 2, inner: int = 96, positions: int = 64, act: str = "gelu"
) -> dict[str, object]:
    """config.json of a BERT, from tests/models/tiny/bert.json."""
    settings = json.loads((MODELS / "bert.json").read_text())
    return settings | {
        "hidden_size": hidden,
        "num_attention_heads": heads,
        "num_hidden_layers": layers,
        "intermediate_size": inner,
        "max_position_embeddings": positions,
        "hidden_act": act,
    }


def tensors(settings: dict[str, object], seed: int = 0) -> dict[str, np.ndarray]:
    """Seeded weights: name -> float32 array. Scaled so that attention has something to choose between."""
    D, F = settings["hidden_size"], settings["intermediate_size"]
    random = np.random.RandomState(seed)  # its stream is frozen, unlike a Generator's; uniform needs no libm
    made: dict[str, np.ndarray] = {}

    def add(name: str, *shape: int, scale: float | None = None, around: float = 0.0) -> None:
        scale = 3**0.5 * (shape[-1] ** -0.5 if scale is None else scale)
        made[name] = (around + scale * (2 * random.random_sample(shape) - 1)).astype(np.float32)

    def norm(name: str) -> None:
        add(name + ".weight", D, scale=0.1, around=1.0)
        add(name + ".bias", D, scale=0.1)

    def linear(name: str, outputs: int, inputs: int) -> None:
        add(name + ".weight", outputs, inputs)
        add(name + ".bias", outputs, scale=0.1)

    add("embeddings.word_embeddings.weight", settings["vocab_size"], D, scale=1.0)
    add("embeddings.position_embeddings.weight", settings["max_position_embeddings"], D, scale=0.5)
    add("embeddings.token_type_embeddings.weight", settings["type_vocab_size"], D, scale=0.5)
    norm("embeddings.LayerNorm")
    for layer in range(settings["num_hidden_layers"]):
        at = f"encoder.layer.{layer}."
        for part in ("query", "key", "value"):
            linear(at + "attention.self." + part, D, D)
        linear(at + "attention.output.dense", D, D)
        norm(at + "attention.output.LayerNorm")
        linear(at + "intermediate.dense", F, D)
        linear(at + "output.dense", D, F)
        norm(at + "output.LayerNorm")
    linear("pooler.dense", D, D)
    return made


def head_of(model_type: str) -> tuple[str, list[str], str]:
    """Of a type's *ForSequenceClassification: its name, its dense layers' names in the file, what its encoder's begin
    with. Poolers are the encoder's."""
    from firesteel import _core

    known = next(kind for kind in _core.architectures() if kind["model_type"] == model_type)
    base = known["base"]
    layers = [name.removesuffix(".weight") for name in known["head"]]
    layers = [base + name if name.startswith("pooler") else name for name in layers]
    return known["architectures"][0].rstrip("*") + "ForSequenceClassification", layers, base


def architecture_config(model_type: str, labels: int = 0, **changes: object) -> dict[str, object]:
    """tests/models/tiny's config.json of a type, with changes; of a classifier where there are labels."""
    settings = json.loads((MODELS / f"{model_type}.json").read_text()) | changes
    if labels:
        names = {str(i): f"LABEL_{i}" for i in range(labels)}
        settings |= {"architectures": [head_of(model_type)[0]], "id2label": names}
        settings["label2id"] = {name: int(i) for i, name in names.items()}
    return settings


def architecture_tensors(settings: dict[str, object], labels: int = 0, seed: int = 0) -> dict[str, np.ndarray]:
    """Seeded weights of any architecture, by the names and shapes of its tables in C."""
    from firesteel import _core

    random = np.random.RandomState(seed)
    _, layers, base = head_of(settings["model_type"])
    listed = [(base * bool(labels) + name, shape) for name, shape in _core.weights(settings)]
    if labels:
        width = settings.get("hidden_size") or settings["dim"]
        for name, outputs in zip(layers, [width] * (len(layers) - 1) + [labels], strict=True):
            listed += [(f"{name}.weight", (outputs, width)), (f"{name}.bias", (outputs,))]
    made = {}
    for name, shape in listed:
        vector = len(shape) == 1
        around = 1.0 if vector and name.endswith("weight") else 0.0
        scale = 0.1 if vector else 0.6 if "embeddings" in name else shape[-1] ** -0.5
        made[name] = (around + 3**0.5 * scale * (2 * random.random_sample(shape) - 1)).astype(np.float32)
    return made


def write_architecture(
    folder: Path | str,
    model_type: str,
    *,
    labels: int = 0,
    seed: int = 0,
    dtype: str = "F32",
    prefix: str = "",
    **changes: object,
) -> Path:
    """A folder of config and weights, without a tokenizer. prefix: before the name of every tensor."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    settings = architecture_config(model_type, labels, **changes)
    (folder / "config.json").write_text(json.dumps(settings, indent=2))
    weights = architecture_tensors(settings, labels, seed)
    write_safetensors(folder / "model.safetensors", {prefix + name: array for name, array in weights.items()}, dtype)
    return folder


def rows(seed: int, lengths: tuple[int, ...], vocab: int = 160) -> list[np.ndarray]:
    """Token ids, int32 [length] each."""
    random = np.random.RandomState(seed)
    return [random.randint(0, vocab, length).astype(np.int32) for length in lengths]


def take_special_tokens(engine) -> None:
    """Those that stand in texts become tokens, as in transformers: what files of golden/ were made with."""
    from firesteel.model.tokenizer import Tokenizer

    engine._tokenizer_once()  # nobody else makes one any more
    engine._tokenizer = Tokenizer(engine._checkpoint, special_tokens=True)


def write(
    folder: Path | str,
    *,
    seed: int = 0,
    dtype: str = "F32",
    shards: int = 1,
    prefix: str = "",
    sentence: dict[str, object] | None = None,
    **shape: object,
) -> Path:
    """A model folder; `shape` goes to config(), `sentence` to write_sentence()."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    settings = config(**shape)
    (folder / "config.json").write_text(json.dumps(settings, indent=2))
    weights = {prefix + name: array for name, array in tensors(settings, seed).items()}
    if shards == 1:
        write_safetensors(folder / "model.safetensors", weights, dtype)
    else:
        names, where = list(weights), {}
        for number in range(shards):
            file = f"model-{number + 1:05}-of-{shards:05}.safetensors"
            part = {name: weights[name] for name in names[number::shards]}
            write_safetensors(folder / file, part, dtype)
            where |= dict.fromkeys(part, file)
        index = {"metadata": {"total_size": 0}, "weight_map": where}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    write_tokenizer(folder, settings["vocab_size"], settings["max_position_embeddings"])
    if sentence is not None:
        write_sentence(folder, settings["hidden_size"], **sentence)
    return folder


def encode(array: np.ndarray, dtype: str) -> bytes:
    """float32 as safetensors stores it; BF16 is the upper half of the bits, rounded to nearest even."""
    if dtype == "BF16":
        bits = array.view(np.uint32).astype(np.uint64)
        return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype("<u2").tobytes()
    return array.astype({"F32": "<f4", "F16": "<f2"}[dtype]).tobytes()


def write_safetensors(path: Path, weights: dict[str, np.ndarray], dtype: str = "F32") -> None:
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    data = []
    at = 0
    for name, array in weights.items():
        data.append(encode(array, dtype))
        header[name] = {"dtype": dtype, "shape": list(array.shape), "data_offsets": [at, at + len(data[-1])]}
        at += len(data[-1])
    write_raw(path, header, b"".join(data))


def write_raw(path: Path, header: object, data: bytes = b"") -> None:
    """Any header, right or wrong, in front of any data."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    Path(path).write_bytes(len(text).to_bytes(8, "little") + text + data)


def vocabulary(size: int = 160) -> list[str]:
    signs = list(string.ascii_lowercase + string.digits)
    known = [*SPECIAL, *signs, *("##" + sign for sign in signs), *".,:;!?()'\"-_/", "é", "中", *WORDS]
    assert len(known) <= size, (len(known), size)
    return known + [f"[unused{number}]" for number in range(size - len(known))]


def write_tokenizer(folder: Path, vocab: int = 160, positions: int = 64) -> None:
    """A lower-casing WordPiece tokenizer that knows letters, digits and a few words; the file pads and truncates."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

    ids = {token: number for number, token in enumerate(vocabulary(vocab))}
    tokenizer = Tokenizer(models.WordPiece(ids, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True, strip_accents=False)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    ends = [(token, ids[token]) for token in ("[CLS]", "[SEP]")]
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=ends
    )
    tokenizer.add_special_tokens(SPECIAL)
    tokenizer.enable_padding(length=12)
    tokenizer.enable_truncation(12)
    tokenizer.save(str(folder / "tokenizer.json"))
    special = {f"{token.strip('[]').lower()}_token": token for token in SPECIAL}
    settings = {"tokenizer_class": "BertTokenizer", "model_max_length": positions, "do_lower_case": True, **special}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings | {"strip_accents": False}))


def write_sentence(
    folder: Path,
    hidden: int,
    *,
    pooling: dict[str, object] | None = None,
    normalize: bool = True,
    transformer: dict[str, object] | None = None,
    settings: dict[str, object] | None = None,
) -> None:
    """The files of sentence-transformers; pooling, transformer and settings are what their config files hold."""
    package = "sentence_transformers.models."
    listed = [("", "Transformer"), ("1_Pooling", "Pooling"), ("2_Normalize", "Normalize")][: 3 if normalize else 2]
    modules = [{"idx": i, "name": str(i), "path": at, "type": package + kind} for i, (at, kind) in enumerate(listed)]
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "1_Pooling").mkdir(exist_ok=True)
    pooling = {"word_embedding_dimension": hidden, **(pooling or {"pooling_mode_mean_tokens": True})}
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    if transformer is not None:
        (folder / "sentence_bert_config.json").write_text(json.dumps(transformer))
    if settings is not None:
        (folder / "config_sentence_transformers.json").write_text(json.dumps(settings))


def error_per_row(found: np.ndarray, expected: np.ndarray) -> float:
    """Largest relative error of a row (the last axis), by its norm."""
    assert found.shape == expected.shape, (found.shape, expected.shape)
    assert np.isfinite(found).all()
    if not expected.size:
        return 0.0
    off = np.linalg.norm(found.astype(np.float64) - expected, axis=-1)
    return float((off / np.linalg.norm(expected.astype(np.float64), axis=-1)).max())
