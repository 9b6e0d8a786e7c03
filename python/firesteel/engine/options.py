"""Options that firesteel.Engine, firesteel.plan and the column functions share, checked without touching a device.

What is wrong on any machine is told by one sentence, the same wherever the option was given: for a column function that
is on Spark's driver, which may have other devices than its executors. What words mean is the C side's to say
(`_core.check_options`); here they only have to be words.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from difflib import get_close_matches

from .. import _core
from .._core import ConfigError, RequestError
from ..host.values import plain
from ..model.sentence import Sentence

TRUNCATE = ("left", "right", "error")
_UNITS = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
_UNITS |= {"KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40}


def engine_options(
    *,
    devices: object = "auto",
    parallel: object = "auto",
    dtype: object = "auto",
    max_memory: object = None,
    threads: object = None,
    cpu_path: object = None,
    config: Mapping[str, object] | None = None,
    folder: str = "config",
) -> dict[str, object]:
    """The options of firesteel.Engine as _core.Engine takes them. Raises ConfigError.

    config    the model's, where it is known: what it cannot be cut into is told too
    folder    where that config lies, for sentences
    """
    devices, parallel, dtype, max_memory, threads, cpu_path = map(
        plain, (devices, parallel, dtype, max_memory, threads, cpu_path)
    )
    words = {
        "devices": _listed(devices),
        "parallel": _word("parallel", parallel, 'a string such as "replicate" or "split"'),
        "dtype": _word("dtype", dtype, 'a string such as "fp32"'),
        "cpu_path": None,
    }
    if cpu_path is not None:
        words["cpu_path"] = _word("cpu_path", cpu_path, '"avx512", "avx2", "portable" or None')
    if threads is not None and (type(threads) is not int or not 1 <= threads <= 4096):
        raise ConfigError(f"threads is {threads!r}; a whole number from 1 to 4096, or None, belongs there")
    options = {**words, "threads": threads or 0}
    _core.check_options(**options, config=config, name=folder)
    return {**options, "max_memory": byte_count(max_memory)}


def check_truncate(value: object) -> None:
    """What a row does that is too long. Raises RequestError."""
    if value is not True and not (isinstance(value, str) and value in TRUNCATE):
        raise RequestError(f'truncate is {value!r}; True, "left", "right" or "error" belongs there')


def byte_count(value: object, name: str = "max_memory") -> int:
    """0: no limit of our own."""
    value = plain(value)
    if value is None:
        return 0
    if type(value) is int and 0 < value < 2**63:
        return value
    if isinstance(value, str):
        match = re.fullmatch(r"(\d{1,18}(?:\.\d{1,9})?)\s*([KMGT]i?B)?", value.strip(), re.IGNORECASE | re.ASCII)
        size = int(float(match[1]) * _UNITS[(match[2] or "").upper()]) if match else 0
        if 0 < size < 2**63:
            return size
    raise ConfigError(f'{name} is {value!r}; bytes or a size such as "2GB" or "512MiB" belongs there')


def _is_word(value: object) -> bool:
    return isinstance(value, str) and value.isprintable()  # no line break in a sentence, nothing that UTF-8 lacks


def _word(name: str, value: object, wanted: str) -> str:
    if not _is_word(value):
        raise ConfigError(f"{name} is {value!r}; {wanted} belongs there")
    return value


def _listed(devices: object) -> tuple[str, ...]:
    listed = (devices,) if isinstance(devices, str) else devices
    if not isinstance(listed, (list, tuple)) or not listed or not all(map(_is_word, listed)):
        raise ConfigError(f'devices is {devices!r}; a string or a list of strings belongs there, such as "cpu"')
    return tuple(listed)


# --- of a request: prompts --------------------------------------------------------------------------------------------

# What sentence-transformers knows by these names in any folder: no text, unless the folder gives one.
_PROMPTS = {"query": "", "document": ""}


def check_prompt(prompt: object, prompt_name: object) -> None:
    """What can be told of them without the folder. Raises RequestError."""
    for option, value in (("prompt", prompt), ("prompt_name", prompt_name)):
        if value is not None and not isinstance(value, str):
            raise RequestError(f"{option} is a {type(value).__name__}; a string or None belongs there")
    if prompt is not None and prompt_name is not None:
        raise RequestError(
            f"prompt is {prompt!r} and prompt_name is {prompt_name!r}; give the text, or the name of a prompt of the "
            f"folder, not both"
        )


def prompt_text(sentence: Sentence, prompt: object, prompt_name: object) -> str:
    """What goes before each text. Raises RequestError for a name that the folder lacks, and for one given as a text."""
    check_prompt(prompt, prompt_name)
    known = {**_PROMPTS, **sentence.prompts}
    if prompt_name is not None:
        if prompt_name not in known:
            close = get_close_matches(prompt_name, known, 1)
            hint = f'did you mean "{close[0]}"? ' if close else ""
            raise RequestError(
                f"prompt_name is {prompt_name!r}; {hint}the model's prompts are {', '.join(known)}, and prompt= takes "
                f"any text"
            )
        text = known[prompt_name]
    elif prompt is not None:
        if prompt and known.get(prompt, prompt) != prompt:
            raise RequestError(
                f"prompt is {prompt!r}, which is the name of one of the model's prompts; pass prompt_name={prompt!r}, "
                f"or as a text add what parts it from the row, as in {prompt + ': '!r}"
            )
        text = prompt
    else:
        text = sentence.prompts[sentence.default_prompt_name] if sentence.default_prompt_name is not None else ""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise RequestError(f"prompt {text!r} has a lone surrogate, which is no Unicode text") from None
    return text
