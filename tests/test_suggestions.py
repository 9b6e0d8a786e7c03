"""Every command that a message suggests is tried here; the test finds them in the sources, so a new one needs a line.

What cannot run without a network has the nearest that can: a `pip install` is parsed as pip parses it, and names an
extra that pyproject.toml has or a package that this environment got by that name.
"""

import ast
import functools
import importlib.metadata
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import chain_kit
import firesteel
import numpy as np
import pytest
import tiny
from firesteel import CheckpointError, ConfigError, _core
from firesteel.commands import doctor
from firesteel.model.checkpoint import Checkpoint
from firesteel.model.tokenizer import Tokenizer
from packaging.requirements import Requirement

tomllib = pytest.importorskip("tomllib", reason="Python reads TOML from 3.11 on")
HERE = Path(__file__).parent.parent
SOURCES = sorted([*HERE.glob("python/firesteel/**/*.py"), *HERE.glob("csrc/**/*.[chm]*")])
# What a command begins with, wherever it stands in a message.
HEADS = (
    r"(?<![\w./-])(?:pip3? [a-z]|git [a-z]|apt(?:-get)? [a-z]|conda [a-z]|uv [a-z]|sudo |chmod |export [A-Z]|ulimit |"
    r"curl |wget |docker |huggingface-cli|hf [a-z]|spark-submit|nvidia-smi|dmesg|modprobe |sysctl|make [a-z]+-?[a-z]*$|"
    r"python[0-9.]* -|firesteel (?:demo|doctor|plan|run)\b|install (?:firesteel|the wheel|nvidia))"
)


def messages(path):
    """(line, text) of all string literals but docstrings; {placeholders} of f-strings stay as they are written."""
    text = path.read_text(encoding="utf-8")
    if path.suffix != ".py":
        bare = re.sub(r"/\*.*?\*/|//[^\n]*", lambda match: "\n" * match[0].count("\n"), text, flags=re.DOTALL)
        for match in re.finditer(r'"(?:[^"\\\n]|\\.)*"(?:\s*"(?:[^"\\\n]|\\.)*")*', bare):
            yield bare.count("\n", 0, match.start()) + 1, re.sub(r'"\s*"', "", match[0])[1:-1].replace('\\"', '"')
        return
    tree = ast.parse(text)
    inner = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            inner.add(node.value)  # a docstring
        if isinstance(node, ast.JoinedStr):
            inner.update(node.values)
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and node not in inner:
            yield node.lineno, node.value
        if isinstance(node, ast.JoinedStr):
            parts = [
                part.value if isinstance(part, ast.Constant) else f"{{{ast.unparse(part.value)}}}"
                for part in node.values
            ]
            yield node.lineno, "".join(parts)


def suggestions():
    """(where, message, at) of every command in a message."""
    for path in SOURCES:
        for line, text in messages(path):
            for match in re.finditer(HEADS, text):
                yield f"{path.relative_to(HERE)}:{line}", text, match.start()


# --- what is tried ----------------------------------------------------------------------------------------------------

EXTRAS = tomllib.loads((HERE / "pyproject.toml").read_text())["project"]["optional-dependencies"]


def placeholders(text):
    """The text with every value that its {placeholders} can have."""
    locate = ast.parse((HERE / "python/firesteel/model/locate.py").read_text())
    calls = [node for node in ast.walk(locate) if isinstance(node, ast.Call) and ast.unparse(node.func) == "_library"]
    values = {
        "{OLDEST_JAVA}": [str(doctor.OLDEST_JAVA)],
        "{_extra(cuda)}": sorted({doctor._extra(cuda) for cuda in (11, 12, 13, 14)}),
        "{extra}": sorted({ast.literal_eval(call.args[1]) for call in calls}),
        "{library.package}>={library.oldest}": [f"{row.package}>={row.oldest}" for row in doctor.LIBRARIES],
    }
    found = [text]
    for name, known in values.items():
        assert known, name
        found = [each.replace(name, value) for each in found for value in known]
    assert not any("{" in each for each in found), f"values for the placeholders of {text!r} belong into this table"
    return sorted(set(found))


@functools.cache
def options_of_pip():
    return subprocess.run([sys.executable, "-m", "pip", "install", "--help"], capture_output=True, text=True).stdout


