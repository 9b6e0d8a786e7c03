"""Our numbers against files that make_golden.py wrote with transformers and sentence-transformers, in fp32."""

import json
from pathlib import Path

import firesteel
import numpy as np
import pytest
import tiny

GOLDEN = Path(__file__).parent / "golden"
LIMIT = 1e-5  # relative, by the norm of the row


@pytest.fixture(scope="module")
def engine(minilm):
    with firesteel.Engine(minilm) as opened:
        tiny.take_special_tokens(opened)
        yield opened


def test_minilm_embeddings(engine):
    """Empty texts, many scripts, special tokens in the text, and texts longer than the model takes."""
    texts = json.loads((GOLDEN / "minilm.json").read_text())
    expected = np.load(GOLDEN / "minilm.npz")["vectors"]
    found = engine.embed(texts)
    assert found.shape == expected.shape == (len(texts), 384)
    off = [tiny.error_per_row(found[row], expected[row]) for row in range(len(texts))]
    wrong = {texts[row][:40]: error for row, error in enumerate(off) if error > LIMIT}
    assert not wrong


def test_minilm_answers_questions(engine):
    functions = ["Converts a string column to a date.", "Rounds a number up.", "Joins arrays into one array."]
    found = engine.embed(["how do I parse a date string?"]) @ engine.embed(functions).T
    assert found.argmax() == 0 and found[0, 0] > 0.5


@pytest.mark.parametrize("case", tiny.GOLDEN)
def test_hidden_states_of_tiny_berts(case, tmp_path):
    rows = tiny.rows(7, tiny.GOLDEN_LENGTHS)
    with firesteel.Engine(tiny.write(tmp_path / case, **tiny.GOLDEN[case])) as engine:
        found = np.concatenate(engine.hidden_states(rows))
    assert tiny.error_per_row(found, np.load(GOLDEN / "tiny.npz")[case]) < LIMIT
