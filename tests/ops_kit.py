"""What tests of ops share: any backend's ops from arrays to arrays (tests/c/ops_shim.c), and the same in NumPy.

conftest.py has the fixtures: `shim`, the library, and `software_gpu`, the driver that its CUDA backend finds.
"""

from __future__ import annotations

import ctypes as C
import hashlib
import itertools
import math
import os
import platform
import re
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from softcuda.build import alone

ROOT = Path(__file__).resolve().parent.parent
OPS_H = (ROOT / "csrc/backends/ops.h").read_text()
OPS = re.findall(r"fs_status \(\*(\w+)\)", OPS_H[OPS_H.index("struct fs_ops {") :])
ACTIVATIONS = re.findall(r'X\(FS_ACT_\w+, "(\w+)"', OPS_H)
POOLINGS = re.findall(r'X\(FS_POOL_\w+, "(\w+)"', OPS_H)
F32, F16, BF16 = 0, 1, 2
MATRIX, TABLE, VECTOR = 0, 1, 2
SHIPPED = ROOT / "build/objects" / f"release-{platform.machine()}"
# As in setup.py: the bits under test are those of the shipped code.
CFLAGS = ["-std=gnu11", "-O3", "-ffp-contract=off", "-fPIC", "-fvisibility=hidden", "-pthread", "-w", f"-I{ROOT}/csrc"]

i64, voidp = C.c_int64, C.c_void_p


class View(C.Structure):
    _fields_ = [("at", voidp), ("dtype", C.c_int), ("rows", i64), ("cols", i64), ("stride", i64)]


class Memory(C.Structure):
    _fields_ = [("at", voidp), ("bytes", C.c_size_t), ("charge", C.c_int)]


class WeightDesc(C.Structure):
    _fields_ = [("kind", C.c_int), ("dtype", C.c_int), ("N", i64), ("K", i64), ("scheme", C.c_int), ("group", C.c_int)]


class Weight(C.Structure):
    _fields_ = [("desc", WeightDesc), ("at", voidp)]


class Rows(C.Structure):
    _fields_ = [
        *((name, voidp) for name in ("ids", "positions", "offsets")),
        *((name, i64) for name in ("T", "B", "longest")),
        *((name, voidp) for name in ("features", "types")),
    ]


REACH = 128


class Buckets(C.Structure):
    _fields_ = [("reach", C.c_int32), ("count", C.c_int32), ("bucket", C.c_uint8 * (REACH + 1) * 2)]


class Relative(C.Structure):
    _fields_ = [("table", C.POINTER(Weight)), ("buckets", C.POINTER(Buckets)), ("first", C.c_int)]


class Mask(C.Structure):
    _fields_ = [("scale", C.c_float), ("causal", C.c_int), ("keys", C.POINTER(Rows)), ("relative", Relative)]


class Gather(C.Structure):
    _fields_ = [("table", C.POINTER(Weight)), ("index", voidp)]


class Epilogue(C.Structure):
    _fields_ = [("bias", C.POINTER(Weight)), ("activation", C.c_int), ("residual", C.POINTER(View))]


class Norm(C.Structure):
    _fields_ = [
        ("gamma", C.POINTER(Weight)),
        ("beta", C.POINTER(Weight)),
        ("eps", C.c_float),
        ("copy", C.POINTER(View)),
    ]


def image_flags(folder: Path) -> list[str]:
    """The software device looks at no image, so empty ones stand for the compiled kernels."""
    names = re.findall(r'X\(\d+, \d, "([^"]+)"\)', (ROOT / "csrc/backends/cuda/images.c").read_text())
    assert names
    for name in names:
        (folder / name).touch()
    return [f'-DFS_CUDA_IMAGES="{folder}"']


