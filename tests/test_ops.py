"""Every op on every backend against NumPy in float64, and "same row, same bits".

The op table test walks the struct fs_ops in csrc/backends/ops.h: an op without a line in CASES fails. Ops are called
through tests/c/ops_shim.c, which the fixture builds with csrc/base and csrc/backends. The measure backend computes
nothing, so of it only the trace is looked at.
"""

from __future__ import annotations

import ctypes as C
import inspect
import math
import threading

import numpy as np
import pytest
from ops_kit import (
    ACT,
    ACTIVATIONS,
    BF16,
    F16,
    F32,
    MATRIX,
    OPS,
    POOLINGS,
    TABLE,
    VECTOR,
    Device,
    Gather,
    Mask,
    Memory,
    ShimError,
    View,
    WeightDesc,
    check,
    d,
    i64,
    np_attention,
    np_epilogue,
    np_norm,
    np_pool,
    parts,
    random,
    rounded,
    same,
    voidp,
)

# The cases: op -> list of (name, function of a device) ---------------------------------------------------------------


def matmul_case(T, N, K, act="none", bias=True, residual=False, inside=False, strides=(0, 0), offset=0):
    def run(dev):
        x, w = random(T, K), random(N, K, seed=1)
        b = random(N, seed=2) if bias else None
        r = random(T, N, seed=3) if residual else None
        got = dev.matmul(x, w, b, act, r, inside, strides, offset)
        size = np.linalg.norm(d(x), axis=1)[:, None] * np.linalg.norm(d(w), axis=1)
        check(got, np_epilogue(d(x) @ d(w).T, b, act, r), 1 + size, 6e-7)

    return run


def relative_bias(heads, reach, buckets=9, first=1):
    """A table of more heads than are read, and buckets without an order."""
    bucket = np.random.RandomState(5).randint(0, buckets, (2, reach + 1)).astype(np.uint8)
    return random(buckets, heads + first + 1, seed=7), bucket, first


def attention_case(
    heads, E, lengths, strided=False, padded=0, scale=None, big=1.0, causal=False, keys=None, reach=None
):
    relative = None if reach is None else relative_bias(heads, reach)

    def run(dev):
        q, k, v = (random(sum(lengths if i == 0 or keys is None else keys), heads * E, seed=i) for i in range(3))
        s = 1 / math.sqrt(E) if scale is None else scale
        # a rounding of a score is a relative error of its weight; scores are about `spread`
        spread = abs(s * big) * math.sqrt(E)
        check(
            dev.attention(q * np.float32(big), k, v, heads, lengths, s, strided, padded, causal, keys, relative),
            np_attention(q * np.float32(big), k, v, heads, lengths, s, causal, keys, relative),
            1.0,
            2e-6 * max(1, spread),
        )

    return run


def gather_case(T, D, tables, norm, stride=0, offset=0):
    def run(dev):
        t = [random(7 + i, D, seed=i) for i in range(tables)]
        # the last table's row 0 goes to every token
        index = [np.arange(T, dtype=np.int32) * 3 % (7 + i) for i in range(tables)]
        index = [*index[:-1], None] if tables > 1 else index
        expected = sum(d(a)[i] if i is not None else d(a)[:1] for a, i in zip(t, index, strict=True)) + np.zeros((T, 1))
        ln = (random(D, seed=8), random(D, seed=9), 1e-12) if norm else None
        if norm:
            expected = np_norm(expected, *ln)
        # the deviation of a row of one number is nothing but rounding: 0, when there is one table
        check(dev.gather(t, index, ln, T, stride, offset), expected, 4.0)

    return run


def norm_case(T, D, inside=False, stride=0, offset=0, shift=0.0):
    def run(dev):
        x, g, b = random(T, D) + np.float32(shift), random(D, seed=1), random(D, seed=2)
        check(
            dev.layer_norm(x, g, b, 1e-5, inside, stride, offset), np_norm(x, g, b, 1e-5), 2.0, 1e-6 * (1 + abs(shift))
        )

    return run


def pool_case(D, lengths, kind, padded=0, stride=0, offset=0):
    def run(dev):
        x = random(sum(lengths), D)
        check(dev.pool(x, lengths, kind, padded, stride, offset), np_pool(x, [*lengths, *[0] * padded], kind), 1.0)

    return run


