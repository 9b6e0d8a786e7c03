"""README.md says what the X-lists say: the tables are made from the lists, and a failing test prints the right one."""

import re
from pathlib import Path

import pytest
from firesteel import _core

README = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")


def knob_table() -> str:
    rows = [f"| `FIRESTEEL_{k['name']}` | {k['default'] or '(empty)'} | {k['meaning']} |" for k in _core.knobs()]
    return "\n".join(["| knob | default | what it does |", "| --- | --- | --- |", *rows])


def row_code_table() -> str:
    rows = [f"| `{c['code']}` | {c['meaning']} |" for c in _core.row_codes()]
    return "\n".join(["| row error | what it means |", "| --- | --- |", *rows])


@pytest.mark.parametrize("table", [knob_table, row_code_table], ids=lambda t: t.__name__)
def test_table_is_made_from_the_list(table):
    assert table() in README, f"README.md should hold:\n\n{table()}\n"


def test_readme_python_examples_are_valid_python():
    blocks = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    assert len(blocks) >= 3
    for block in blocks:
        compile(block, "README.md", "exec")


def test_every_public_name_is_documented():
    import firesteel

    for name in firesteel.__all__:
        thing = getattr(firesteel, name)
        assert name.startswith("__") or (thing.__doc__ or "").strip(), f"firesteel.{name} has no docstring"


def test_docstring_of_every_core_function():
    for owner in (_core, _core.Engine, _core.Job, _core.Server, _core.Client):
        for name, thing in vars(owner).items():
            if not name.startswith("_") and callable(thing):
                assert (thing.__doc__ or "").strip(), f"_core {name} has no docstring"
