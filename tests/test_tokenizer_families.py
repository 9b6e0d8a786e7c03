"""Byte-level BPE, Unigram and SentencePiece, each with its own files; against transformers: test_reference_families."""

import json

import pytest
from firesteel import CheckpointError, ConfigError
from firesteel.model import kinds
from firesteel.model.checkpoint import Checkpoint
from firesteel.model.tokenizer import Tokenizer
from tokenizer_kit import character_map, sentencepiece_model, write

VOCAB = {
    token: number for number, token in enumerate(["<s>", "<pad>", "</s>", "<unk>", *"thecaĠ<s>/", "th", "Ġc", "Ġca"])
}
MERGES = "#version: 0.2\nt h\nĠ c\nĠc a\n"
SPIECES = [
    ("<unk>", 0.0, 2),
    ("<s>", 0.0, 3),
    ("</s>", 0.0, 3),
    ("▁", -2.0, 1),
    ("▁the", -1.0, 1),
    ("c", -3.0, 1),
    ("a", -3.0, 1),
]


@pytest.fixture(autouse=True)
def any_model_type(monkeypatch):
    """Which models run is not the question here."""
    monkeypatch.setattr(kinds, "check_type", lambda *_: None)


def opened(folder):
    return Tokenizer(Checkpoint.open(folder, weights=False))


def rows(encoded):
    return [encoded.ids[a:b].tolist() for a, b in zip(encoded.offsets, encoded.offsets[1:], strict=False)]


def roberta(folder, **files):
    given = {"vocab.json": VOCAB, "merges.txt": MERGES} | {name.replace("_", "."): files[name] for name in files}
    return write(folder, given, {"model_type": "roberta", "vocab_size": 20})


def test_vocab_and_merges(tmp_path):
    tokenizer = opened(roberta(tmp_path / "m"))
    ids = [VOCAB[token] for token in ("<s>", "th", "e", "Ġca", "t", "</s>")]
    assert rows(tokenizer.encode(["the cat"], 64)) == [ids]
    assert rows(tokenizer.encode(["the"], 64, pairs=[" ca"])) == [[*ids[:3], 2, 2, VOCAB["Ġca"], 2]]
    assert tokenizer.encode(["a"], 4, pairs=["a"]).offsets.tolist() == [0, 4]


@pytest.mark.parametrize(
    ("files", "part"),
    [
        (
            {"merges_txt": None},
            "tokenizer.json is missing, and so is merges.txt, which belongs to vocab.json; give rows",
        ),
        (
            {"vocab_json": None},
            "tokenizer.json is missing; give rows of token ids, or copy tokenizer.json or vocab.json",
        ),
        ({"vocab_json": [1]}, "vocab.json: cannot be read: an object from tokens to ids belongs there"),
        ({"vocab_json": "{"}, "vocab.json: cannot be read: Expecting"),
        ({"vocab_json": {"a": "b"}}, "vocab.json: cannot be read: an object from tokens to ids"),
        ({"merges_txt": "t h\nth e x\n"}, 'merges.txt: line 2 is "th e x"; two tokens with a space between'),
        ({"merges_txt": b"\xff"}, "merges.txt: cannot be read: byte 0 is not UTF-8"),
        ({"merges_txt": "t q\n"}, "fails on it"),
        ({"tokenizer_json": {"model": {"type": "Unigram"}}}, "holds a Unigram model, and RobertaTokenizer needs BPE"),
        ({"tokenizer_json": {"model": {"vocab": {}}}}, "holds a WordPiece model, and RobertaTokenizer needs BPE"),
    ],
)
def test_what_is_no_byte_level_tokenizer(tmp_path, files, part):
    with pytest.raises((CheckpointError, ConfigError)) as raised:
        opened(roberta(tmp_path / "m", **files))
    assert part in str(raised.value) and str(tmp_path) in str(raised.value)


FILES = {"xlm-roberta": "sentencepiece.bpe.model", "camembert": "sentencepiece.bpe.model", "albert": "spiece.model"}


def test_a_sentencepiece_file_alone(tmp_path):
    files = {"sentencepiece.bpe.model": sentencepiece_model(SPIECES)}
    tokenizer = opened(write(tmp_path / "m", files, {"model_type": "xlm-roberta", "vocab_size": 9}))
    # Pieces from the fourth on move by one, and the mask token follows them.
    assert rows(tokenizer.encode(["the ca q", ""], 64)) == [[0, 5, 4, 6, 7, 4, 3, 2], [0, 2]]
    assert rows(tokenizer.encode(["the"], 64, pairs=["a"])) == [[0, 5, 2, 2, 4, 7, 2]]