def pip(command):
    """`pip install` as pip reads it: options it has, and an extra or a package that is what it says."""
    for line in placeholders(command):
        options, wanted = shlex.split(line)[2:-1], Requirement(shlex.split(line)[-1])
        assert all(option in options_of_pip() for option in options), line
        if wanted.name == "firesteel":
            assert wanted.extras and wanted.extras <= EXTRAS.keys(), line
            continue
        found = importlib.metadata.distribution(wanted.name)
        assert wanted.specifier.contains(found.version, prereleases=True), (line, found.version)
        assert wanted.extras <= set(found.metadata.get_all("Provides-Extra") or ()), line


def shell(expected):
    """The command as it stands, in a shell where the soft limit on addresses is low."""

    def run(command):
        lowered = f"ulimit -S -v 8000000; {command} && ulimit -v"
        done = subprocess.run(["bash", "-c", lowered], capture_output=True, text=True)
        assert done.returncode == 0 and done.stdout.split()[-1] == expected, done

    return run


def helps(*program):
    """The program is there and has that command."""

    def run(_):
        done = subprocess.run([*program, "--help"], capture_output=True, text=True, cwd=HERE / "python")
        assert done.returncode == 0 and "usage" in done.stdout.lower(), done

    return run


def wheels(command):
    """Extras and wheels by name, of which each is one of pyproject.toml's."""
    names = re.findall(r"\[(\w+)\]|(nvidia-[\w-]+|(?<=or )-cu\d+)", command)
    assert names, command
    for extra, wheel in names:
        listed = {Requirement(row).name for rows in EXTRAS.values() for row in rows}
        assert extra in EXTRAS if extra else any(name.endswith(wheel) for name in listed), command


def java_package(command):
    """Debian's name for it, which only a network could tell; the version is the one that is asked for."""
    assert placeholders(command) == [f"apt install openjdk-{doctor.OLDEST_JAVA}-jre-headless"]


def of_the_driver(_):
    """nvidia-smi comes with the driver whose absence or silence the sentence is about."""


def lfs_pointer(_):
    """git-lfs asks a server; that the file is a pointer, as git-lfs writes it, is seen (below)."""


def pickles(_):
    """Runs in the environment that has torch (below)."""


TRIED = {  # regular expression of a command -> what tries it
    r"pip install (?:--[\w-]+ )*(?:'[^']+'|[\w.-]+)": pip,
    r"apt install [^ ,]+": java_package,
    r"install (?:firesteel|the wheel)[^,;]+": wheels,
    r"ulimit -v unlimited": shell("unlimited"),
    r"ulimit -v(?=;)": shell("8000000"),
    r"hf download": helps(sys.executable, "-m", "huggingface_hub.cli.hf", "download"),
    r"python -m firesteel\.manager": helps(sys.executable, "-m", "firesteel.manager"),
    r"firesteel demo": helps(sys.executable, "-m", "firesteel", "demo"),
    r"firesteel doctor": helps(sys.executable, "-m", "firesteel", "doctor"),
    r"firesteel plan": helps(sys.executable, "-m", "firesteel", "plan"),
    r"dmesg": helps("dmesg"),
    r"nvidia-smi": of_the_driver,
    r"git lfs pull": lfs_pointer,
    r'python -c "': pickles,
}
FOUND = list(suggestions())


def test_there_are_suggestions():
    assert len(FOUND) > 15 and {Path(where.split(":")[0]).suffix for where, _, _ in FOUND} == {".py", ".c"}


@pytest.mark.parametrize("where, text, at", FOUND, ids=[f"{where} {text[at : at + 24]}" for where, text, at in FOUND])
def test_each_command(where, text, at):
    matches = {pattern: re.compile(pattern).match(text, at) for pattern in TRIED}
    fitting = [pattern for pattern, match in matches.items() if match]
    assert fitting, f"{where} suggests {text[at : at + 60]!r}: it belongs into TRIED, with what tries it"
    for pattern in fitting:
        TRIED[pattern](matches[pattern][0])


@pytest.mark.parametrize(
    "text",
    [
        "run: git clone it",
        "conda install firesteel",
        "sudo reboot",
        "python3 -m venv x",
        "uv pip install x",
        "hf auth login",
    ],
)
def test_a_new_command_needs_a_line(text):
    found = [match.start() for match in re.finditer(HEADS, text)]
    assert found and not any(re.compile(pattern).match(text, found[0]) for pattern in TRIED)


