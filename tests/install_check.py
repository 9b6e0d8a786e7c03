"""notebooks/init/install.sh with real packages, into empty environments and such as Databricks' runtimes have.

    python tests/install_check.py [--wheel dist/firesteel-....whl]      minutes, hundreds of MB: `make install-check`

For each environment: a wheelhouse by build_tools/wheelhouse.py to go with what is installed, the script, nothing else
changed, the script once more, then a trial in which a tiny model embeds texts through everything that meets another
package: the tokenizer, the conversions to and from Arrow and pandas, and in a runtime's likeness Spark 3.5 itself.
Pythons that are not at hand are named and left to abi3audit, which has seen the wheel that `make wheel` makes.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent


class Environment(NamedTuple):
    name: str
    python: str
    packages: tuple[str, ...]  # before the script; with pyspark among them the trial has a Spark job


OLD = ("numpy==1.23.5", "pandas==1.5.3", "typing-extensions==4.4.0", "requests==2.28.1", "packaging==22.0")
ENVIRONMENTS = (
    Environment("empty", "3.10", ()),
    Environment("empty", "3.11", ()),
    Environment("empty", "3.12", ()),
    Environment("empty", "3.13", ()),
    Environment(
        "as 14.3 LTS, its tokenizers the oldest",
        "3.10",
        (*OLD, "pyarrow==8.0.0", "tokenizers==0.13.0", "pyspark==3.5.*"),
    ),
    Environment("as 15.4 LTS", "3.11", (*OLD, "pyarrow==14.0.1", "pyspark==3.5.*")),
    Environment("as 15.4 LTS, the oldest pyarrow of its Python", "3.11", (*OLD, "pyarrow==10.0.1")),
)

TRIAL = """
import pathlib, sys
import firesteel, numpy as np, pyarrow as pa, tiny

assert pathlib.Path(firesteel.__file__).is_relative_to(sys.prefix), firesteel.__file__
model = str(tiny.write("model", seed=3, sentence={}))
texts = ["the date", "", None, "array column " * 40] * 50
with firesteel.Engine(model) as engine:
    alone = [None if text is None else engine.embed([text])[0].tolist() for text in texts[:4]]
    ids = engine.embed([[2, 7, 9, 3]])[0].tolist()
expected = alone * 50
assert all(abs(np.linalg.norm(vector) - 1) < 1e-5 for vector in alone if vector is not None)
table = pa.table({"text": texts})
pa.parquet = __import__("pyarrow.parquet").parquet
pa.parquet.write_table(table, "in.parquet")
from firesteel.commands import cli
assert cli.main(["run", model, "--input", "in.parquet", "--column", "text", "--output", "out.parquet"]) == 0
"""

PANDAS = """
import pandas as pd
from firesteel.table import columns

rows, faults = columns.rows_of(columns.readable(columns.from_series(pd.Series(texts, dtype=object))))
assert rows == texts and not faults
flat, _ = columns.rows_of(columns.readable(columns.from_series(pd.Series([np.array([1, 2]), None, np.array([3])]))))
matrix, good = np.arange(6, dtype=np.float32).reshape(3, 2), np.array([True, False, True])
found = columns.to_series(columns.vectors(matrix, good))
assert found[0].tolist() == [0, 1] and found[1] is None and found[2].tolist() == [4, 5]
results = columns.vectors(matrix, good)
frame = columns.to_frame(
    columns.details(results, np.zeros(3, bool), [(1, "TOO_LONG", "so")], np.ones(3, np.int32), np.zeros(3, bool))
)
assert frame["error_code"].tolist() == [None, "TOO_LONG", None] and frame["prompt_tokens"].tolist() == [1, 1, 1]
"""

SPARK = """
import os
os.environ |= {"PYSPARK_PYTHON": sys.executable, "SPARK_LOCAL_IP": "127.0.0.1"}
os.environ["FIRESTEEL_MANAGER_DIR"] = os.path.abspath("m")
import pyspark
from pyspark.sql import SparkSession

spark = SparkSession.builder.master("local[2]").config("spark.ui.enabled", "false").getOrCreate()
spark.sparkContext.setLogLevel("ERROR")
df = spark.createDataFrame(list(enumerate(texts)), "id int, text string").repartition(3)

def column(df):
    found = {row.id: row.v for row in df.collect()}
    return [found[i] for i in range(len(texts))]

for manager in (True, False):
    plain = firesteel.embed_udf(model, manager=manager)
    detailed = firesteel.embed_udf(model, manager=manager, details=True)
    assert column(df.select("id", plain("text").alias("v"))) == expected
    rows = column(df.select("id", detailed("text").alias("v")))
    assert [row.result for row in rows] == expected and rows[3].finish_reason == "length", rows[3]
    assert column(firesteel.score(df, plain, "text", output="v")) == expected
    states = column(df.select("id", firesteel.hidden_states_udf(model, manager=manager)("text").alias("v")))
    assert len(states[0][0]) == 48 and states[2] is None
