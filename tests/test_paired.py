"""The statistics of benchmarks/paired.py, its rule, and that nothing of its checkouts is left behind."""

import math
import os
import random
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
BENCHMARKS = ROOT / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))

import common  # noqa: E402 - benchmarks/ is no package: found by the path above
import paired  # noqa: E402 - likewise


@pytest.mark.parametrize(
    "count, kth, coverage",
    [
        # from tables of the sign test: n, rank of the lower end, 1 - 2 P(Bin(n, 1/2) < rank)
        (6, 1, 0.96875),
        (9, 2, 0.9609375),
        (15, 4, 0.96484375),
        (20, 6, 0.95861053),
        (31, 10, 0.97055063),
    ],
)
def test_interval_is_made_of_order_statistics(count, kth, coverage):
    values = [float(value) for value in range(1, count + 1)]
    random.Random(count).shuffle(values)
    low, high, held = paired.median_interval(values)
    assert (low, high) == (kth, count + 1 - kth)
    assert math.isclose(held, coverage, abs_tol=1e-7) and held >= paired.CONFIDENCE


@pytest.mark.parametrize("count", [0, 1, 5])
def test_too_few_values_give_no_interval(count):
    with pytest.raises(ValueError, match=f"{count} values say too little"):
        paired.median_interval([1.0] * count)


NOISE = {
    "normal": lambda r: r.gauss(1, 0.05),
    "one-sided, as of a machine that others use": lambda r: math.exp(-r.expovariate(5)),
    "with outliers": lambda r: r.gauss(1, 0.02) * (3 if r.random() < 0.2 else 1),
    "two speeds": lambda r: r.choice([0.9, 1.1]) + r.gauss(0, 0.03),
}
MEDIANS = {
    "normal": 1.0,
    "one-sided, as of a machine that others use": math.exp(-math.log(2) / 5),
    "two speeds": 1.0,
}


@pytest.mark.parametrize("rounds", [15, 31])
@pytest.mark.parametrize("noise", NOISE)
def test_interval_holds_the_median_as_often_as_it_says(noise, rounds):
    draw, r = NOISE[noise], random.Random(f"{noise} {rounds}")
    median = MEDIANS.get(noise) or sorted(draw(r) for _ in range(20001))[10000]
    runs = 3000
    held = 0
    for _ in range(runs):
        low, high, coverage = paired.median_interval([draw(r) for _ in range(rounds)])
        held += low <= median <= high
    # four standard errors; of the ranks beside these, one is far below and one far above
    assert abs(held / runs - coverage) < 4 * math.sqrt(coverage * (1 - coverage) / runs)


@pytest.mark.parametrize(
    "median, low, high, expected",
    [
        (1.0, 0.99, 1.01, "no slower"),
        (1.5, 1.4, 1.6, "no slower"),
        (0.98, 0.95, 0.99, "no slower"),  # both borders belong to it
        (0.9799, 0.97, 0.99, "not decided"),
        (1.0, 0.9499, 1.05, "not decided"),  # too wide
        (0.96, 0.94, 0.98, "not decided"),
        (0.96, 0.94, 0.9799, "slower"),
        (0.5, 0.4, 0.6, "slower"),
        (0.97, 0.5, 1.2, "not decided"),
    ],
)
def test_rule(median, low, high, expected):
    assert paired.verdict(median, low, high) == expected
    assert expected in paired.STATUS


@pytest.mark.parametrize(
    "factor, expected", [(1.0, "no slower"), (0.5, "no slower"), (1.01, "no slower"), (1.1, "slower")]
)
def test_drift_of_the_machine_does_not_decide(factor, expected):
    """HEAD takes `factor` times as long while the machine slows down to a third within the run."""
    r = random.Random(7)
    speed = [1 + 2 * i / 15 for i in range(15)]
    base = [s * r.uniform(0.99, 1.01) for s in speed]
    head = [factor * s * r.uniform(0.99, 1.01) for s in speed]
    line = paired.summary(base, head)
    assert line["verdict"] == expected and line["rounds"] == 15
    assert abs(line["ratio"] * factor - 1) < 0.02 and line["low"] <= line["ratio"] <= line["high"]