@pytest.mark.parametrize(
    ("content", "part"),
    [
        (b"", "is no SentencePiece file: it holds no pieces"),
        (b"\xff" * 20, "is no SentencePiece file: byte"),
        (b"{}", "is no SentencePiece file"),
        (b"version https://git-lfs.github.com/spec/v1\n", "is a Git LFS pointer"),
        (sentencepiece_model(SPIECES)[:-3], "is no SentencePiece file: 3 bytes are missing"),
        (sentencepiece_model(SPIECES)[:-9], "is no SentencePiece file: its end is missing"),
        (sentencepiece_model(SPIECES)[:20], "is no SentencePiece file"),
        (sentencepiece_model([]), "it holds no pieces"),
        (
            sentencepiece_model(SPIECES, model=2),
            "holds a BPE model, and only Unigram is supported; copy tokenizer.json",
        ),
    ],
    ids=["empty", "bytes", "json", "pointer", "short", "without a map", "cut", "no pieces", "bpe"],
)
@pytest.mark.parametrize("kind", FILES)
def test_sentencepiece_files_that_are_none(tmp_path, kind, content, part):
    folder = write(tmp_path / "m", {FILES[kind]: content}, {"model_type": kind})
    with pytest.raises((CheckpointError, ConfigError)) as raised:
        opened(folder)
    assert part in str(raised.value) and FILES[kind] in str(raised.value)


def test_every_cut_of_a_sentencepiece_file(tmp_path):
    """Whatever is missing, one sentence names the file, or what is left is a tokenizer."""
    whole = sentencepiece_model(SPIECES, b"abc")
    folder = write(tmp_path / "m", {}, {"model_type": "xlm-roberta", "vocab_size": 9})
    for end in range(len(whole)):
        (folder / "sentencepiece.bpe.model").write_bytes(whole[:end])
        try:
            opened(folder).encode(["the"], 64)
        except (CheckpointError, ConfigError) as error:
            assert "sentencepiece.bpe.model" in str(error)


def test_a_class_without_its_file(tmp_path):
    folder = write(tmp_path / "m", {"tokenizer.model": "x"}, {"model_type": "llama"})
    with pytest.raises(CheckpointError, match=r"AutoTokenizer.from_pretrained\(...\) and save_pretrained"):
        opened(folder)


def test_an_albert_without_tokenizer_json(tmp_path):
    pieces = [
        ("<pad>", 0.0, 3),
        ("<unk>", 0.0, 2),
        ("[CLS]", 0.0, 3),
        ("[SEP]", 0.0, 3),
        ("[MASK]", 0.0, 3),
        *SPIECES[3:],
    ]
    files = {"spiece.model": sentencepiece_model(pieces)}
    folder = write(tmp_path / "m", files, {"model_type": "albert", "vocab_size": 9})
    tokenizer = opened(folder)
    assert rows(tokenizer.encode(["THE"], 64, pairs=["a"])) == [[2, 6, 3, 5, 8, 3]]
    (folder / "tokenizer_config.json").write_text(json.dumps({"model_input_names": ["token_type_ids"]}))
    assert rows(opened(folder).encode(["THE"], 64, pairs=["a"])) == [[2, 6, 3, *(id | 1 << 24 for id in (5, 8, 3))]]
    (folder / "tokenizer_config.json").write_text(json.dumps({"add_bos_token": True}))
    with pytest.raises(ConfigError, match="add_bos_token = true is not supported without tokenizer.json"):
        opened(folder)


TYPED = ["<s>", "</s>", "<unk>", "<mask>"]


@pytest.mark.parametrize("pairs", [False, True])
def test_special_tokens_that_are_pieces(tmp_path, pairs):
    """A Unigram model has them among its pieces, with the best of scores, and its map of characters makes them."""
    letters = [(c, -5.0, 1) for c in "<>/sunkma"]
    model = sentencepiece_model([*SPIECES[:5], *letters], character_map())
    folder = write(tmp_path / "m", {"sentencepiece.bpe.model": model}, {"model_type": "xlm-roberta", "vocab_size": 20})
    plain, special = (Tokenizer(Checkpoint.open(folder, False), special_tokens=asked) for asked in (False, True))
    texts = [*TYPED, "the</s>the", "<ＵＮＫ>", "</Ｓ>", "the q", "the"]
    given = {"pairs": texts[::-1]} if pairs else {}
    found = rows(plain.encode(texts, 64, **given))
    marks = [sum(id in (0, 1, 2) for id in row) for row in found]
    assert marks == [4 if pairs else 2] * len(texts), "only the template's"
    spelled = {5 + 1 + number: c for number, (c, _, _) in enumerate(letters)}
    for text, row in list(zip(texts, found, strict=True))[: 0 if pairs else 4]:
        assert "".join(spelled[id] for id in row[2:-1]) == text
    assert found[-2:] == rows(special.encode(texts, 64, **given))[-2:] or pairs
    marked = rows(special.encode(["</s>", "<mask>"], 64))
    assert marked == [[0, 2, 2], [0, 15, 2]]


def test_special_tokens_are_plain_however_a_text_is_cut(tmp_path):
    letters = [(c, -5.0, 1) for c in "<>/sunkma"]
    folder = write(
        tmp_path / "m",
        {"sentencepiece.bpe.model": sentencepiece_model([*SPIECES[:5], *letters])},
        {"model_type": "xlm-roberta", "vocab_size": 20},
    )
    tokenizer = opened(folder)
    whole = rows(tokenizer.encode(["the </s> the a</s>"], 64))[0][1:-1]
    for limit in range(2, len(whole) + 3):
        for side in ("left", "right"):
            row = rows(tokenizer.encode(["the </s> the a</s>"], limit, side))[0]
            kept = whole[: limit - 2] if side == "right" else whole[len(whole) - min(limit - 2, len(whole)) :]
            assert row == [0, *kept, 2]