def normalize_case(B, D, stride=0, offset=0):
    def run(dev):
        x = random(B, D)
        x[B // 2 :: 3] = 0  # stays 0
        x[0, 0] = 1e-9
        expected = d(x) / np.maximum(np.linalg.norm(d(x), axis=1, keepdims=True), 1e-12)
        check(dev.l2_normalize(x, stride, offset), expected, 0.1)

    return run


def add_case(T, D, act="none", bias=True, residual=True, inside=False, stride=0, offset=0):
    def run(dev):
        x, b = random(T, D), random(D, seed=1) if bias else None
        r = random(T, D, seed=2) if residual else None
        check(dev.add(x, b, act, r, inside, stride, offset), np_epilogue(d(x), b, act, r), 1.0)

    return run


def reduce_case(T, D):
    """Two ranks, each from its own thread; see also tests/c for what a missing rank does."""

    def run(dev):
        dev.call("all_reduce", dev.view(random(T, D)))  # a group of one: nothing happens
        ranks = [Device(dev.lib, dev.backend, dev.path, 1, i if dev.backend == "cuda" else 0) for i in range(2)]
        comm, parts = voidp(), [random(T, D, seed=i) for i in range(2)]
        handles = (voidp * 2)(*[r.handle for r in ranks])
        try:
            dev.call("comm", handles, 2, C.c_double(60), C.byref(comm), bare=True)
            views = [r.view(p) for r, p in zip(ranks, parts, strict=True)]
            failures = []

            def work(rank):
                try:
                    ranks[rank].call("all_reduce", views[rank])
                except ShimError as e:
                    failures.append(e)

            threads = [threading.Thread(target=work, args=(i,)) for i in range(2)]
            for t in threads:
                t.start()
            for t in threads:
                t.join()
            assert not failures
            dev.trace += ranks[0].lib.shim_trace(ranks[0].handle).decode()
            for r, v in zip(ranks, views, strict=True):
                if r.backend != "measure":
                    same(r.read(v), parts[0] + parts[1])
        finally:
            if comm:
                dev.lib.shim_comm_close(ranks[0].handle, comm)
            for r in ranks:
                r.close()

    return run


TS = [1, 2, 5, 6, 7, 13, 14, 15, 97, 300]
WIDTHS = [1, 3, 16, 17, 33, 64, 65, 127, 128, 200, 384]
QUERIES, KEYS = [3, 40, 1, 0, 130, 65, 7, 2], [5, 257, 1, 9, 64, 0, 300, 33]  # of one batch, for cross-attention
LENGTHS = [[1], [0], [], [2, 1, 5], [16, 17, 15], [40, 0, 1, 64, 65, 7], [97, 30], [300], [127, 257], [0, 0, 31, 0]]

CASES = {
    "matmul": [
        *[matmul_case(T, 80, 70) for T in TS],
        *[matmul_case(T, N, 40, "gelu") for T in (1, 2, 3, 7, 29) for N in (1, 15, 16, 17, 31, 33, 63, 65, 130)],
        *[matmul_case(T, 37, K) for T in (1, 3, 13, 97) for K in (1, 2, 383, 384, 385, 1000, 1153)],
        *[matmul_case(T, N, K, act, bias, True, inside) for T, N, K in ((7, 33, 20), (15, 64, 900))
          for act in ACTIVATIONS for bias in (False, True) for inside in (False, True)],
        *[matmul_case(T, 45, 1024, "none", True, True, inside, (1030, 64), 3) for T in (1, 97)
          for inside in (False, True)],
        *[matmul_case(T, 150, 1024) for T in (1, 7, 60)],  # rows that alias in L1 are copied
        *[matmul_case(T, 384, 384, "gelu", True, True, True) for T in (1, 97, 300)],
        matmul_case(64, 96, 2048), matmul_case(300, 1, 1), matmul_case(300, 1152, 64), matmul_case(0, 20, 20),
    ],
    "attention": [
        *[attention_case(2, E, lengths) for E in (1, 12, 16, 32, 33, 64) for lengths in LENGTHS],
        *[attention_case(h, E, [5, 40, 129], True) for h, E in ((1, 256), (3, 100), (12, 32), (4, 48), (5, 17))],
        attention_case(2, 32, [3, 9], True, padded=5), attention_case(1, 32, [1000, 3]),
        attention_case(2, 8, [700], True),
        *[attention_case(2, E, [1, 40, 129, 0, 300], E > 32, E % 2, reach=128) for E in (8, 17, 32, 64, 100, 128)],
        *[attention_case(3, 32, [5, 70, 2], reach=reach) for reach in (1, 7, 64)],
        attention_case(1, 32, [700], True, reach=128), attention_case(2, 16, [600, 3], scale=2.0, reach=30),
        attention_case(2, 32, [150, 20], scale=-0.5), attention_case(2, 32, [150, 20], scale=0.0),
        attention_case(2, 32, [150, 140, 20], big=30.0),
        *[attention_case(2, E, lengths, causal=True) for E in (8, 33, 64) for lengths in LENGTHS],
        *[attention_case(h, E, [5, 40, 129, 1, 300], True, 2, causal=True) for h, E in ((3, 32), (2, 100), (1, 128))],
        attention_case(2, 32, [150, 140, 20], big=30.0, causal=True), attention_case(1, 16, [600], causal=True),
        *[attention_case(2, E, QUERIES, E % 3 == 0, E % 2, keys=KEYS) for E in (8, 17, 32, 33, 64, 100, 128)],
        *[attention_case(2, E, KEYS, True, keys=QUERIES) for E in (8, 64, 128)],
        attention_case(3, 32, [2, 5], keys=[0, 0]), attention_case(3, 32, [0], keys=[4]),
        attention_case(1, 256, [3, 40], True, keys=[64, 257]), attention_case(1, 32, [700], True, 3, keys=[600]),
    ],
    "gather": [*[gather_case(T, D, n, False) for T in (0, 1, 7, 97) for D in (1, 33, 384) for n in (1, 3, 4)],
               gather_case(9, 20, 2, False, 31, 5)],
    "gather_norm": [*[gather_case(T, D, n, True) for T in (0, 1, 7, 300) for D in (2, 33, 384) for n in (1, 3, 4)],
                    gather_case(9, 20, 2, True, 31, 5)],
    "layer_norm": [*[norm_case(T, D, inside) for T in (0, 1, 7) for D in WIDTHS for inside in (False, True)],
                   *[norm_case(T, 384) for T in TS], norm_case(9, 70, True, 90, 3), norm_case(9, 100, shift=10.0)],
    "pool": [*[pool_case(D, lengths, kind, padded) for D in (1, 33, 384) for lengths in LENGTHS[:7] for kind in POOLINGS
               for padded in (0, 3)],
             *[pool_case(50, [300, 2], kind, 0, 70, 5) for kind in POOLINGS]],
    "l2_normalize": [*[normalize_case(B, D) for B in (1, 2, 9) for D in WIDTHS], normalize_case(5, 40, 50, 7)],
    "add": [*[add_case(T, D, act, bias, residual, inside) for T, D in ((0, 5), (3, 1), (7, 33), (97, 384))
              for act in ACTIVATIONS
              for bias, residual, inside in ((True, True, False), (False, True, True), (True, False, True))],
            add_case(4, 20, stride=30, offset=3)],
    "all_reduce": [reduce_case(5, 33)],
}  # fmt: skip

BACKENDS = [("cpu", "avx512"), ("cpu", "avx2"), ("cpu", "portable"), ("cpu", "avx512-tiles")]
BACKENDS += [("measure", ""), ("cuda", "")]


def test_all_ops_have_cases(shim):
    assert len(OPS) == shim.shim_op_count(), "the walk over ops.h misses an op"
    assert sorted(CASES) == sorted(OPS)
    assert sorted(ACT) == sorted(ACTIVATIONS)


def runs_here(shim, path: str) -> str:
    """Why the path cannot run on this machine, or ""."""
    path = "avx2" if path == "avx512-tiles" else path
    missing, i = C.c_char_p(), 0
    while (name := shim.shim_path(i, C.byref(missing))) is not None:
        if name.decode() == path:
            return (missing.value or b"").decode()
        i += 1
    return f"not compiled for this machine: {path}"


@pytest.fixture(params=BACKENDS, ids="-".join)
def device(request, shim, monkeypatch):
    backend, path = request.param
    if backend == "cuda":
        request.getfixturevalue("software_gpu")
    if backend == "cpu" and (why := runs_here(shim, path)):
        pytest.skip(why)
    monkeypatch.setenv("FIRESTEEL_TEST_POISON", "1")
    dev = Device(shim, backend, path, 2)
    dev.path, dev.trace = path, ""
    yield dev
    dev.close()


def too_wide(device, case) -> bool:
    """The CUDA kernels take heads of up to 128 numbers."""
    return device.backend == "cuda" and inspect.getclosurevars(case).nonlocals.get("E", 0) > 128


@pytest.mark.parametrize("op", OPS)
def test_op_agrees_with_numpy(device, op, monkeypatch):
    if device.backend == "measure":
        monkeypatch.setitem(globals(), "check", lambda *a, **k: None)
    for i, case in enumerate(CASES[op]):
        try:
            if too_wide(device, case):
                with pytest.raises(ShimError, match="wider than the 128"):
                    case(device)
                continue
            case(device)
        except AssertionError as e:
            arguments = {k: v.cell_contents for k, v in zip(case.__code__.co_freevars, case.__closure__, strict=True)}
            raise AssertionError(f"{op}, case {i} {arguments}: {e}") from None
        device.free()
    if device.backend == "measure":
        trace = device.trace + device.lib.shim_trace(device.handle).decode()
        assert trace.count(f"{op} ") >= len(CASES[op]), "the measure backend left ops out of its trace"


# Same row, same bits -------------------------------------------------------------------------------------------------


@pytest.fixture(params=["avx512", "avx2", "portable", "avx512-tiles", "cuda"])
def pair(request, shim):
    """The same path with one thread and with three; two GPUs."""
    if request.param == "cuda":
        request.getfixturevalue("software_gpu")
        devices = [Device(shim, "cuda", index=i) for i in range(2)]
    elif why := runs_here(shim, request.param):
        pytest.skip(why)
    else:
        devices = [Device(shim, "cpu", request.param, n) for n in (1, 3)]
    yield devices
    for dev in devices:
        dev.close()


@pytest.mark.parametrize("N, K", [(70, 50), (33, 385), (384, 384), (48, 1000)])
def test_matmul_gives_a_row_the_same_bits(pair, N, K):
    one, three = pair
    x, w, bias, r = random(300, K), random(N, K, seed=1), random(N, seed=2), random(300, N, seed=3)
    held = [dev.weight(w, MATRIX) for dev in pair]
    whole = one.matmul(x, held[0], bias, "gelu", r)
    same(three.matmul(x, held[1], bias, "gelu", r), whole, "threads")
    order = np.random.default_rng(0).permutation(300)
    same(three.matmul(x[order], held[1], bias, "gelu", r[order]), whole[order], "order")
    same(one.matmul(x, held[0], bias, "gelu", r, inside=True), whole, "residual in y")
    same(one.matmul(x, held[0], bias, "gelu", r, strides=(K + 7, N + 3), offset=2), whole, "strides")
    for M in [*range(1, 65), 97, 150, 299]:
        dev, w_held = (one, held[0]) if M % 2 else (three, held[1])
        same(dev.matmul(x[5 : 5 + M], w_held, bias, "gelu", r[5 : 5 + M]), whole[5 : 5 + M], f"{M} rows")
        if M % 16 == 0:
            del dev.kept[2:]


@pytest.mark.parametrize("heads, E", [(2, 32), (3, 12), (1, 64), (2, 33)])
def test_attention_gives_a_sequence_the_same_bits(pair, heads, E):
    one, three = pair
    lengths = [1, 64, 40, 3, 128, 130, 17, 300, 63, 5, 257]
    q, k, v = (random(sum(lengths), heads * E, seed=i) for i in range(3))
    whole = one.attention(q, k, v, heads, lengths, 0.2)
    same(three.attention(q, k, v, heads, lengths, 0.2), whole, "threads")
    same(three.attention(q, k, v, heads, lengths, 0.2, True, 4), whole, "strides, more offsets")
    for p, n in zip(parts(lengths), lengths, strict=True):
        same(three.attention(q[p], k[p], v[p], heads, [n], 0.2), whole[p], f"{n} tokens alone")
    order = np.random.default_rng(1).permutation(len(lengths))
    rows = np.concatenate([np.arange(sum(lengths))[parts(lengths)[i]] for i in order])
    same(three.attention(q[rows], k[rows], v[rows], heads, [lengths[i] for i in order], 0.2), whole[rows], "order")


@pytest.mark.parametrize("heads, E", [(2, 32), (3, 8), (1, 64), (1, 72), (2, 33)])
def test_a_causal_row_has_the_bits_of_a_sequence_that_ends_there(pair, heads, E):
    """Whatever comes after it, even NaN."""
    one, three = pair
    lengths = [7, 1, 300, 64, 520]
    q, k, v = (random(sum(lengths), heads * E, seed=i) for i in range(3))
    whole = one.attention(q, k, v, heads, lengths, 0.2, causal=True)
    same(three.attention(q, k, v, heads, lengths, 0.2, True, 4, True), whole, "threads, strides, more offsets")
    for p, n in zip(parts(lengths), lengths, strict=True):
        edges = {i + off for i in (16, 32, 64, 128, 256, 384, 512) for off in (-1, 0, 1)} if n == 520 else set()
        for end in sorted({*range(1, 10), 299, 400, n} & {*range(1, n + 1)} | edges):
            here = slice(p.start, p.start + end)
            again = three.attention(q[here], k[here], v[here], heads, [end], 0.2, causal=True)
            same(again, whole[here], f"the first {end} of {n} tokens")
            plain = one.attention(q[here], k[here], v[here], heads, [end], 0.2)
            same(plain[-1:], whole[here][-1:], f"token {end} of {n}, seeing all of what it may see")
        one.free(), three.free()
    for seen in (1, 13, 100, 257, 519):
        hidden = [a[-520:].copy() for a in (q, k, v)]
        for a in hidden:
            a[seen:] = np.nan
        found = three.attention(*hidden, heads, [520], 0.2, causal=True)
        same(found[:seen], whole[-520:][:seen], f"NaN after {seen} tokens")
        assert np.isnan(found[seen:]).all()


@pytest.mark.parametrize("heads, E", [(2, 32), (3, 8), (1, 64), (1, 72), (2, 33)])
def test_attention_to_other_rows_gives_a_sequence_the_same_bits(pair, heads, E):
    one, three = pair
    q, k, v = (random(sum(QUERIES if i == 0 else KEYS), heads * E, seed=i) for i in range(3))
    whole = one.attention(q, k, v, heads, QUERIES, 0.2, keys=KEYS)
    same(three.attention(q, k, v, heads, QUERIES, 0.2, True, 4, keys=KEYS), whole, "threads, strides, more offsets")
    for p, o in zip(parts(QUERIES), parts(KEYS), strict=True):
        n, m = p.stop - p.start, o.stop - o.start
        same(three.attention(q[p], k[o], v[o], heads, [n], 0.2, keys=[m]), whole[p], f"{n} tokens, {m} keys alone")
        for row in range(p.start, p.stop, 31):
            found = one.attention(q[row : row + 1], k[o], v[o], heads, [1], 0.2, keys=[m])
            same(found, whole[row : row + 1], f"row {row} alone")
    assert (whole[parts(QUERIES)[KEYS.index(0)]] == 0).all()
    order = np.random.default_rng(1).permutation(len(QUERIES))
    rows, others = (np.concatenate([np.arange(sum(n))[parts(n)[i]] for i in order]) for n in (QUERIES, KEYS))
    lengths = [[n[i] for i in order] for n in (QUERIES, KEYS)]
    turned = three.attention(q[rows], k[others], v[others], heads, lengths[0], 0.2, keys=lengths[1])
    same(turned, whole[rows], "order")
    own = k[: sum(QUERIES)]
    plain = one.attention(q, own, own, heads, QUERIES, 0.2)
    same(one.attention(q, own, own, heads, QUERIES, 0.2, keys=QUERIES), plain, "its own rows by another name")


def test_rows_get_the_same_bits(pair):
    """Norms, gathers and pools: alone, in a batch, with threads."""
    one, three = pair
    x, g, b = random(1000, 385), random(385, seed=1), random(385, seed=2)
    whole = one.layer_norm(x, g, b, 1e-5)
    same(three.layer_norm(x, g, b, 1e-5), whole)
    same(one.layer_norm(x[500:501], g, b, 1e-5, stride=400, offset=9), whole[500:501])
    same(three.add(x, b, "gelu", x[::-1].copy()), one.add(x, b, "gelu", x[::-1].copy()))
    lengths = [3, 40, 200, 0, 256, 500, 1]
    ends = np.cumsum(lengths)
    for kind in POOLINGS:
        pooled = one.pool(x, lengths, kind)
        same(three.pool(x, lengths, kind), pooled)
        for e, n, row in zip(ends, lengths, pooled, strict=True):
            same(three.pool(x[e - n : e], [n], kind)[0], row)
    same(one.l2_normalize(x[7:8]), three.l2_normalize(x)[7:8])


def test_avx512_tiles_and_avx2_give_the_same_bits(shim):
    """The tiles of AVX-512 over AVX2's registers; on a machine that has it, AVX-512 itself too."""
    if why := runs_here(shim, "avx2"):
        pytest.skip(why)
    others = ["avx512-tiles"] + ([] if runs_here(shim, "avx512") else ["avx512"])
    devices = [Device(shim, "cpu", path, 1) for path in ("avx2", *others)]
    lengths = [1, 15, 40, 129, 300]
    x, w = random(97, 1000) / 8, random(77, 1000, seed=1)
    q = random(sum(lengths), 66, seed=2)
    results = [
        [
            *[dev.matmul(x[:T], w, w[:, 0], act) for T in (1, 2, 3, 5, 8, 14, 15, 29, 97) for act in ACTIVATIONS],
            dev.attention(q, q * 2, q[::-1].copy(), 2, lengths, 0.3),
            dev.attention(q, q * 2, q[::-1].copy(), 2, lengths, 0.3, causal=True),
            dev.attention(q, q[:99] * 2, q[:99], 2, lengths, 0.3, keys=[40, 0, 1, 50, 8]),
            dev.layer_norm(x, x[0], x[1], 1e-5),
            dev.l2_normalize(x),
            *[dev.pool(q, lengths, kind) for kind in POOLINGS],
        ]
        for dev in devices
    ]
    for other, result in zip(others, results[1:], strict=True):
        for i, (a, b) in enumerate(zip(results[0], result, strict=True)):
            same(a, b, f"avx2 against {other}, result {i}")
    for dev in devices:
        dev.close()


@pytest.mark.parametrize("act", ["none", "gelu"])
@pytest.mark.parametrize("dtype", [F16, BF16])
@pytest.mark.parametrize("N, K", [(64, 64), (70, 50), (33, 385), (130, 96)])
def test_products_in_16_bits(shim, software_gpu, dtype, N, K, act):
    """Weights and what meets them are rounded once, sums are fp32; a row has the same bits in any batch."""
    dev = Device(shim, "cuda")
    x, w, bias, r = random(200, K), random(N, K, seed=1), random(N, seed=2), random(200, N, seed=3)
    held = dev.weight(w, MATRIX, held_in=dtype)
    whole = dev.matmul(x, held, bias, act, r)
    a, b = rounded(x, dtype), rounded(w, dtype)
    size = np.linalg.norm(a, axis=1)[:, None] * np.linalg.norm(b, axis=1)
    check(whole, np_epilogue(a @ b.T, bias, act, r), 1 + size, 1e-6)
    for first, last in ((0, 1), (5, 6), (64, 128), (63, 130), (199, 200)):
        same(dev.matmul(x[first:last], held, bias, act, r[first:last]), whole[first:last], f"rows {first} to {last}")
    dev.close()


@pytest.mark.parametrize("dtype", [F32, F16, BF16])
def test_gpu_products_give_a_row_the_same_bits_among_any_number(shim, software_gpu, dtype):
    """The last rows of 512: each count puts them at other places of the tiles."""
    dev = Device(shim, "cuda")
    x, w, bias = random(512, 37), random(9, 37, seed=1), random(9, seed=2)
    held = dev.weight(w, MATRIX, held_in=dtype)
    whole = dev.matmul(x, held, bias, "gelu")
    for T in range(1, 513):
        same(dev.matmul(x[512 - T :], held, bias, "gelu"), whole[512 - T :], f"{T} rows")
    dev.close()


# What is written in 16 bits is off by half a unit of its last place: of 11 digits, or of 8.
UNIT = {F16: 2.0**-11, BF16: 2.0**-8}


@pytest.fixture
def gpu(shim, software_gpu, monkeypatch):
    monkeypatch.setenv("FIRESTEEL_TEST_POISON", "1")
    dev = Device(shim, "cuda")
    yield dev
    dev.close()


@pytest.mark.parametrize("dtype", [F16, BF16])
@pytest.mark.parametrize("N, K, stride", [(72, 64, 0), (33, 50, 0), (130, 200, 216), (64, 40, 3)])
def test_products_of_narrow_rows(gpu, dtype, N, K, stride):
    """x and y in the type of the weight: the sums of the rounded numbers, rounded once; with an fp32 residual."""
    T = 131
    x, w, bias, r = random(T, K), random(N, K, seed=1), random(N, seed=2), random(T, N, seed=3)
    held = gpu.weight(w, MATRIX, held_in=dtype)
    xv = gpu.view(x, stride and K + stride, dtype=dtype)
    exact = rounded(x, dtype) @ rounded(w, dtype).T + d(bias)
    size = 1 + np.linalg.norm(x, axis=1)[:, None] * np.linalg.norm(w, axis=1)
    y, e = gpu.view(np.full((T, N), np.nan), dtype=dtype), gpu.epilogue(bias, "gelu", None)
    gpu.call("matmul", y, xv, C.byref(held), C.byref(e))
    check(gpu.read(y), ACT["gelu"](exact), size, 1.01 * UNIT[dtype])
    whole, e = gpu.view(np.full((T, N), np.nan)), gpu.epilogue(bias, "none", gpu.view(r))
    gpu.call("matmul", whole, xv, C.byref(held), C.byref(e))
    check(gpu.read(whole), exact + d(r), size, 1e-6)
    one = View(xv.at + 2 * 77 * xv.stride, dtype, 1, K, xv.stride)
    alone = gpu.view(np.full((1, N), np.nan), dtype=dtype)
    gpu.call("matmul", alone, one, C.byref(held), C.byref(gpu.epilogue(bias, "gelu", None)))
    same(gpu.read(alone), gpu.read(y)[77:78], "a row alone")


@pytest.mark.parametrize("dtype", [F16, BF16])
@pytest.mark.parametrize("D, stride", [(64, 0), (33, 40), (384, 0), (2100, 0)])
def test_norms_and_sums_that_are_written_narrow(gpu, dtype, D, stride):
    """A norm's copy is its result, rounded; `add` rounds what it is given."""
    x, gamma, beta = random(131, D), random(D, seed=1), random(D, seed=2)
    y, copy = gpu.view(np.full_like(x, np.nan)), gpu.view(np.full_like(x, np.nan), stride, dtype=dtype)
    gpu.call("layer_norm", y, gpu.view(x), C.byref(gpu.norm(gamma, beta, 1e-5, copy)))
    check(gpu.read(y), np_norm(x, gamma, beta, 1e-5), 2.0)
    same(gpu.read(copy), rounded(gpu.read(y), dtype).astype(np.float32))
    table = gpu.weight(x, TABLE)
    row = Gather(C.pointer(table), gpu.array(np.arange(131, dtype=np.int32)))
    again, first = gpu.view(np.full_like(x, np.nan), dtype=dtype), gpu.view(np.full_like(x, np.nan))
    gpu.call("gather_norm", first, C.byref(row), 1, C.byref(gpu.norm(gamma, beta, 1e-5, again)))
    same(gpu.read(first), gpu.read(y)), same(gpu.read(again), gpu.read(copy))
    gpu.call("add", again, gpu.view(x), C.byref(gpu.epilogue(None, "none", None)))
    same(gpu.read(again), rounded(x, dtype).astype(np.float32))


@pytest.mark.parametrize("dtype", [F16, BF16])
@pytest.mark.parametrize("heads, E", [(3, 16), (2, 33), (1, 64), (1, 100)])
def test_attention_of_narrow_rows(gpu, dtype, heads, E):
    lengths = [1, 70, 3, 130]
    q, k, v = (random(sum(lengths), heads * E, seed=i) for i in range(3))
    gpu.rows(lengths)
    y = gpu.view(np.full_like(q, np.nan), dtype=dtype)
    fused = gpu.view(np.concatenate([q, k, v], 1), dtype=dtype)
    parts = [View(fused.at + 2 * i * heads * E, dtype, *q.shape, fused.stride) for i in range(3)]
    gpu.call("attention", y, *parts, heads, C.byref(Mask(0.2, False, None)))
    expected = np_attention(*[rounded(a, dtype) for a in (q, k, v)], heads, lengths, 0.2)
    check(gpu.read(y), expected, 1.0, 1.05 * UNIT[dtype])


def test_types_that_do_not_go_together_are_refused(gpu, shim):
    x = gpu.view(random(4, 16), dtype=F16)
    wide, wrong = gpu.view(random(4, 16)), gpu.view(random(4, 16), dtype=BF16)
    held = gpu.weight(random(16, 16), MATRIX, held_in=F16)
    with pytest.raises(ShimError, match="types that do not go together"):
        gpu.call("matmul", wide, wrong, C.byref(held), C.byref(gpu.epilogue(None, "none", None)))
    with pytest.raises(ShimError, match="types that do not go together"):
        gpu.call("matmul", wide, x, C.byref(held), C.byref(gpu.epilogue(None, "none", wrong)))
    gpu.rows([4])
    with pytest.raises(ShimError, match="types that do not go together"):
        gpu.call("attention", wide, x, x, x, 2, C.byref(Mask(1.0, False, None)))
    with pytest.raises(ShimError, match="types that do not go together"):
        gpu.call(
            "layer_norm", wide, wide, C.byref(gpu.norm(random(16), random(16), 1e-5, gpu.view(random(4, 8), dtype=F16)))
        )
    cpu = Device(shim, "cpu")
    with pytest.raises(ShimError, match="types that do not go together"):
        cpu.call(
            "add",
            cpu.view(random(4, 16), dtype=F16),
            cpu.view(random(4, 16)),
            C.byref(cpu.epilogue(None, "none", None)),
        )
    cpu.close()


# Weights, accuracy, refusals -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", ["cpu", "cuda"])
@pytest.mark.parametrize("dtype", [F32, F16, BF16])
@pytest.mark.parametrize("N, K", [(1, 1), (33, 300), (80, 17)])
def test_weights_can_be_filled_from_any_file(shim, software_gpu, dtype, N, K, backend):
    """Types, pieces in any order, odd addresses: the same weight."""
    dev = Device(shim, backend, "", 1)
    w = random(N, K).astype(np.float16).astype(np.float32)
    if dtype == BF16:
        w = (w.view(np.uint32) & 0xFFFF0000).view(np.float32)
    x, table = random(5, K, seed=1), np.arange(N, dtype=np.int32)
    whole = dev.matmul(x, w)
    for piece, pad in ((1 << 30, 0), (1, 1), (5, 3), (17, 6)):
        same(dev.matmul(x, dev.weight(w, MATRIX, dtype, piece, pad)), whole, f"pieces of {piece}, {pad} bytes apart")
        t = dev.weight(w, TABLE, dtype, piece, pad)
        y = dev.view(np.zeros((N, K)))
        row = Gather(C.pointer(t), dev.array(table))
        dev.call("gather", y, C.byref(row), 1)
        same(dev.read(y), w)
    dev.close()


@pytest.mark.parametrize("backend", ["cpu", "cuda"])
def test_rows_longer_than_what_is_staged_at_once(shim, software_gpu, backend):
    dev = Device(shim, backend, "", 1)
    w = random(2, 1_100_000)
    t, y = dev.weight(w, TABLE, pad=2), dev.view(np.zeros_like(w))
    dev.call("gather", y, C.byref(Gather(C.pointer(t), dev.array(np.arange(2, dtype=np.int32)))), 1)
    same(dev.read(y), w)
    dev.close()


def test_activations_at_every_scale(shim):
    """gelu within 2e-7 of |x| (what torch keeps too); the others within 4e-7; nothing odd at the ends."""
    dev = Device(shim, "cpu", "", 1)
    x = np.concatenate([np.linspace(-12, 12, 200_001), 10.0 ** np.arange(-30, 30), -(10.0 ** np.arange(-30, 30))])
    x = x.astype(np.float32).reshape(1, -1)
    for act in ACTIVATIONS:
        got = dev.add(x, None, act)
        with np.errstate(over="ignore"):
            expected = ACT[act](np.clip(d(x), -700, None) if act == "silu" else d(x))
        expected = np.where(x < -100, 0 if act in ("silu", "gelu", "gelu_new", "relu") else expected, expected)
        check(got, expected, np.maximum(np.abs(d(x)), 1e-9), 2e-7 if act == "gelu" else 4e-7)
        assert np.isnan(dev.add(np.full((1, 17), np.nan, np.float32), None, act)).all(), act
    assert (dev.add(np.array([[-50.0, -1e30]], np.float32), None, "gelu") == 0).all()
    dev.close()


def test_what_does_not_fit_is_refused(shim):
    dev = Device(shim, "cpu", "", 1)
    x, w = random(3, 8), random(5, 8)
    with pytest.raises(ShimError, match=r"matmul of \[3, 7\] to \[3, 5\].* do not go together"):
        dev.matmul(x[:, :7], w)
    with pytest.raises(ShimError, match="do not go together"):
        dev.matmul(x, w, random(4))
    with pytest.raises(ShimError, match="do not go together"):
        dev.layer_norm(x, random(7), random(8), 1e-5)
    with pytest.raises(ShimError, match="do not go together"):
        dev.attention(x, x, x, 3, [3], 1.0)
    for keys, causal in (([2], False), ([4], False), ([1, 2], False), ([3], True)):  # rows, rows, sequences, both
        with pytest.raises(ShimError, match="do not go together"):
            dev.attention(x, x, x, 2, [3], 1.0, causal=causal, keys=keys)
    with pytest.raises(ShimError, match="heads of 300 numbers are wider than the 256"):
        dev.attention(*[random(3, 300)] * 3, 1, [3], 1.0)
    held = dev.weight(w, MATRIX)
    data = voidp(w.ctypes.data)
    with pytest.raises(ShimError, match=r"rows 3 \.\.\. 5 do not lie in a weight of \[5, 8\]"):
        dev.call("fill", C.byref(held), i64(3), i64(3), data, C.c_size_t(32), F32)
    with pytest.raises(ShimError, match="cannot be filled from int64"):
        dev.call("fill", C.byref(held), i64(0), i64(1), data, C.c_size_t(32), 4)
    desc, memory = WeightDesc(MATRIX, BF16, 5, 8), Memory()
    with pytest.raises(ShimError, match="cpu:0 does not compute in bf16; use dtype"):
        dev.call("weight", C.byref(desc), data, C.c_size_t(32), F32, i64(5), C.byref(held), C.byref(memory))
    dev.kept.append(memory)
    dev.close()


def test_paths_are_found_by_name(shim):
    assert shim.shim_path_find(b"") == 0 and shim.shim_path_find(None) == 0 and shim.shim_path_find(b"portable") == 0
    assert shim.shim_path_find(b"sse9") != 0
    assert shim.shim_error().decode() == (
        "there is no CPU path sse9; choose one of avx512, avx2, portable, or leave it empty for the best"
    )
    for path in ("avx512", "avx2"):
        if why := runs_here(shim, path):
            assert shim.shim_path_find(path.encode()) != 0
            assert shim.shim_error().decode() == (
                f"the CPU path {path} cannot run here: {why}; leave the path empty to get the best there is"
            )


def test_weight_bytes_are_multiples_of_64(shim):
    for path in ("avx2", "portable", "avx512-tiles"):
        if runs_here(shim, path):
            continue
        dev = Device(shim, "cpu", path, 1)
        for kind, N, K in ((MATRIX, 33, 7), (TABLE, 3, 5), (VECTOR, 1, 17)):
            desc = WeightDesc(kind, F32, N, K)
            size = shim.shim_weight_bytes(dev.handle, C.byref(desc))
            assert size % 64 == 0 and size >= 4 * N * K
        dev.close()
