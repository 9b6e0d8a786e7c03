"""Texts to flat token ids: as transformers makes them, whatever the batch, the length and the thread."""

import os
import subprocess
import sys
import threading

import numpy as np
import pytest
import tiny
from firesteel import CheckpointError, RequestError
from firesteel.model.checkpoint import Checkpoint
from firesteel.model.tokenizer import Tokenizer

IDS = {token: number for number, token in enumerate(tiny.vocabulary())}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny.write(tmp_path_factory.mktemp("tokenizer") / "model", hidden=8, heads=1, inner=8, layers=1)


@pytest.fixture(scope="module")
def tokenizer(folder):
    return Tokenizer(Checkpoint.open(folder))


def ids(*tokens):
    return [IDS[token] for token in ("[CLS]", *tokens, "[SEP]")]


def rows(encoded):
    return [encoded.ids[a:b].tolist() for a, b in zip(encoded.offsets, encoded.offsets[1:], strict=False)]


def test_flat_ids_and_offsets(tokenizer):
    encoded = tokenizer.encode(["the table", "", "The ab!", "[SEP]"], 64)
    assert encoded.ids.dtype == np.int32 and encoded.offsets.dtype == np.int64
    assert rows(encoded) == [ids("the", "table"), ids(), ids("the", "a", "##b", "!"), ids("[SEP]")]
    assert encoded.errors == []


def test_no_rows(tokenizer):
    encoded = tokenizer.encode([], 64)
    assert encoded.ids.shape == (0,) and encoded.offsets.tolist() == [0] and encoded.errors == []


@pytest.mark.parametrize(
    "words, limit, kept",
    [(3, 5, 3), (4, 5, 3), (100, 5, 3), (100, 64, 62), (1, 2, 0), (0, 2, 0), (1, 3, 1)],
)
def test_long_texts_are_cut_between_the_special_tokens(tokenizer, words, limit, kept):
    assert rows(tokenizer.encode(["the " * words], limit)) == [ids(*["the"] * kept)]


@pytest.mark.parametrize("words, fails", [(3, False), (4, True), (200, True)])
def test_long_texts_are_faults_where_cutting_is_refused(tokenizer, words, fails):
    encoded = tokenizer.encode(["a", "the " * words, "b"], 5, truncate=False)
    if not fails:
        assert encoded.errors == [] and rows(encoded)[1] == ids(*["the"] * words)
        return
    assert encoded.errors == [(1, "TOO_LONG", f"the row has {words + 2} tokens; the limit is 5")]
    assert rows(encoded) == [ids("a"), [], ids("b")]


def test_a_limit_below_the_special_tokens(tokenizer):
    with pytest.raises(RequestError, match="max_length is 1; 2 special tokens"):
        tokenizer.encode(["a"], 1)


def test_rows_that_are_no_text(tokenizer):
    encoded = tokenizer.encode(["a", None, "x\ud800y", b"b", 3, "b", ("a", "b"), np.str_("of")], 64, prompt="the")
    assert [(row, code) for row, code, _ in encoded.errors] == [
        (1, "SCHEMA"),
        (2, "BAD_UTF8"),
        (3, "SCHEMA"),
        (4, "SCHEMA"),
        (6, "SCHEMA"),
    ]
    assert "NoneType" in encoded.errors[0][2] and "U+D800 at character 1" in encoded.errors[1][2]
    got = rows(encoded)
    assert [len(row) for row in got] == [4, 0, 0, 0, 0, 4, 0, 5]
    assert got[0] == ids("the", "##a") and not any(got[row] for row in (1, 2, 3, 4, 6))


def test_a_row_with_two_faults_has_one_error(tokenizer):
    encoded = tokenizer.encode(["the " * 50 + "\udfff", "a"], 5, truncate=False)
    assert [(row, code) for row, code, _ in encoded.errors] == [(0, "BAD_UTF8")]


def test_prompts_go_in_front(tokenizer):
    plain = tokenizer.encode(["the table", "the "], 64, prompt="date: ")
    assert rows(plain) == [ids("date", ":", "the", "table"), ids("date", ":", "the")]


def test_the_files_own_padding_and_truncation_do_not_count(tokenizer):
    assert [len(row) for row in rows(tokenizer.encode(["a", "the " * 40], 64))] == [3, 42]