@pytest.mark.parametrize(
    "arguments, said",
    [
        ([], "BASE"),
        (["HEAD", "--rounds", "14"], "--rounds is 14; the least is 15"),
        (["HEAD", "--threads", "0"], "--threads is 0; the least is 1"),
        (["HEAD", "--rows", "-3"], "--rows is -3; the least is 1"),
        (["HEAD", "--what", "everything"], "everything"),
    ],
)
def test_arguments_are_refused_by_name(arguments, said, capsys):
    with pytest.raises(SystemExit) as ended:
        paired.options(arguments)
    assert ended.value.code == 2 and said in capsys.readouterr().err


# --- checkouts


@pytest.fixture
def repository(tmp_path, monkeypatch) -> Path:
    """A repository of two commits, in place of ours; temporary folders are made beside it."""
    root, scratch = tmp_path / "repository", tmp_path / "scratch"
    root.mkdir()
    scratch.mkdir()
    identity = ["-c", "user.name=A", "-c", "user.email=a@b", "-c", "commit.gpgsign=false"]
    git = ["git", *identity, "-C", str(root)]
    subprocess.run(["git", "init", "--quiet", str(root)], check=True)
    for text in ("first", "second"):
        (root / "file").write_text(text)
        subprocess.run([*git, "add", "file"], check=True)
        subprocess.run([*git, "commit", "--quiet", "-m", text], check=True)
    monkeypatch.setattr(paired, "ROOT", str(root))
    monkeypatch.setattr("tempfile.tempdir", str(scratch))
    return root


def left_behind(repository: Path) -> list[str]:
    """Checkouts that git knows beside the repository itself, and temporary folders."""
    listed = subprocess.run(
        ["git", "-C", repository, "worktree", "list", "--porcelain"], capture_output=True, text=True, check=True
    ).stdout
    known = [line for line in listed.splitlines() if line.startswith("worktree ")][1:]
    return known + [path.name for path in (repository.parent / "scratch").iterdir()]


COMMITS = {"base": "HEAD~1", "head": "HEAD"}


def test_each_commit_has_a_folder_for_as_long_as_it_is_needed(repository):
    commits = {name: paired.commit_of(commit) for name, commit in COMMITS.items()}
    with paired.checkouts(commits) as folders:
        assert [(Path(folders[name]) / "file").read_text() for name in COMMITS] == ["first", "second"]
        assert len(left_behind(repository)) == 3
    assert left_behind(repository) == []


def test_one_commit_against_itself_has_two_folders(repository):
    with paired.checkouts(dict.fromkeys(COMMITS, paired.commit_of("HEAD"))) as folders:
        assert len(set(folders.values())) == 2
    assert left_behind(repository) == []


@pytest.mark.parametrize("error", [RuntimeError, SystemExit, KeyboardInterrupt])
def test_failures_leave_no_checkouts(repository, error):
    with pytest.raises(error), paired.checkouts(COMMITS):
        raise error("in the middle of it")
    assert left_behind(repository) == []


def test_a_checkout_that_fails_leaves_none_of_the_others(repository):
    with pytest.raises(SystemExit, match="worktree add"), paired.checkouts(COMMITS | {"third": "0" * 40}):
        pass
    assert left_behind(repository) == []


def test_a_build_that_fails_says_so_and_leaves_no_checkouts(repository, monkeypatch, tmp_path):
    monkeypatch.setattr(paired, "KEPT", str(tmp_path / "kept"))
    commits = {name: paired.commit_of(commit) for name, commit in COMMITS.items()}
    with pytest.raises(SystemExit, match=f"{commits['base'][:12]} does not build: .*setup.py"):
        paired.measure(commits, "encoder", "model", 1, 1, 15)
    assert left_behind(repository) == []
    assert not (tmp_path / "kept").exists()


