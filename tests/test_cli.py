"""The commands: what they say and their exit codes. run and the demo have files of their own."""

import subprocess
import sys
import warnings

import pytest
from firesteel.commands import cli, doctor
from firesteel.host.text import one_line


def command(*arguments: object, capsys) -> tuple[int, str, str]:
    """(exit code, stdout, stderr) of one command in this process."""
    try:
        code = cli.main([str(argument) for argument in arguments])
    except SystemExit as left:  # argparse leaves this way
        code = left.code
    said = capsys.readouterr()
    return code, said.out, said.err


# --- help and doctor -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments",
    [["--help"], ["demo", "--help"], ["doctor", "--help"], ["plan", "--help"], ["run", "--help"]],
    ids=" ".join,
)
def test_help_documents_the_exit_codes(arguments, capsys):
    code, said, _ = command(*arguments, capsys=capsys)
    assert code == 0
    assert [f"\n  {number:<5}" in said for number in (0, 1, 2, 130)] == [True] * 4


@pytest.mark.parametrize("category", [UserWarning, RuntimeWarning, FutureWarning])
@pytest.mark.parametrize("text", ["the head is left out", "two\nlines", "caf\udce9"], ids=ascii)
def test_a_warning_is_one_line_without_source(text, category, capsys, monkeypatch):
    def warning(*_):
        warnings.warn(text, category, stacklevel=1)
        return 0

    monkeypatch.setattr(cli, "_doctor", warning)
    shown = warnings.showwarning
    code, said, trouble = command("doctor", capsys=capsys)
    assert (code, said) == (0, "") and warnings.showwarning is shown
    assert trouble == f"firesteel: {one_line(text)}\n"


def test_no_command_is_exit_code_2(capsys):
    code, _, trouble = command(capsys=capsys)
    assert code == 2 and "COMMAND" in trouble and trouble.count("\n") == 1


def test_python_m_firesteel_leaves_with_the_code():
    done = subprocess.run([sys.executable, "-m", "firesteel", "run"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 2 and "Traceback" not in done.stderr


def test_doctor_tells_what_there_is(capsys):
    code, said, _ = command("doctor", capsys=capsys)
    assert code == 0
    for words in ("path portable", "may be used", "GiB", "numpy ", "pyarrow ", "tokenizers ", "pyspark ", "java "):
        assert words in said, f"{words!r} is missing:\n{said}"
    assert "chosen" in said and "firesteel can compute here" in said


def test_doctor_tells_what_is_missing_and_how_to_get_it(capsys, monkeypatch, tmp_path):
    libraries = (doctor.Library("no-such-package", "2.0", ""), doctor.Library("numpy", "99", "dreams"))
    monkeypatch.setattr(doctor, "LIBRARIES", (*libraries, doctor.Library("pyspark", "3.5", "Spark", imported=False)))
    monkeypatch.setenv("JAVA_HOME", str(tmp_path))
    monkeypatch.setenv("FIRESTEEL_THREDS", "4")
    code, said, _ = command("doctor", capsys=capsys)
    assert code == 1
    assert "not found: pip install 'no-such-package>=2.0'" in said
    assert "is older than 99: pip install 'numpy>=99' (only dreams needs it)" in said
    assert f"{tmp_path}/bin/java (by JAVA_HOME={tmp_path}) does not run" in said and "openjdk-17" in said
    assert "FIRESTEEL_THREDS" in said and "there is no such knob" in said


JAVAS = [
    ('openjdk version "17.0.9" 2023', True),
    ('java version "21" 2023', True),
    ('openjdk version "1.8.0_392"', False),
    ('openjdk version "11.0.2"', False),
    ("what is it", False),
]


@pytest.mark.parametrize(("says", "fine"), JAVAS, ids=[says for says, _ in JAVAS])
def test_java_is_judged_by_its_version(says, fine, tmp_path, monkeypatch):
    (tmp_path / "bin").mkdir()
    program = tmp_path / "bin" / "java"
    program.write_text(f"#!/bin/sh\necho '{says}' >&2\n")
    program.chmod(0o755)
    monkeypatch.setenv("JAVA_HOME", str(tmp_path))
    found, problem = doctor.java()
    assert (found is not None, problem is None) == (fine, fine)
    assert fine or "install one" in problem


def test_no_java_at_all(monkeypatch, tmp_path):
    monkeypatch.delenv("JAVA_HOME", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert doctor.java()[0] is None and "no java is on the PATH" in doctor.java()[1]