def test_settings_that_messages_name_exist():
    known = {f"FIRESTEEL_{knob['name']}" for knob in _core.knobs()}
    readme = (HERE / "README.md").read_text(encoding="utf-8")
    for path in SOURCES:
        for line, text in messages(path):
            for name in re.findall(r"FIRESTEEL_[A-Z][A-Z_]+[A-Z]\b", text):
                assert name in known or f"{name}" in readme, f"{path.relative_to(HERE)}:{line}: {name}"


POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:{}\nsize 90868376\n".format("a" * 64)


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json", "vocab.txt", "special_tokens_map.json"])
def test_a_pointer_of_git_lfs(tmp_path, name):
    folder = tiny.write(tmp_path / "m")
    if name == "vocab.txt":
        (folder / "tokenizer.json").unlink()
    (folder / name).write_text(POINTER)
    with pytest.raises(CheckpointError, match="git lfs pull"):
        Tokenizer(Checkpoint.open(folder))


def run_the_line(error, folder):
    """Opening `folder` fails with a command, which is run as it stands."""
    with pytest.raises(error) as raised:
        Checkpoint.open(folder)
    command = str(raised.value)[str(raised.value).index("python -c") :]
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    done = subprocess.run(["bash", "-c", command], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, (command, done.stderr)


def pickled(path):
    """model.safetensors -> pytorch_model.bin, in the folder `path`."""
    import torch
    from safetensors.torch import load_file

    torch.save(load_file(path / "model.safetensors"), path / "pytorch_model.bin")
    (path / "model.safetensors").unlink()


MODELS = [("bert", 0), ("roberta", 0), ("roberta", 3), ("distilbert", 3)]


@pytest.mark.reference
@pytest.mark.parametrize("kind, labels", MODELS, ids=str)
def test_the_line_that_converts_pickles(tmp_path, kind, labels):
    """The message's command, in a folder whose name needs quoting; of a classifier it keeps the head."""
    folder = tiny.write_architecture(tmp_path / "it's a model", kind, labels=labels)
    tiny.write_tokenizer(folder)
    rows = tiny.rows(1, (1, 5, 17))

    def computed():
        with firesteel.Engine(folder, threads=1) as engine:
            logits = [engine.classify(rows, raw=True)] if labels else []
            return [*engine.hidden_states(rows), *logits]

    right = computed()
    assert not labels or right[-1].shape == (3, labels)
    pickled(folder)
    run_the_line(CheckpointError, folder)
    for found, expected in zip(computed(), right, strict=True):
        np.testing.assert_array_equal(found, expected)


@pytest.mark.reference
def test_the_line_that_converts_a_module(tmp_path):
    listed = [("Dense", 16, 8, "Tanh"), ("LayerNorm", 8)]
    folder = chain_kit.write(tmp_path / "it's a model", listed)
    with firesteel.Engine(folder, threads=1) as engine:
        right = engine.embed(["the table"])
    for module in ("2_Dense", "3_LayerNorm"):
        pickled(folder / module)
    for _ in listed:  # a command for each
        run_the_line(CheckpointError, folder)
    with firesteel.Engine(folder, threads=1) as engine:
        np.testing.assert_array_equal(engine.embed(["the table"]), right)


@pytest.mark.reference
@pytest.mark.parametrize("place", ["first", "last"])
def test_the_line_that_makes_a_folder_of_each_route(tmp_path, place):
    """sentence-transformers' own asymmetric folders: the routes' vectors are those of encode_query, encode_document."""
    library = pytest.importorskip("sentence_transformers")
    modules = library.sentence_transformer.modules
    base = tiny.write(tmp_path / "base", hidden=16, heads=2, inner=24, layers=1)
    common = [modules.Transformer(str(base)), modules.Pooling(16, "mean")]
    routes = [[modules.Dense(16, 8)], [modules.Dense(16, 8), modules.Normalize()]]
    if place == "first":
        routes, common = [[*common, *route] for route in routes], []
    router = modules.Router.for_query_document(*routes)
    asked = {"query": "date: ", "document": ""}
    model = library.SentenceTransformer(modules=[*common, router], device="cpu", prompts=asked)
    folder = tmp_path / "it's a model"
    model.save(str(folder), create_model_card=False)
    run_the_line(ConfigError, folder)
    texts = ["the first row", "a date"]
    for route, encode in (("query", model.encode_query), ("document", model.encode_document)):
        with firesteel.Engine(f"{folder}-{route}", threads=1) as engine:
            assert tiny.error_per_row(engine.embed(texts), encode(texts)) < 1e-5
