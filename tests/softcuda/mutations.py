"""Seeded faults that the tests of the CUDA backend must find: what a test run can be trusted with.

    make mutations                                       all of them; some minutes
    python tests/softcuda/mutations.py rows-barrier      by name

Each replaces one text of one file in a copy of this checkout (build/mutations), builds what it touches (software driver
or module) and runs a few tests, which must fail. First they must pass on the copy as it is. A table is printed.
tests/test_cuda_mutations.py holds that every text is still there, once.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent.parent
COPY = ROOT / "build" / "mutations"
COPIED = ("csrc", "tests", "python", "build_tools", "setup.py", "pyproject.toml", "README.md", "LICENSE")
KERNELS, HOST, ENGINE = "csrc/backends/cuda/kernels", "csrc/backends/cuda", "csrc/engine"

OPS = "tests/test_ops.py::test_op_agrees_with_numpy[cuda--{}]"
SAME_PRODUCT = "tests/test_ops.py::test_matmul_gives_a_row_the_same_bits[cuda-384-384]"
SAME_ATTENTION = "tests/test_ops.py::test_attention_gives_a_sequence_the_same_bits[cuda-2-32]"
IN_16_BITS = "tests/test_ops.py::test_products_in_16_bits[64-64-1-none]"
WEIGHTS = "tests/test_ops.py::test_weights_can_be_filled_from_any_file[80-17-0-cuda]"
PINNED = "tests/test_cuda_products.py::test_the_first_good_algorithm_is_taken_or_none[012345-4]"
CAUSAL = "tests/test_ops.py::test_a_causal_row_has_the_bits_of_a_sequence_that_ends_there[cuda-2-32]"
CPU = "tests/test_cuda.py::test_agrees_with_the_cpu"
BESIDE = "tests/test_cuda.py::test_copies_have_streams_of_their_own[one GPU]"
ENGINE_IN_C = "tests/test_c.py::test_c[test_engine]"
SLOW_GROUP = "tests/test_cuda_groups.py::test_modes_and_runs_keep_the_bits[two ranks-slow to connect]"


class Mutation(NamedTuple):
    name: str
    file: str
    text: str
    replacement: str
    wrong: str
    tests: tuple[str, ...]


MUTATIONS = (
    Mutation(
        "rows-barrier",
        f"{KERNELS}/rows.cu",
        "    if (fs_lane() == 0) warps[fs_thread() / 32] = v;\n    FS_SYNC();\n",
        "    if (fs_lane() == 0) warps[fs_thread() / 32] = v;\n",
        "a row's sum is read before all warps have written their part",
        (OPS.format("layer_norm"),),
    ),
    Mutation(
        "product-barrier",
        f"{KERNELS}/product.cu",
        "            FS_SYNC(); /* the block is there; and nobody reads the one before it",
        "            /* the block is there; and nobody reads the one before it",
        "a block of K is multiplied before it has landed",
        (OPS.format("matmul"),),
    ),
    Mutation(
        "attention-barrier",
        f"{KERNELS}/attention.cu",
        "        FS_SYNC(); /* what landed was read */\n",
        "",
        "values land over keys that other warps still read",
        (OPS.format("attention"),),
    ),
    Mutation(
        "copy-wait",
        f"{KERNELS}/product.cu",
        "            fs_copy_wait(FS_16_STAGES - 2);\n",
        "",
        "a block of K is multiplied while its copies are under way",
        (IN_16_BITS,),
    ),
    Mutation(
        "product-tail",
        f"{KERNELS}/product.cu",
        "if (r < a.T && c < a.N) fs_finish",
        "if (r <= a.T && c < a.N) fs_finish",
        "one row past the last is written",
        (OPS.format("matmul"),),
    ),
    Mutation(
        "pool-tail",
        f"{KERNELS}/pool.cu",
        "    for (int t = 1; t < tokens; t++) v = fs_fma(",
        "    for (int t = 1; t <= tokens; t++) v = fs_fma(",
        "the next sequence's first token is pooled too",
        (OPS.format("pool"),),
    ),
    Mutation(
        "product-order",
        f"{KERNELS}/product.cu",
        "        const int next = k + FS_F32_DEPTH;\n",
        "        const int next = a.T > 64 && k + 2 * FS_F32_DEPTH <= a.K\n"
        "                             ? a.K / FS_F32_DEPTH * FS_F32_DEPTH - 2 * FS_F32_DEPTH - k\n"
        "                             : k + FS_F32_DEPTH;\n",
        "blocks of K are added backwards where there are many rows",
        (SAME_PRODUCT,),
    ),
    Mutation(
        "attention-order",
        f"{KERNELS}/attention.cu",
        "fs_head_pull<Tile>(held, next, (step + 1) / 2 * Tile::KEYS);",
        "fs_head_pull<Tile>(held, next, end % Tile::KEYS ? (step + 1) / 2 * Tile::KEYS\n"
        "                                                : ((step + 1) / 2 + b) % (steps / 2) * Tile::KEYS);",
        "the tile of keys that a sequence begins with depends on its place in the batch",
        (SAME_ATTENTION,),
    ),
    Mutation(
        "attention-causal",
        f"{KERNELS}/attention.cu",
        "const int seen = a.causal && row + i + 1 < end ? row + i + 1 : end;",
        "const int seen = a.causal && row + i + 2 < end ? row + i + 2 : end;",
        "a causal row weighs the key behind its own",
        (OPS.format("attention"),),
    ),
    Mutation(
        "attention-unseen",
        f"{KERNELS}/attention.cu",
        "if (EACH && key + k >= seen + i) continue;",
        "if (EACH && key + k > seen + i) continue;",
        "a causal row adds the value behind its own, times 0",
        (CAUSAL,),
    ),
    Mutation(
        "attention-keys",
        f"{KERNELS}/attention.cu",
        "first_key = a.key_offsets[b]",
        "first_key = a.offsets[b]",
        "keys of other rows are taken from where the queries lie",
        (OPS.format("attention"),),
    ),
    Mutation(
        "event-record",
        f"{HOST}/queue.c",
        'return fs_cuda_check(q->device, q->device->cu->event_record(e->event, q->stream), "recording an event");',
        "return FS_OK;",
        "waiting for a step waits for nothing",
        (CPU,),
    ),
    Mutation(
        "stage-wait",
        f"{ENGINE}/step.c",
        "    FS_TRY(s->device->backend->queue_wait(part->in, from_space->done));\n",
        "",
        "a stage copies what the stage before has not made yet",
        (CPU,),
    ),
    Mutation(
        "stream-wait",
        f"{ENGINE}/stream.c",
        "    if (to->was_used) FS_TRY(s->device->backend->event_wait(to->used));\n",
        "",
        "a streamed layer comes over one that steps still use",
        (CPU,),
    ),
    Mutation(
        "carry-record",
        f"{ENGINE}/step.c",
        "    fs_status passed = pass_on(r->step.device->backend, part->in, space->arrived, part->queue);",
        "    fs_status passed = FS_OK;",
        "a slot is used again while the next stage still copies from it",
        (ENGINE_IN_C,),
    ),
    Mutation(
        "copies-wait",
        f"{ENGINE}/step.c",
        "    return later == q ? FS_OK : backend->queue_wait(later, e);\n",
        "    return later == q ? FS_OK : FS_OK;\n",
        "a step does not wait for what it reads, results leave before they were computed",
        (CPU,),
    ),
    Mutation(
        "results-wait",
        f"{ENGINE}/step.c",
        "    FS_TRY(pass_on(s->device->backend, s->queue, space->computed, way_out(part)));\n",
        "",
        "results leave before they were computed",
        (CPU,),
    ),
    Mutation(
        "results-done",
        f"{ENGINE}/step.c",
        "downloads ? way_out(part) : part->queue",
        "part->queue",
        "results are handed out while they are on their way",
        (CPU,),
    ),
    Mutation(
        "copies-beside",
        f"{ENGINE}/stage.c",
        "    if (b->one_memory) return FS_OK;\n",
        "    return FS_OK;\n",
        "copies wait for the steps of other batches",
        (BESIDE,),
    ),
    Mutation(
        "connect-wait",
        f"{HOST}/collectives.c",
        "        FS_TRY(look(c, &w, rank, &busy));\n        if (!busy) return FS_OK;\n",
        "        return FS_OK;\n",
        "parts are added up while the ranks connect and nothing was gathered",
        (SLOW_GROUP,),
    ),
    Mutation(
        "weights-wait",
        f"{HOST}/weights.c",
        'return fs_cuda_check(d, d->cu->stream_synchronize(d->load_stream), "copying weights");',
        "return FS_OK;",
        "queues use weights that the loading stream is still copying",
        (CPU,),
    ),
    Mutation(
        "staging-wait",
        f"{HOST}/weights.c",
        'return fs_cuda_check(d, d->cu->event_synchronize(b->sent), "copying weights");',
        "return (void)d, (void)b, FS_OK;",
        "a buffer of the staging is filled again before the copy out of it",
        (WEIGHTS,),
    ),
    Mutation(
        "bit-test",
        f"{HOST}/plans.c",
        "        else if (p->usable) FS_TRY(passes(t, p, &p->usable));\n",
        "        (void)passes;\n",
        "cuBLASLt's first algorithm is taken, whose bits depend on the batch",
        (PINNED,),
    ),
    Mutation(
        "bit-test-place",
        f"{HOST}/plans.c",
        "places[PLACES] = { 0, T / 2, T - 1 };",
        "places[PLACES] = { 0, 0, 0 };",
        "only the first row of a batch is compared",
        (PINNED,),
    ),
    Mutation(
        "bit-test-rounded",
        f"{HOST}/plans.c",
        "p->form.y_type != FS_F32 ? -1 : (float)p->form.adds;",
        "(float)p->form.adds;",
        "products are compared after they were rounded to 16 bits",
        ("tests/test_cuda_products.py::test_forms_in_16_bits[1-1-0-0]",),
    ),
    Mutation(
        "split-k",
        f"{HOST}/plans.c",
        "values[FS_LT_ALGORITHM_SPLIT_K] <= 1 && values[FS_LT_ALGORITHM_REDUCTION] == 0;",
        "values[FS_LT_ALGORITHM_SPLIT_K] <= 2;",
        "an algorithm that splits K is taken",
        (PINNED,),
    ),
    Mutation(
        "grid-tail",
        f"{HOST}/ops_rows.c",
        "    const int64_t fours = a.rows * ((a.D + 3) / 4);\n",
        "    const int64_t fours = a.rows * (a.D / 4);\n",
        "the grid leaves out the last numbers of rows",
        (OPS.format("add"),),
    ),
)


# -- the copy ----------------------------------------------------------------------------------------------------------


def update_copy() -> None:
    """Brings the copy up to date; equal files keep their times, so little is built again."""
    ignored = shutil.ignore_patterns("__pycache__", "build", "*.so")
    fresh = COPY.with_name("mutations.fresh")
    shutil.rmtree(fresh, ignore_errors=True)
    for name in COPIED:
        source, to = ROOT / name, fresh / name
        to.parent.mkdir(parents=True, exist_ok=True)
        shutil.copytree(source, to, ignore=ignored) if source.is_dir() else shutil.copy2(source, to)
    COPY.mkdir(parents=True, exist_ok=True)
    for kept in ("build", "python/firesteel/_core.abi3.so"):
        if (COPY / kept).exists():
            (COPY / kept).rename(fresh / kept)
    shutil.rmtree(COPY)
    fresh.rename(COPY)
    for mutation in MUTATIONS:  # their objects may be of a mutation, and newer than the file as it is
        (COPY / mutation.file).touch()
    cache = COPY / "build" / "kernels"
    cache.parent.mkdir(exist_ok=True)
    if not cache.is_symlink():  # images are made of unchanged kernels: those of the checkout will do
        cache.symlink_to(ROOT / "build" / "kernels")


def environment() -> dict[str, str]:
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("FIRESTEEL_TEST", "FIRESTEEL_LIB", "SOFTCUDA_"))}
    path = [str(COPY / "python"), *filter(None, [clean.get("PYTHONPATH")])]
    return clean | {"PYTHONPATH": os.pathsep.join(path), "FIRESTEEL_CUDA": "1", "PYTHONDONTWRITEBYTECODE": "1"}


def run(*command: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, *command], cwd=COPY, env=environment(), capture_output=True, text=True)


def build(file: str | None) -> None:
    """What depends on `file`; everything for None. A mutation that does not build proves nothing."""
    kernel = file is not None and file.startswith(KERNELS)
    steps = [] if file is not None and not kernel else [("tests/softcuda/build.py", "build/softcuda")]
    steps += [] if kernel else [("setup.py", "--quiet", "build_ext", "--inplace")]
    for step in steps:
        done = run(*step)
        if done.returncode:
            sys.exit(f"{file or 'the copy'} does not build:\n{done.stdout}{done.stderr}")


def failing_test(tests: tuple[str, ...]) -> str | None:
    """The first of the tests that fails, or what became of all of them together; None: all pass."""
    done = run("-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *tests)
    if done.returncode == 0:
        return None
    if done.returncode < 0:
        return f"{tests[0].rpartition('/')[2]}, which dies of signal {-done.returncode}"
    failed = re.search(r"^(?:FAILED|ERROR) \S*?(\w+\.py::.+?)(?: - .*)?$", done.stdout, re.MULTILINE)
    if done.returncode != 1 or not failed:
        sys.exit(f"{' '.join(tests)} cannot be run:\n{done.stdout[-3000:]}{done.stderr[-3000:]}")
    return failed[1]


# -- all of them -------------------------------------------------------------------------------------------------------


def try_out(mutation: Mutation) -> str | None:
    """The test that caught it, or None."""
    file = COPY / mutation.file
    original = file.read_text()
    if original.count(mutation.text) != 1:
        sys.exit(f"{mutation.name}: its text is not once in {mutation.file}: see tests/test_cuda_mutations.py")
    file.write_text(original.replace(mutation.text, mutation.replacement))
    try:
        build(mutation.file)
        return failing_test(mutation.tests)
    finally:
        file.write_text(original)


def main(names: list[str]) -> int:
    unknown = set(names) - {mutation.name for mutation in MUTATIONS}
    if unknown:
        sys.exit(f"no such mutation: {', '.join(sorted(unknown))}")
    chosen = [mutation for mutation in MUTATIONS if not names or mutation.name in names]
    update_copy()
    build(None)
    broken = failing_test(tuple(dict.fromkeys(test for mutation in chosen for test in mutation.tests)))
    if broken:
        sys.exit(f"{broken} fails without any mutation")
    survived, rebuild = 0, None
    for mutation in chosen:
        start = time.monotonic()
        if rebuild:
            build(rebuild)
        caught = try_out(mutation)
        rebuild = mutation.file
        survived += caught is None
        fate = f"caught by {caught}" if caught else "SURVIVED"
        print(f"{mutation.name:18}{time.monotonic() - start:5.0f} s  {mutation.wrong}: {fate}", flush=True)
    print(f"{len(chosen) - survived} of {len(chosen)} mutations are caught")
    return 1 if survived else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