def compiled(place: Path, images: list[str]) -> Path:
    """The library in a folder of `place` named after all that it is made of. What was made of other things goes.

    Objects of the shipped module are taken as they are, where it was built here since the last edit of its sources."""
    cc, used = os.environ.get("CC", "cc"), [ROOT / "tests/c/ops_shim.c", ROOT / "setup.py"]
    used += [path for room in ("base", "backends") for path in sorted((ROOT / "csrc" / room).rglob("*.*"))]
    sha = hashlib.sha256(repr((cc, CFLAGS, images)).encode())
    for path in used:
        sha.update(path.read_bytes())
    folder = place / f"shim-{sha.hexdigest()[:16]}"
    library = folder / "ops_shim.so"
    if library.exists():
        return library

    last_edit = max(path.stat().st_mtime for path in [*used, *(ROOT / "csrc").rglob("*.h")] if path.suffix != ".c")

    def build(source: Path) -> str:
        shipped = SHIPPED / source.relative_to(ROOT).with_suffix(".o")
        if cc == "cc" and source.name != "images.c" and shipped.with_suffix(".o.cmd").exists():
            if shipped.stat().st_mtime > max(last_edit, source.stat().st_mtime):
                return str(shipped)
        obj = folder / ("_".join(source.relative_to(ROOT).parts) + ".o")
        flags = [*CFLAGS, *images] if source.name == "images.c" else CFLAGS
        done = subprocess.run([cc, *flags, "-c", source, "-o", obj], capture_output=True, text=True)
        assert not done.returncode, f"{source} does not compile:\n{done.stderr[-4000:]}"
        return str(obj)

    for old in place.glob("shim-*"):
        shutil.rmtree(old)
    folder.mkdir()
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        objects = list(pool.map(build, [path for path in used if path.suffix == ".c"]))
    command = [cc, "-shared", *objects, "-o", folder / "linked", "-pthread", "-lm", "-ldl"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert not done.returncode, done.stderr[-4000:]
    return (folder / "linked").rename(library)


def build_shim(place: Path) -> C.CDLL:
    """tests/c/ops_shim.c with csrc/base and csrc/backends, as a library: made once of one content, whoever asks."""
    with alone(place):
        library = compiled(place, image_flags(place))
    lib = C.CDLL(str(library))
    for name in ("shim_error", "shim_path", "shim_trace", "shim_numerics"):
        getattr(lib, name).restype = C.c_char_p
    lib.shim_weight_bytes.restype = C.c_size_t
    return lib


class ShimError(Exception):
    pass


class Device:
    """One device of one backend; arrays go in and out as NumPy."""

    def __init__(self, lib: C.CDLL, backend: str, path: str = "", threads: int = 1, index: int = 0):
        self.lib, self.backend, self.kept = lib, backend, []
        self.handle = voidp()
        self.call("open", C.byref(self.handle), backend.encode(), path.encode(), threads, index, bare=True)

    def call(self, name: str, *args, bare: bool = False) -> None:
        status = getattr(self.lib, f"shim_{name}")(*args if bare else (self.handle, *args))
        if status:
            raise ShimError(self.lib.shim_error().decode())

    def close(self) -> None:
        self.free()
        self.lib.shim_close(self.handle)

    def free(self) -> None:
        for memory in self.kept:
            self.lib.shim_release(self.handle, C.byref(memory))
        self.kept = []

    def alloc(self, size: int) -> int:
        memory = Memory()
        self.call("alloc", C.c_size_t(max(size, 1)), C.byref(memory))
        self.kept.append(memory)
        return memory.at

    def array(self, a: np.ndarray) -> int:
        a = np.ascontiguousarray(a)
        at = self.alloc(a.nbytes)
        if a.nbytes:
            self.call("upload", voidp(at), voidp(a.ctypes.data), C.c_size_t(a.nbytes))
        return at

    def view(self, a: np.ndarray, stride: int = 0, offset: int = 0, dtype: int = F32) -> View:
        """`a` [rows, cols] in rows of `stride` elements, from column `offset`; the rest is NaN."""
        a = np.asarray(a, np.float32)
        whole = np.full((len(a), stride or a.shape[1]), np.nan, np.float32)
        whole[:, offset : offset + a.shape[1]] = a
        raw = narrow_bits(whole, dtype) if dtype else whole
        return View(self.array(raw) + raw.itemsize * offset, dtype, *a.shape, whole.shape[1])

    def read(self, v: View) -> np.ndarray:
        """float32, whatever the view's type."""
        if not v.rows:
            return np.empty((0, v.cols), np.float32)
        flat = np.zeros((v.rows - 1) * v.stride + v.cols, np.uint16 if v.dtype else np.float32)
        self.call("download", voidp(flat.ctypes.data), voidp(v.at), C.c_size_t(flat.nbytes))
        if v.dtype == F16:
            flat = flat.view(np.float16).astype(np.float32)
        elif v.dtype == BF16:
            flat = (flat.astype(np.uint32) << 16).view(np.float32)
        return np.array([flat[r * v.stride : r * v.stride + v.cols] for r in range(v.rows)])

    def weight(
        self, w: np.ndarray, kind: int, dtype: int = F32, piece: int = 1 << 30, pad: int = 0, held_in: int = F32
    ) -> Weight:
        """`pad` bytes before the data and after each row: file data lies anywhere. held_in: the type computed in."""
        w2 = np.atleast_2d(np.asarray(w, np.float32))
        raw = {
            F32: lambda: w2,
            F16: lambda: w2.astype(np.float16),
            BF16: lambda: (w2.view(np.uint32) >> 16).astype(np.uint16),
        }
        data = raw[dtype]()
        stride = data.shape[1] * data.itemsize + pad
        blob = bytearray(pad + stride * len(data))
        for r, row in enumerate(data):
            blob[pad + r * stride : pad + r * stride + row.nbytes] = row.tobytes()
        held = (C.c_char * len(blob)).from_buffer(blob)
        out, memory, desc = Weight(), Memory(), WeightDesc(kind, held_in, *w2.shape)
        self.call(
            "weight",
            C.byref(desc),
            voidp(C.addressof(held) + pad),
            C.c_size_t(stride),
            dtype,
            i64(piece),
            C.byref(out),
            C.byref(memory),
        )
        self.kept.append(memory)
        return out

    def sequences(self, lengths: list[int], padded: int = 0) -> Rows:
        """`padded` more offsets repeat the end."""
        offsets = np.concatenate([[0], np.cumsum(lengths, dtype=np.int32), [sum(lengths)] * padded]).astype(np.int32)
        return Rows(None, None, self.array(offsets), sum(lengths), len(offsets) - 1, max([*lengths, 0]))

    def rows(self, lengths: list[int], padded: int = 0) -> None:
        """Declares the batch's sequences."""
        r = self.sequences(lengths, padded)
        self.lib.shim_rows(self.handle, voidp(r.offsets), i64(r.T), i64(r.B), i64(r.longest))

    # ops, each from arrays to an array
    def epilogue(self, bias, act, residual: View | None) -> Epilogue:
        b = self.weight(bias, VECTOR) if bias is not None else None
        return Epilogue(C.pointer(b) if b else None, ACTIVATIONS.index(act), C.pointer(residual) if residual else None)

    def matmul(self, x, w, bias=None, act="none", residual=None, inside=False, strides=(0, 0), offset=0) -> np.ndarray:
        """inside: the residual is y itself. w: an array, or a Weight made before."""
        w = w if isinstance(w, Weight) else self.weight(w, MATRIX)
        N = w.desc.N
        y = self.view(residual if inside else np.full((len(x), N), np.nan), strides[1], offset)
        r = None if residual is None else y if inside else self.view(residual, strides[1], offset)
        e = self.epilogue(bias, act, r)
        self.call("matmul", y, self.view(x, strides[0], offset), C.byref(w), C.byref(e))
        return self.read(y)

    def attention(
        self, q, k, v, heads, lengths, scale, strided=False, padded=0, causal=False, keys=None, relative=None
    ) -> np.ndarray:
        """keys: lengths of the sequences of k and v, where they are not q's. relative: (table [buckets, heads], bucket
        uint8 [2, reach + 1], the first head)."""
        self.rows(lengths, padded)
        T, D = q.shape

        def fused(*arrays: np.ndarray) -> list[View]:
            """Side by side, as one product leaves them."""
            whole = self.view(np.concatenate(arrays, 1), len(arrays) * D + 5, 3)
            return [View(whole.at + 4 * i * D, F32, whole.rows, D, whole.stride) for i in range(len(arrays))]

        if not strided:
            views = [self.view(a) for a in (q, k, v)]
        else:
            views = fused(q, k, v) if keys is None else [*fused(q), *fused(k, v)]
        y = self.view(np.full((T, D), np.nan), D + 2 * strided)
        others = None if keys is None else C.pointer(self.sequences(keys, padded))
        self.call("attention", y, *views, heads, C.byref(Mask(scale, causal, others, self.relative(relative))))
        return self.read(y)

    def relative(self, given) -> Relative:
        if given is None:
            return Relative()
        table, bucket, first = given
        made = Buckets(bucket.shape[1] - 1, len(table))
        for side in (0, 1):
            made.bucket[side][: bucket.shape[1]] = bucket[side].tolist()
        return Relative(C.pointer(self.weight(table, TABLE)), C.pointer(made), first)

    def norm(self, gamma, beta, eps, copy: View | None = None) -> Norm:
        g, b = self.weight(gamma, VECTOR), self.weight(beta, VECTOR)
        return Norm(C.pointer(g), C.pointer(b), eps, C.pointer(copy) if copy else None)

    def gather(self, tables, indices, norm=None, n_rows=None, stride=0, offset=0) -> np.ndarray:
        D = tables[0].shape[1]
        weights = [self.weight(t, TABLE) for t in tables]
        rows = (Gather * len(tables))(
            *[
                Gather(C.pointer(w), self.array(i) if i is not None else None)
                for w, i in zip(weights, indices, strict=True)
            ]
        )
        y = self.view(np.full((n_rows, D), np.nan), stride, offset)
        if norm:
            self.call("gather_norm", y, rows, len(tables), C.byref(self.norm(*norm)))
        else:
            self.call("gather", y, rows, len(tables))
        return self.read(y)

    def layer_norm(self, x, gamma, beta, eps, inside=False, stride=0, offset=0) -> np.ndarray:
        xv = self.view(x, stride, offset)
        y = xv if inside else self.view(np.full_like(x, np.nan), stride, offset)
        self.call("layer_norm", y, xv, C.byref(self.norm(gamma, beta, eps)))
        return self.read(y)

    def pool(self, x, lengths, kind, padded=0, stride=0, offset=0) -> np.ndarray:
        self.rows(lengths, padded)
        y = self.view(np.full((len(lengths) + padded, x.shape[1]), np.nan), stride, offset)
        self.call("pool", y, self.view(x, stride, offset), POOLINGS.index(kind))
        return self.read(y)

    def l2_normalize(self, x, stride=0, offset=0) -> np.ndarray:
        v = self.view(x, stride, offset)
        self.call("l2_normalize", v)
        return self.read(v)

    def add(self, x, bias=None, act="none", residual=None, inside=False, stride=0, offset=0) -> np.ndarray:
        xv = self.view(x, stride, offset)
        y = xv if inside else self.view(np.full_like(x, np.nan), stride, offset)
        r = None if residual is None else self.view(residual, stride, offset)
        self.call("add", y, xv, C.byref(self.epilogue(bias, act, r)))
        return self.read(y)


def narrow_bits(a: np.ndarray, dtype: int) -> np.ndarray:
    """uint16: the nearest fp16 or bf16, ties to even."""
    if dtype == F16:
        return a.astype(np.float16).view(np.uint16)
    bits = np.ascontiguousarray(a, np.float32).view(np.uint32).astype(np.uint64)
    return np.where(np.isnan(a), 0x7FC0, bits + 0x7FFF + (bits >> 16 & 1) >> 16).astype(np.uint16)


def rounded(a: np.ndarray, dtype: int) -> np.ndarray:
    """float64 of the nearest fp16 or bf16."""
    bits = narrow_bits(a, dtype)
    if dtype == F16:
        return bits.view(np.float16).astype(np.float64)
    return (bits.astype(np.uint32) << 16).view(np.float32).astype(np.float64)


# NumPy in float64 ---------------------------------------------------------------------------------------------------

erf = np.vectorize(math.erf, otypes=[float])
ACT = {
    "none": lambda x: x,
    "gelu": lambda x: x / 2 * (1 + erf(x / math.sqrt(2))),
    "gelu_new": lambda x: x / 2 * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),
    "relu": lambda x: np.maximum(x, 0),
    "silu": lambda x: x / (1 + np.exp(-x)),
    "tanh": np.tanh,
}


