"""What tests of tokenizer files share: folders, and the token ids of transformers and of this package, side by side."""

import base64
import itertools
import json
import struct

import tiny
from firesteel import Error
from firesteel.model.checkpoint import Checkpoint
from firesteel.model.tokenizer import Tokenizer


def added(content, **flags):
    return {"content": content, "lstrip": False, "rstrip": False, "single_word": False, "normalized": True} | flags


def write(folder, files, config=None):
    folder.mkdir(parents=True)
    settings = tiny.config() | {"max_position_embeddings": 512} | (config or {})
    (folder / "config.json").write_text(json.dumps(settings))
    for name, value in files.items():
        if value is not None:
            text = value if isinstance(value, (str, bytes)) else json.dumps(value)
            (folder / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    return folder


PAIR_LIMIT = 21  # an odd number of tokens is left for the texts of a BERT's pair, and an even one for another's


def seconds(texts):
    return [*texts[1:], *texts[:1]]


def theirs(folder, texts):
    """Token ids of texts and of pairs, or the error."""
    import transformers

    try:
        loaded = transformers.AutoTokenizer.from_pretrained(str(folder))
        single = loaded(texts)["input_ids"]
        pairs = loaded(texts, seconds(texts), truncation=True, max_length=PAIR_LIMIT)
    except Exception as error:
        return error
    ids = pairs["input_ids"]
    types = pairs.get("token_type_ids") or [[0] * len(row) for row in ids]
    return single, [[a | b << 24 for a, b in zip(*row, strict=True)] for row in zip(ids, types, strict=True)]


def ours(folder, texts):
    try:
        tokenizer = Tokenizer(Checkpoint.open(folder, weights=False), special_tokens=True)
        single = tokenizer.encode(texts, 512)
        pairs = tokenizer.encode(texts, PAIR_LIMIT, pairs=seconds(texts))
    except Error as error:
        return error
    assert not single.errors and not pairs.errors
    return tuple([e.ids[a:b].tolist() for a, b in itertools.pairwise(e.offsets)] for e in (single, pairs))


def outcome(folder, name, texts, spelled=list):
    """ "equal" or "refused"; anything else fails here.

    name       what the sentence of a refusal has to hold
    spelled    ids as a failure shows them
    """
    right, found = theirs(folder, texts), ours(folder, texts)
    if isinstance(found, Exception):
        assert name in str(found), f"refused without naming {name}: {found}"
        return "refused"
    assert not isinstance(right, Exception), f"transformers fails ({right!r}) and this does not"
    for what, mine, reference in zip(("text", "pair"), found, right, strict=True):
        for text, a, b in zip(texts, mine, reference, strict=True):
            assert a == b, f"the {what} {text!r} is {spelled(a)}, with transformers {spelled(b)}"
    return "equal"


def unigram(normalizer):
    """A tokenizer.json as XLM-R's are, with a character map from fullwidth to plain letters."""
    pieces = ["<s>", "<pad>", "</s>", "<unk>", "▁", "▁the", "▁cat", "dog", "▁York", ".", *"abcdefghijklmnoprstuvwxyzT"]
    vocab = [[piece, -float(number)] for number, piece in enumerate([*pieces, "<mask>"])]
    step = {"type": "Precompiled", "precompiled_charsmap": base64.b64encode(character_map()).decode()}
    replace = {"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": " "}
    space = {"type": "Metaspace", "replacement": "▁", "add_prefix_space": True, "prepend_scheme": "always"}
    ends = {token: {"id": token, "ids": [number], "tokens": [token]} for token, number in (("<s>", 0), ("</s>", 2))}
    single = [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]
    single.append({"SpecialToken": {"id": "</s>", "type_id": 0}})
    special = [("<s>", 0), ("<pad>", 1), ("</s>", 2), ("<unk>", 3), ("<mask>", len(vocab) - 1)]
    flags = {"single_word": False, "rstrip": False, "normalized": False, "special": True}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": i, "content": t, "lstrip": t == "<mask>", **flags} for t, i in special],
        "normalizer": {"Sequence": {"type": "Sequence", "normalizers": [step, replace]}, "Precompiled": step}.get(
            normalizer
        ),
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [{"type": "WhitespaceSplit"}, space]},
        "post_processor": {"type": "TemplateProcessing", "single": single, "pair": single, "special_tokens": ends},
        "decoder": space,
        "model": {"type": "Unigram", "unk_id": 3, "vocab": vocab},
    }


def character_map():
    """sentencepiece's map, a double array over UTF-8 and the texts behind it: fullwidth A to Z become a to z."""
    block, units, texts = {b"": 1}, {}, b""
    for number in range(26):
        key, at = chr(0xFF21 + number).encode(), 0
        for depth in range(1, len(key) + 1):
            node = 256 * block[key[: depth - 1]] ^ key[depth - 1]
            target = 256 * block.setdefault(key[:depth], len(block) + 1)
            units[node] = (node ^ target) << 10 | (depth == len(key)) << 8 | key[depth - 1]
            at = target
        units[at] = 1 << 31 | len(texts)
        texts += bytes([97 + number, 0])
    units[0] = 256 << 10
    array = b"".join(units.get(at, 0).to_bytes(4, "little") for at in range(256 * (len(block) + 1)))
    return len(array).to_bytes(4, "little") + array + texts


def sentencepiece_model(pieces, characters=b"", model=1):
    """A SentencePiece file of (text, score, kind)."""

    def varint(value):
        return bytes([value & 127 | 128]) + varint(value >> 7) if value > 127 else bytes([value])

    def message(number, value):
        return varint(number << 3 | 2) + varint(len(value)) + value

    listed = b"".join(
        message(1, message(1, text.encode()) + b"\x15" + struct.pack("<f", score) + b"\x18" + varint(kind))
        for text, score, kind in pieces
    )
    return listed + message(2, b"\x18" + varint(model)) + message(3, message(1, b"map") + message(2, characters))
