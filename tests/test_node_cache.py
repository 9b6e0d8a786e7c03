"""Copies on a node's own disk: one for all, whole or not there, within its limits, and a sentence where that fails."""

import errno
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import firesteel
import pytest
import tiny
from firesteel.model import node_cache
from firesteel.model.checkpoint import files_read

HERE = Path(__file__).parent


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    """Where copies go; nothing of an earlier test is held."""
    monkeypatch.setenv("FIRESTEEL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(node_cache, "_held", {})
    return tmp_path / "cache" / f"firesteel-models-{os.geteuid()}"


@pytest.fixture
def mount(tmp_path, monkeypatch) -> Path:
    """A folder that the kernel seems to have mounted over a network."""
    folder = tmp_path / "mount"
    folder.mkdir()
    monkeypatch.setattr(node_cache, "_mounts", lambda: [("/proc", "proc"), (str(folder), "nfs4")])
    return folder


def copies(cache: Path) -> list[str]:
    return sorted(entry.name for entry in cache.iterdir() if entry.is_dir())


def same_files(one: Path | str, other: Path | str) -> bool:
    names = files_read(one)
    return names == files_read(other) and all(
        (Path(one) / name).read_bytes() == (Path(other) / name).read_bytes() for name in names
    )


# --- what is copied ---------------------------------------------------------------------------------------------------


def test_a_folder_on_a_local_disk_is_left_where_it_is(cache, mount, tmp_path):
    model = str(tiny.write(tmp_path / "model"))
    assert node_cache.near(model) == model
    assert not cache.exists()


def test_a_network_mount_is_copied_once_and_holds_what_is_read(cache, mount, monkeypatch):
    model = tiny.write(mount / "model", shards=3, sentence={})
    (model / "pytorch_model.bin").write_bytes(b"pickle")
    monkeypatch.setattr(node_cache, "RANGE_BYTES", 5000)  # many ranges in a file, many reads in a range
    monkeypatch.setattr(node_cache, "CHUNK_BYTES", 700)
    near = node_cache.near(str(model))
    assert near.startswith(str(cache)) and same_files(model, near)
    assert not os.path.exists(os.path.join(near, "pytorch_model.bin"))
    monkeypatch.setattr(node_cache, "_copy", None)  # would fail
    assert node_cache.near(str(model)) == near


def test_an_engine_reads_the_copy(cache, mount):
    model = tiny.write(mount / "model")
    with firesteel.Engine(model, devices="cpu") as engine:
        assert engine.settings["folder"].startswith(str(cache))
        assert engine.embed(["a row"]).shape == (1, 48)


def test_off_reads_the_mount_in_place(cache, mount, monkeypatch):
    model = str(tiny.write(mount / "model"))
    monkeypatch.setenv("FIRESTEEL_CACHE", "off")
    assert node_cache.near(model) == model


def test_a_model_saved_anew_is_copied_anew(cache, mount):
    """Weights of one shape have one size and one header; the time tells them apart."""
    model = tiny.write(mount / "model")
    first = node_cache.near(str(model))
    tiny.write(model, seed=1)
    second = node_cache.near(str(model))
    assert first != second and same_files(model, second) and not same_files(model, first)


def test_what_is_no_model_is_told_by_the_checkpoints_own_sentence(cache, mount):
    (mount / "empty").mkdir()
    for name, words in (("empty", "config.json is missing"), ("none", "no such folder")):
        with pytest.raises(firesteel.CheckpointError, match=words):
            node_cache.near(str(mount / name))


@pytest.mark.parametrize(
    ("path", "kind", "expected"),
    [
        ("/mnt/m/model", "nfs4", "/mnt/m"),
        ("/mnt/m", "fuse.goofys", "/mnt/m"),
        ("/mnt/m/model", "fuse", "/mnt/m"),
        ("/mnt/m/model", "lustre", "/mnt/m"),
        ("/mnt/m/model", "cifs", "/mnt/m"),
        ("/mnt/more", "nfs4", None),
        ("/mnt/m/model", "ext4", None),
        ("/mnt/m/model", "9p", None),
        ("/mnt/m/model", "overlay", None),
        ("/mnt/m/model", "fuse.fuse-overlayfs", None),
        ("/Volumes/main/default/models", "ext4", "/Volumes"),
        ("/dbfs/models", "ext4", "/dbfs"),
        ("/Workspace/models", "ext4", "/Workspace"),
        ("/Volumesque", "ext4", None),
    ],
)
def test_which_mounts_are_of_a_network(monkeypatch, path, kind, expected):
    monkeypatch.setattr(node_cache, "_mounts", lambda: [("/mnt", "ext4"), ("/mnt/m", kind)])
    assert node_cache.network_mount(path) == expected


def test_a_link_to_a_mount_lies_on_it(mount, tmp_path):
    (tmp_path / "link").symlink_to(mount)
    assert node_cache.network_mount(str(tmp_path / "link" / "model")) == str(mount)


def test_the_kernels_own_list_is_read():
    listed = dict(node_cache._mounts())
    assert listed["/proc"] == "proc" and "/" not in listed


# --- where ------------------------------------------------------------------------------------------------------------


def test_places_in_their_order(monkeypatch, tmp_path):
    monkeypatch.setattr(
        node_cache.os.path, "isdir", lambda path, real=os.path.isdir: path != "/local_disk0" and real(path)
    )
    executor = tmp_path / "spark-01234567-89ab-cdef-0123-456789abcdef" / "blockmgr-01234567-89ab-cdef-0123-456789abcdef"
    executor.mkdir(parents=True)
    monkeypatch.delenv("FIRESTEEL_CACHE", raising=False)
    monkeypatch.setenv("SPARK_LOCAL_DIRS", f"/no/such/folder,{executor}")
    assert node_cache._cache_parent() == str(tmp_path)  # the node's, not the executor's
    monkeypatch.setenv("SPARK_LOCAL_DIRS", "")
    monkeypatch.setattr(node_cache.tempfile, "gettempdir", lambda: "/temp")
    assert node_cache._cache_parent() == "/temp"
    monkeypatch.setenv("FIRESTEEL_CACHE", str(tmp_path / "said"))
    assert node_cache.cache_folder() == f"{tmp_path}/said/firesteel-models-{os.geteuid()}"


def test_a_cache_that_others_may_write_to_is_refused(cache, mount):
    cache.mkdir(parents=True)
    cache.chmod(0o777)
    with pytest.raises(firesteel.ConfigError, match="nobody else may write to"):
        node_cache.near(str(tiny.write(mount / "model")))


def test_a_cache_on_a_network_mount_is_refused(cache, mount, monkeypatch):
    monkeypatch.setenv("FIRESTEEL_CACHE", str(mount / "cache"))
    with pytest.raises(firesteel.ConfigError, match="FIRESTEEL_CACHE is on .*/mount, a network mount"):
        node_cache.near(str(tiny.write(mount / "model")))


# --- many at once -----------------------------------------------------------------------------------------------------

RACER = """
import os, sys, time
from firesteel.model import node_cache
node_cache._mounts = lambda: [(sys.argv[1], "nfs4")]
copy = node_cache._copy

def counted(*arguments):
    with open(sys.argv[2], "a") as file:
        file.write(f"{os.getpid()}\\n")
    time.sleep(0.3)  # so that all others meet the lock
    copy(*arguments)

node_cache._copy = counted
print(node_cache.near(sys.argv[1] + "/model"), flush=True)
time.sleep(float(sys.argv[3]))
"""


def racer(mount: Path, note: Path, stay: float = 0, code: str = RACER) -> subprocess.Popen:
    command = [sys.executable, "-c", code, str(mount), str(note), str(stay)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_eight_workers_that_race_make_one_copy(cache, mount, tmp_path):
    model = tiny.write(mount / "model")
    racers = [racer(mount, tmp_path / "note") for _ in range(8)]
    said = [process.communicate(timeout=600) for process in racers]
    assert [process.returncode for process in racers] == [0] * 8, said
    assert len((tmp_path / "note").read_text().split()) == 1
    (folder,) = {out.strip() for out, _ in said}
    assert same_files(model, folder) and copies(cache) == [os.path.basename(folder)]


SLOW_FIRST = RACER.replace("time.sleep(0.3)", "time.sleep(0.3); node_cache.CHUNK_BYTES = 1; node_cache.STREAMS = 1")


def test_a_killed_copier_leaves_nothing_that_counts(cache, mount, tmp_path):
    model = tiny.write(mount / "model")
    killed = racer(mount, tmp_path / "note", code=SLOW_FIRST)  # a byte at a time
    until = time.monotonic() + 30
    while not any(name.endswith(".part") for name in (copies(cache) if cache.exists() else [])):
        assert time.monotonic() < until and killed.poll() is None
        time.sleep(0.01)
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    assert [name.endswith(".part") for name in copies(cache)] == [True]
    near = node_cache.near(str(model))
    assert same_files(model, near) and copies(cache) == [os.path.basename(near)]


def test_a_copy_that_lost_files_is_made_again(cache, mount):
    """What cleans temporary folders takes files one by one."""
    model = tiny.write(mount / "model")
    near = node_cache.near(str(model))
    os.unlink(os.path.join(near, "tokenizer.json"))
    assert node_cache.near(str(model)) == near and same_files(model, near)


# --- a slow mount, and a dead one -------------------------------------------------------------------------------------


def slowed(monkeypatch, seconds, stop_after=None):
    """Each read takes so long; from the n-th on, for ever (until the test ends)."""
    read, reads, end = node_cache._read, [], threading.Event()

    def slow(*arguments):
        reads.append(arguments)
        if stop_after is not None and len(reads) > stop_after:
            end.wait(30)
        time.sleep(seconds)
        return read(*arguments)

    monkeypatch.setattr(node_cache, "_read", slow)
    monkeypatch.setattr(node_cache, "PATIENCE", 0.5)
    monkeypatch.setattr(node_cache, "CHUNK_BYTES", 30_000)
    monkeypatch.setattr(node_cache, "STREAMS", 1)
    return end


def test_a_slow_mount_is_waited_for_as_long_as_bytes_come(cache, mount, monkeypatch):
    model = tiny.write(mount / "model")
    slowed(monkeypatch, 0.15)
    started = time.monotonic()
    near = node_cache.near(str(model))
    assert same_files(model, near)
    assert time.monotonic() - started > 2 * node_cache.PATIENCE


def test_a_mount_that_stands_still_is_named(cache, mount, monkeypatch):
    model = tiny.write(mount / "model")
    end = slowed(monkeypatch, 0, stop_after=2)
    try:
        with pytest.raises(firesteel.CheckpointError) as failed:
            node_cache.near(str(model))
    finally:
        end.set()
    assert str(failed.value).startswith(f"{model}: nothing has come for 0.5 s")
    assert f"{mount}, the mount it lies on, may be dead" in str(failed.value)
    assert copies(cache) == []


def test_a_mount_that_does_not_even_list_is_named(cache, mount, monkeypatch):
    model, end = tiny.write(mount / "model"), threading.Event()
    monkeypatch.setattr(node_cache, "PATIENCE", 0.3)
    monkeypatch.setattr(node_cache, "files_read", lambda folder: end.wait(30))
    try:
        with pytest.raises(firesteel.CheckpointError, match="nothing has come for 0.3 s .* may be dead"):
            node_cache.near(str(model))
    finally:
        end.set()


STUCK_FIRST = RACER.replace("time.sleep(0.3)", "time.sleep(60)")


def test_who_waits_for_a_stuck_process_says_which(cache, mount, tmp_path, monkeypatch):
    model = tiny.write(mount / "model")
    stuck = racer(mount, tmp_path / "note", code=STUCK_FIRST)
    try:
        until = time.monotonic() + 30
        while not (tmp_path / "note").exists():
            assert time.monotonic() < until and stuck.poll() is None
            time.sleep(0.01)
        monkeypatch.setattr(node_cache, "PATIENCE", 0.4)
        with pytest.raises(firesteel.CheckpointError) as failed:
            node_cache.near(str(model))
    finally:
        stuck.kill()
        stuck.communicate()
    assert f"process {stuck.pid} copies it" in str(failed.value) and "may be dead" in str(failed.value)


def test_a_source_that_changes_under_the_copy(cache, mount, monkeypatch):
    model = tiny.write(mount / "model")
    read = node_cache._read

    def meddled(source, *arguments):
        os.utime(model / "config.json", ns=(1, 1))
        return read(source, *arguments)

    monkeypatch.setattr(node_cache, "_read", meddled)
    with pytest.raises(firesteel.CheckpointError, match="config.json: was changed while it was copied"):
        node_cache.near(str(model))
    assert copies(cache) == []


def test_a_source_that_ends_early(cache, mount, monkeypatch):
    model = tiny.write(mount / "model")
    look = node_cache._look
    monkeypatch.setattr(
        node_cache,
        "_look",
        lambda *a: {name: (size + (name == "tokenizer.json"), at) for name, (size, at) in look(*a).items()},
    )
    with pytest.raises(firesteel.CheckpointError, match="tokenizer.json: ends at byte"):
        node_cache.near(str(model))


# --- room -------------------------------------------------------------------------------------------------------------


def test_a_disk_without_room_is_told_before_anything_is_copied(cache, mount, monkeypatch):
    model = tiny.write(mount / "model")
    monkeypatch.setattr(node_cache, "_free", lambda folder: 12_000)
    monkeypatch.setattr(node_cache, "_copy", None)
    needs = sum(os.path.getsize(model / name) for name in files_read(model)) / 1e6
    with pytest.raises(firesteel.CheckpointError) as failed:
        node_cache.near(str(model))
    assert str(failed.value) == (
        f"{model}: its copy on this node needs {needs:.1f} MB, and {cache} has 0.0 MB free; set FIRESTEEL_CACHE to a "
        f"larger disk"
    )


@pytest.mark.parametrize("fault", [errno.ENOSPC, errno.EDQUOT])
def test_a_disk_that_fills_up_in_the_middle(cache, mount, monkeypatch, fault):
    model = tiny.write(mount / "model")
    write, written = os.pwrite, []

    def full(file, data, at):
        if len(written) == 3:
            raise OSError(fault, os.strerror(fault))
        written.append(write(file, data[:1000], at))  # and short writes before
        return written[-1]

    with monkeypatch.context() as patched:
        patched.setattr(node_cache.os, "pwrite", full)
        with pytest.raises(firesteel.CheckpointError, match="is full.*; set FIRESTEEL_CACHE to a larger disk"):
            node_cache.near(str(model))
    assert copies(cache) == []
    assert same_files(model, node_cache.near(str(model)))  # there is room now


def aged(folder: str, seconds: float) -> None:
    at = time.time() - seconds
    os.utime(os.path.join(folder, node_cache.MARK), (at, at))


def test_what_was_used_longest_ago_goes_first_and_what_is_used_stays(cache, mount, monkeypatch):
    models = [tiny.write(mount / str(number), seed=number) for number in range(4)]
    nears = [node_cache.near(str(model)) for model in models[:3]]
    for file in node_cache._held.values():
        os.close(file)
    node_cache._held.clear()
    one = sum(os.path.getsize(models[0] / name) for name in files_read(models[0]))
    node_cache.near(str(models[0]))  # held by this process from here on
    for near, seconds in zip(nears, (300, 100, 200), strict=True):
        aged(near, seconds)
    monkeypatch.setenv("FIRESTEEL_CACHE_GB", str(3.5 * one / 1e9))
    node_cache.near(str(models[3]))
    assert [os.path.isdir(near) for near in nears] == [True, True, False]
    assert len(copies(cache)) == 3


def test_a_limit_that_is_no_number(cache, mount, monkeypatch):
    monkeypatch.setenv("FIRESTEEL_CACHE_GB", "much")
    with pytest.raises(firesteel.ConfigError, match="FIRESTEEL_CACHE_GB is 'much'"):
        node_cache.near(str(tiny.write(mount / "model")))


def test_a_copy_of_another_process_in_use_is_not_removed(cache, mount, tmp_path, monkeypatch):
    model, other = tiny.write(mount / "model"), tiny.write(mount / "other", seed=1)
    user = racer(mount, tmp_path / "note", stay=60)
    try:
        used = user.stdout.readline().strip()
        monkeypatch.setenv("FIRESTEEL_CACHE_GB", "0")
        node_cache.near(str(other))
        assert same_files(model, used)
    finally:
        user.kill()
        user.communicate()
    node_cache.near(str(tiny.write(mount / "third", seed=2)))
    assert not os.path.exists(used)


def test_the_mark_lists_sizes(cache, mount):
    near = node_cache.near(str(tiny.write(mount / "model")))
    listed = json.loads(Path(near, node_cache.MARK).read_text())
    assert listed == {name: os.path.getsize(os.path.join(near, name)) for name in files_read(near)}