def d(a):
    return None if a is None else np.asarray(a, np.float64)


def np_epilogue(x, bias, act, residual):
    x = x if bias is None else x + d(bias)
    return ACT[act](x) + (0 if residual is None else d(residual))


def np_norm(x, gamma, beta, eps):
    x = d(x)
    mean = x.mean(1, keepdims=True)
    return (x - mean) / np.sqrt(((x - mean) ** 2).mean(1, keepdims=True) + eps) * d(gamma) + d(beta)


def parts(lengths):
    """The rows of each sequence."""
    ends = np.cumsum(lengths, dtype=int)
    return [slice(e - n, e) for e, n in zip(ends, lengths, strict=True)]


def np_attention(q, k, v, heads, lengths, scale, causal=False, keys=None, relative=None):
    q, k, v = d(q), d(k), d(v)
    y, E = np.zeros_like(q), q.shape[1] // heads
    sequences = zip(parts(lengths), parts(lengths if keys is None else keys), strict=True)
    for (rows, others), h in itertools.product(sequences, range(heads)):
        cols = slice(h * E, (h + 1) * E)
        s = scale * q[rows, cols] @ k[others, cols].T
        if relative is not None:
            table, bucket, first = relative
            far = np.arange(s.shape[1])[None] - np.arange(s.shape[0])[:, None]
            which = bucket[(far > 0).astype(int), np.minimum(np.abs(far), bucket.shape[1] - 1)]
            s = s + d(table)[which, first + h]
        if s.size:
            s = np.where(np.tri(*s.shape) > 0, s, -np.inf) if causal else s
            p = np.exp(s - s.max(1, keepdims=True))
            y[rows, cols] = p / p.sum(1, keepdims=True) @ v[others, cols]
    return y