@pytest.mark.parametrize("name", ["no-such-branch", "", "--all", "HEAD:file"])
def test_what_is_no_commit_is_refused(repository, name):
    with pytest.raises(SystemExit, match="is no commit of"):
        paired.commit_of(name)


def test_termination_leaves_no_checkouts(repository):
    """SIGTERM while a round is waited for."""
    code = f"""
        import sys
        sys.path.insert(0, {str(BENCHMARKS)!r})
        import paired, tempfile, time
        paired.ROOT, tempfile.tempdir = {str(repository)!r}, {str(repository.parent / "scratch")!r}
        def build(folder, commit):
            print("building", flush=True)
            time.sleep(60)
        paired.build = build
        sys.argv = ["paired.py", "HEAD~1", "--model", "/nowhere"]
        sys.exit(paired.main())
    """
    process = subprocess.Popen([sys.executable, "-c", textwrap.dedent(code)], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "building\n" and len(left_behind(repository)) == 3
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 143
    assert left_behind(repository) == []


# --- a run of children that only pretend

PRETEND = """
    import sys, time
    sys.path.insert(0, {benchmarks!r})
    import common
    folder = sys.argv[2]
    with open(folder + "/file") as f:
        text = f.read()
    replies = common.replies()
    seconds = {{"first": 2.0, "second": {head}}}[text]
    work = {{"seconds": seconds, "cpu_s": 1.0}}
    common.serve(replies, {{"bits": lambda: {{"sha256": "same"}}, "work": lambda: work}})
"""


@pytest.mark.parametrize("head, expected", [(1.0, "no slower"), (2.0, "no slower"), (4.0, "slower")])
def test_a_run_gives_one_line_and_its_exit_status(repository, monkeypatch, tmp_path, capfd, head, expected):
    script = tmp_path / "child.py"
    script.write_text(textwrap.dedent(PRETEND.format(benchmarks=str(BENCHMARKS), head=head)))
    child = common.Child
    monkeypatch.setattr(paired, "build", lambda folder, commit: None)
    monkeypatch.setattr(
        common, "Child", lambda name, _, arguments, threads: child(name, str(script), arguments, threads)
    )
    monkeypatch.setattr(common, "RESULTS", str(tmp_path / "results"))
    monkeypatch.setattr(sys, "argv", ["paired.py", "HEAD~1", "--model", "/nowhere", "--save"])
    before = signal.getsignal(signal.SIGTERM)
    try:
        status = paired.main()
    finally:
        signal.signal(signal.SIGTERM, before)
    said = capfd.readouterr()
    (line,) = (common.json.loads(text) for text in said.out.splitlines())
    assert line["verdict"] == expected and status == paired.STATUS[expected]
    assert line["ratio"] == 2.0 / head and line["rounds"] == 15 and line["same_bits"]
    assert line["cpu_ratio"] == 1.0
    assert (line["base"], line["head"]) == tuple(paired.commit_of(name)[:12] for name in COMMITS.values())
    assert expected in said.err and f"{line['ratio']:.3f} times as fast" in said.err
    assert (tmp_path / "results" / "paired.jsonl").read_text() == said.out
    order = [words[2] for words in map(str.split, said.err.splitlines()) if words[:1] == ["round"]]
    assert order == ["base", "head", "head", "base"] * 7 + ["base", "head"]
    assert left_behind(repository) == [] and os.sched_getaffinity(0) >= common.cores(1)


def test_the_makefile_runs_it_and_wants_a_base():
    root = Path(paired.__file__).parent.parent
    asked = subprocess.run(["make", "-n", "paired", "BASE=abc"], cwd=root, capture_output=True, text=True)
    assert asked.returncode == 0 and "benchmarks/paired.py 'abc' 'HEAD'" in asked.stdout