def test_threads_with_different_lengths_do_not_disturb_each_other(tokenizer):
    wrong = []

    def work(limit):
        for _ in range(50):
            got = rows(tokenizer.encode(["the " * 100] * 3, limit))
            if got != [ids(*["the"] * (limit - 2))] * 3:
                wrong.append((limit, got))

    threads = [threading.Thread(target=work, args=(limit,)) for limit in range(4, 16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_lower_casing_of_sentence_transformers(tmp_path):
    folder = tiny.write(tmp_path / "m", sentence={"transformer": {"do_lower_case": True}})
    settings = (folder / "tokenizer_config.json").read_text().replace('"do_lower_case": true', '"do_lower_case": false')
    (folder / "tokenizer_config.json").write_text(settings)
    assert rows(Tokenizer(Checkpoint.open(folder)).encode(["THE"], 64)) == [ids("the")]
    (folder / "sentence_bert_config.json").write_text("{}")
    assert rows(Tokenizer(Checkpoint.open(folder)).encode(["THE"], 64)) == [ids("[UNK]")]


def test_texts_can_be_cut_on_the_left(tmp_path):
    folder = tiny.write(tmp_path / "m")
    settings = (folder / "tokenizer_config.json").read_text()
    (folder / "tokenizer_config.json").write_text(settings.replace("{", '{"truncation_side": "left", ', 1))
    assert rows(Tokenizer(Checkpoint.open(folder)).encode(["the table of"], 4)) == [ids("table", "of")]


def test_no_tokenizer(folder, tmp_path):
    opened = Checkpoint.open(folder)
    for lost in (None, str(tmp_path / "tokenizer.json")):
        (tmp_path / "tokenizer.json").write_text("{}")
        bare = Checkpoint(**{**vars(opened), "tokenizer_file": lost})
        with pytest.raises(CheckpointError, match="tokenizer.json is missing" if lost is None else "cannot read it"):
            Tokenizer(bare)


TEXTS = ["", "The Table of Dates!", "naïve é 中文 x" * 3, "[SEP] [MASK] a_b-c", "a\x00b\tc", "Ünïcode\u200b", "x" * 120]


@pytest.mark.parametrize("lower", [True, False])
def test_a_vocab_alone_is_the_same_tokenizer(tmp_path, lower):
    folder = tiny.write(tmp_path / "m")
    settings = (folder / "tokenizer_config.json").read_text()
    if not lower:
        (folder / "tokenizer_config.json").write_text(
            settings.replace('"do_lower_case": true', '"do_lower_case": false')
        )
    whole = Tokenizer(Checkpoint.open(folder)).encode(TEXTS, 64)
    (folder / "tokenizer.json").unlink()
    (folder / "vocab.txt").write_text("".join(token + "\n" for token in tiny.vocabulary()), encoding="utf-8")
    assert rows(Tokenizer(Checkpoint.open(folder)).encode(TEXTS, 64)) == rows(whole)


@pytest.mark.parametrize(
    "vocab, part", [(b"[PAD]\n[UNK]\n", 'lacks ["[SEP]", "[CLS]"]'), (b"\xff", "cannot be read")], ids=str
)
def test_a_vocab_that_is_none(tmp_path, vocab, part):
    folder = tiny.write(tmp_path / "m")
    (folder / "tokenizer.json").unlink()
    (folder / "vocab.txt").write_bytes(vocab)
    with pytest.raises(CheckpointError) as raised:
        Tokenizer(Checkpoint.open(folder))
    assert part in str(raised.value)


@pytest.mark.parametrize("threads, expected", [(1, 0), (3, 3)])
def test_the_pool_has_the_threads_asked_for(folder, threads, expected):
    """In a fresh process, because a pool lives as long as its process does."""
    code = f"""
import os
from firesteel.model.checkpoint import Checkpoint
from firesteel.model.tokenizer import Tokenizer, set_threads
set_threads({threads})
tokenizer = Tokenizer(Checkpoint.open({str(folder)!r}))
before = len(os.listdir("/proc/self/task"))
tokenizer.encode(["the table"] * 100, 64)
print(len(os.listdir("/proc/self/task")) - before)
"""
    environment = {
        name: value for name, value in os.environ.items() if "RAYON" not in name and "TOKENIZERS" not in name
    }
    found = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert int(found.stdout) == expected


@pytest.mark.parametrize("count", [0, -1, 1.5, "2", True])
def test_threads_that_cannot_be(count):
    from firesteel.model.tokenizer import set_threads

    with pytest.raises(RequestError, match="threads is"):
        set_threads(count)