def np_pool(x, lengths, kind):
    def one(s):
        n = len(s)
        weights = np.arange(1, n + 1)[:, None]
        return {
            "cls": lambda: s[0],
            "mean": lambda: s.mean(0),
            "max": lambda: s.max(0),
            "mean_sqrt_len": lambda: s.sum(0) / math.sqrt(n),
            "weightedmean": lambda: (s * weights).sum(0) / weights.sum(),
            "lasttoken": lambda: s[-1],
        }[kind]()

    ends = np.cumsum(lengths)
    rows = [one(d(x)[e - n : e]) if n else np.zeros(x.shape[1]) for e, n in zip(ends, lengths, strict=True)]
    return np.array(rows).reshape(len(lengths), x.shape[1])


def check(got, expected, scale=1.0, rtol=1e-6):
    """Within rtol of `scale`, or of the expected value where that is larger; says both sides at the worst place."""
    expected = d(expected)
    assert got.shape == expected.shape
    if not got.size:
        return
    assert not np.isnan(got).any(), f"NaN at {np.argwhere(np.isnan(got))[0]} of {got.shape}"
    off = np.abs(got - expected) / np.maximum(np.abs(expected), scale)
    worst = np.unravel_index(off.argmax(), off.shape)
    assert off[worst] <= rtol, (
        f"{got[worst]} is not {expected[worst]} at {worst} of {got.shape}: off by {off[worst]:.2e}"
    )


def same(a, b, what=""):
    np.testing.assert_array_equal(np.asarray(a).view(np.uint32), np.asarray(b).view(np.uint32), err_msg=what)


def random(*shape, seed=0):
    return np.random.default_rng([seed, *shape]).standard_normal(shape).astype(np.float32)