numbers = spark.createDataFrame([(i, [2, 7, 9, 3]) for i in range(len(texts))], "id int, ids array<int>")
assert column(numbers.select("id", firesteel.embed_udf(model)("ids").alias("v"))) == [ids] * len(texts)
firesteel.register(spark, "embed", firesteel.embed_udf(model))
df.createOrReplaceTempView("t")
assert spark.sql("SELECT count(embed(text)) AS n FROM t").first().n == 150
assert firesteel.warm(spark, model) == 1
firesteel.release(spark)
spark.stop()
print("Spark", pyspark.__version__)
"""


def run(*command: object, **more: object) -> str:
    done = subprocess.run(
        [str(part) for part in command], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **more
    )
    if done.returncode:
        sys.exit(f"{' '.join(map(str, command[:6]))} ...\n{done.stdout[-6000:]}")
    return done.stdout


def python_at_hand(version: str) -> str | None:
    """By name on the PATH, or among pyenv's."""
    if f"{sys.version_info.major}.{sys.version_info.minor}" == version:
        return sys.executable
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    for path in [*pyenv.glob(f"{version}.*/bin/python"), shutil.which(f"python{version}")]:
        if path and subprocess.run([path, "-c", "import venv, ensurepip"], capture_output=True).returncode == 0:
            return str(path)
    return None


def check(environment: Environment, base: str, wheel: Path, folder: Path) -> str:
    """The whole story of one environment; gives what it can say of it."""
    run(base, "-m", "venv", folder / "venv")
    python = folder / "venv" / "bin" / "python"
    pip = [python, "-m", "pip", "--disable-pip-version-check"]
    if environment.packages:
        run(*pip, "install", "--quiet", "wheel", *environment.packages)
    before = run(*pip, "list", "--format=freeze").splitlines()
    before = [line for line in before if "==" in line]
    (folder / "frozen.txt").write_text("\n".join(before))
    version = f"{environment.python}"
    pins = ["--pins", folder / "frozen.txt"] if environment.packages else []
    maker = [sys.executable, ROOT / "build_tools" / "wheelhouse.py", "--wheel", wheel, "--python", version, *pins]
    house = run(*maker, "--out", folder / "house").splitlines()[-1]

    plain = {k: v for k, v in os.environ.items() if not k.startswith(("FIRESTEEL_", "PYTHON", "PIP_"))}
    settings = {"FIRESTEEL_WHEEL": folder / "house", "FIRESTEEL_PYTHON": python, "FIRESTEEL_LOG": folder / "log"}
    settings = plain | {name: str(value) for name, value in settings.items()} | {"PIP_INDEX_URL": "http://127.0.0.1:9/"}
    said = run("bash", ROOT / "notebooks" / "init" / "install.sh", env=settings).splitlines()[-1]
    after = run(*pip, "list", "--format=freeze").splitlines()
    if lost := set(before) - set(after):
        sys.exit(f"{environment.name}: the script changed {sorted(lost)}")
    again = run("bash", ROOT / "notebooks" / "init" / "install.sh", env=settings)
    if "nothing to do" not in again:
        sys.exit(f"{environment.name}: the second run was no short one:\n{again}")

    shutil.copy(ROOT / "tests" / "tiny.py", folder)
    shutil.copytree(ROOT / "tests" / "models", folder / "models")
    has = " ".join(environment.packages)
    trial = TRIAL + (PANDAS if "pandas" in has else "") + (SPARK if "pyspark" in has else "")
    (folder / "trial.py").write_text(trial)
    told = run(python, "trial.py", cwd=folder, env=plain).splitlines()[-1]
    return f"{house}\n    {said.partition('firesteel: ')[2]}; embeds{', ' + told if 'pyspark' in has else ''}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--wheel", type=Path, help="default: the one in dist/, which make wheel makes")
    parser.add_argument("--only", default="", help="environments whose name or Python has this in it")
    given = parser.parse_args()
    wheels = [given.wheel] if given.wheel else sorted((ROOT / "dist").glob("firesteel-*.whl"))
    if len(wheels) != 1 or not wheels[0].is_file():
        parser.error(f"one wheel is wanted; there are {list(map(str, wheels))}: make wheel, or name one by --wheel")
    checked = 0
    for environment in ENVIRONMENTS:
        title = f"Python {environment.python}, {environment.name}"
        if given.only not in title:
            continue
        base = python_at_hand(environment.python)
        if base is None:
            print(f"{title}: not at hand, left to abi3audit", flush=True)
            continue
        with tempfile.TemporaryDirectory() as folder:
            print(f"{title}: {check(environment, base, wheels[0].resolve(), Path(folder))}", flush=True)
        checked += 1
    if not checked:
        sys.exit(f"no environment was checked: none of their Pythons is at hand, or none is called {given.only!r}")


if __name__ == "__main__":
    main()
