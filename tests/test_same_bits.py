"""The same row gives the same bits: alone, in any batch and order, with any threads, split into any calls."""

import os

import firesteel
import numpy as np
import pytest
import tiny
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

# 1 to 64 tokens: below, at and beyond every width a kernel may work in
LENGTHS = (1, 1, 2, 3, 4, 5, 6, 7, 8, 9, 11, 12, 13, 15, 16, 17, 23, 24, 25, 31, 32, 33, 40, 47, 48, 49, 61, 63, 64, 64)
ROWS = tiny.rows(11, LENGTHS)
SHAPES = {
    "plain": {},
    "odd": {"hidden": 36, "heads": 3, "inner": 100, "layers": 3},
    "one-head": {"hidden": 20, "heads": 1, "inner": 28, "layers": 1, "act": "gelu_new"},
    "wide": {"hidden": 264, "heads": 12, "inner": 700, "layers": 1},
}
PROPERTY = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


class Pair:
    """One model opened with one thread and with two, and the bits of each row computed alone with one."""

    def __init__(self, folder, rows=None):
        self.engines = {threads: firesteel.Engine(folder, threads=threads) for threads in (1, 2)}
        self.rows = rows
        self.vectors = np.concatenate([self.engines[1].embed([row]) for row in rows])
        if not isinstance(rows[0], str):
            self.states = [self.engines[1].hidden_states([row])[0] for row in rows]

    def close(self):
        for engine in self.engines.values():
            engine.close()


def pair_of(folder, rows):
    pair = Pair(folder, rows)
    yield pair
    pair.close()


@pytest.fixture(scope="module", params=SHAPES)
def pair(request, tmp_path_factory):
    folder = tiny.write(tmp_path_factory.mktemp("bits") / "model", seed=9, **SHAPES[request.param])
    yield from pair_of(folder, ROWS)


def same(found, expected):
    assert found.shape == expected.shape
    different = np.flatnonzero((found.view(np.uint32) != expected.view(np.uint32)).any(axis=-1))
    assert not len(different), f"rows {different[:10].tolist()} have other bits"


batches = st.lists(st.integers(0, len(ROWS) - 1), min_size=1, max_size=120)
cuts = st.lists(st.integers(0, 120), max_size=6)


@PROPERTY
@given(order=batches, cut=cuts, threads=st.sampled_from([1, 2]))
def test_vectors_do_not_depend_on_the_batch(pair, order, cut, threads):
    ends = [*sorted(min(at, len(order)) for at in cut), len(order)]
    begins = [0, *ends]
    pending = [
        pair.engines[threads].start_embed([ROWS[i] for i in order[begin:end]])
        for begin, end in zip(begins, ends, strict=False)
    ]
    found = np.concatenate([each.result()[0] for each in pending])
    same(found, pair.vectors[order])


@PROPERTY
@given(order=batches, threads=st.sampled_from([1, 2]))
def test_hidden_states_do_not_depend_on_the_batch(pair, order, threads):
    for found, row in zip(pair.engines[threads].hidden_states([ROWS[i] for i in order]), order, strict=True):
        same(found, pair.states[row])


def test_more_rows_than_one_batch_of_the_engine_holds(pair):
    """All different, because equal rows are computed once; with the known rows among them."""
    rows = tiny.rows(13, tuple(np.random.RandomState(3).randint(1, 65, 600))) + ROWS
    alone = np.concatenate([pair.engines[1].embed([row]) for row in rows])
    same(alone[600:], pair.vectors)
    for engine in pair.engines.values():
        before = engine.stats()["batches"]
        same(engine.embed(rows), alone)
        assert engine.stats()["batches"] - before >= 5


def test_rows_that_fail_leave_the_others_alone(pair):
    rows = [row for good in ROWS for row in (good, [10**6], None)]
    for engine in pair.engines.values():
        found, errors = engine.start_embed(rows).result()
        assert len(errors) == len(ROWS)
        same(found[::3], pair.vectors)


@pytest.mark.parametrize("path", ["portable", "avx2", "avx512"])
def test_each_kernel_path_keeps_its_bits(path, tmp_path):
    folder = tiny.write(tmp_path / "model", seed=9, **SHAPES["odd"])
    if why := dict(firesteel._core.host()["paths"]).get(path, "not compiled for this architecture"):
        pytest.skip(why)  # the CPU lacks it; any other failure to open is a failure of the test
    engine = firesteel.Engine(folder, threads=2, cpu_path=path)
    with engine:
        alone = np.concatenate([engine.embed([row]) for row in ROWS])
        same(engine.embed(ROWS[::-1])[::-1].copy(), alone)


TEXTS = [
    "",
    "a",
    "parses a date string",
    "Returns the current timestamp at the start of query evaluation.",
    *(f"{number} " * number for number in range(1, 90, 4)),
    "word " * 400,
]


@pytest.fixture(scope="module")
def real(minilm):
    yield from pair_of(minilm, TEXTS)


@settings(PROPERTY, max_examples=8)
@given(order=st.lists(st.integers(0, len(TEXTS) - 1), min_size=1, max_size=12), threads=st.sampled_from([1, 2]))
def test_minilm(real, order, threads):
    same(real.engines[threads].embed([TEXTS[i] for i in order]), real.vectors[order])


def test_another_process_has_the_same_bits(tmp_path):
    """Nothing of a process (addresses, hash seeds, what ran before) is part of the answer."""
    import subprocess
    import sys

    folder = tiny.write(tmp_path / "model", **SHAPES["odd"])
    code = """
import sys, numpy, firesteel
rows = numpy.load(sys.argv[2], allow_pickle=True)
sys.stdout.buffer.write(firesteel.Engine(sys.argv[1]).embed(rows).tobytes())
"""
    np.save(tmp_path / "rows.npy", np.array(ROWS, dtype=object), allow_pickle=True)
    command = [sys.executable, "-c", code, str(folder), str(tmp_path / "rows.npy")]
    seeds = [{**os.environ, "PYTHONHASHSEED": seed} for seed in ("1", "2")]
    first, second = (subprocess.run(command, env=env, capture_output=True, check=True).stdout for env in seeds)
    assert len(first) == 4 * 36 * len(ROWS) and first == second
