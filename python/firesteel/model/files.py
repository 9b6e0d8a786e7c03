"""Files of a model folder: which are there, and what they hold.

All of this room looks at files through these functions, so one rule holds for all of them: a file that is there and
cannot be opened (a link to nothing, a directory in its place, no permission) is an error, and never taken for absent.

    exists(path)    something is there by that name, be it a link to nothing
    there(path)     a file is there that can be opened; raises where something else is
    opened(path)    that file, open; FIFOs and devices are refused before they could block
    read_json, optional_json, parsed    the JSON in one
"""

from __future__ import annotations

import errno
import json
import os
import stat
from collections import Counter
from collections.abc import Iterable
from typing import BinaryIO

from .._core import CheckpointError

JSON_LIMIT = 100_000_000  # bytes; what the safetensors library allows a header, and far beyond any config

_TYPES = {
    stat.S_IFDIR: "a directory",
    stat.S_IFIFO: "a FIFO",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}
_AGAIN = "copy or download the model again"


# --- paths -----------------------------------------------------------------------------------------------------------


def path_of(model: str | os.PathLike[str], wanted: str) -> str:
    """`model` as text. Raises CheckpointError, with what is `wanted` there, for what is no path."""
    try:
        given = os.fspath(model)
    except TypeError:
        raise CheckpointError(f"model is a {type(model).__name__}; {wanted} belongs there") from None
    try:
        named = isinstance(given, str) and given != "" and b"\0" not in os.fsencode(given)
    except UnicodeEncodeError:  # half of a surrogate pair that stands for no byte
        named = False
    if not named:
        raise CheckpointError(f"model is {given!r}; {wanted} belongs there, as a string")
    return given


def absolute(given: str) -> str:
    """The path from the root. Raises CheckpointError for a relative one where the working directory was removed."""
    try:
        return os.path.abspath(os.path.expanduser(given))
    except OSError:
        raise CheckpointError(
            f"{given}: is relative to a working directory that was removed; give the path from the root"
        ) from None


def inside(folder: str, relative: object, said_by: str) -> str:
    """Joins a path that a file of the folder names, unless it would lead out of the folder."""
    if isinstance(relative, str) and "\0" not in relative and not os.path.isabs(relative):
        path = os.path.normpath(os.path.join(folder, relative))
        if path == folder or path.startswith(folder.rstrip(os.sep) + os.sep):
            return path
    raise CheckpointError(f"{os.path.join(folder, said_by)}: names {relative!r}, which is no path inside the folder")


def some(names: Iterable[object], most: int = 10) -> str:
    """`a, b, c and 4 more`."""
    names = [str(name) for name in names]
    rest = len(names) - most
    return ", ".join(names[:most]) + (f" and {rest} more" if rest > 0 else "")


# --- what is there ---------------------------------------------------------------------------------------------------


def exists(path: str) -> bool:
    """Whether anything is there by that name; what a link leads to is not asked.

    Raises CheckpointError where that cannot be told: no permission, a name too long, a disk that fails.
    """
    try:
        os.lstat(path)
    except (FileNotFoundError, NotADirectoryError, ValueError):  # ValueError: no file's name can be this text
        return False
    except OSError as error:
        raise CheckpointError(unreadable(path, error)) from None
    return True


def there(path: str) -> bool:
    """Whether a file is there by that name. Raises CheckpointError for what is there and cannot be opened as one."""
    if not exists(path):
        return False
    opened(path).close()
    return True


def folder_there(path: str) -> bool:
    """Whether a folder is there by that name. Raises CheckpointError for what is there and is none."""
    if not exists(path):
        return False
    try:
        mode = os.stat(path).st_mode
    except OSError as error:
        raise CheckpointError(unreadable(path, error)) from None
    if not stat.S_ISDIR(mode):
        raise CheckpointError(f"{path}: is {_TYPES.get(stat.S_IFMT(mode), 'a file')}; a folder belongs there")
    return True


def opened(path: str) -> BinaryIO:
    """The file, open for reading. Raises CheckpointError where it is missing, no file, or cannot be opened."""
    try:
        mode = os.stat(path).st_mode
        if not stat.S_ISREG(mode):  # opening a FIFO would wait for somebody who writes to it
            raise CheckpointError(f"{path}: is {_TYPES.get(stat.S_IFMT(mode), 'no file')}; a file belongs there")
        return open(path, "rb")
    except OSError as error:
        raise CheckpointError(unreadable(path, error)) from None


def names_in(folder: str) -> list[str]:
    """Names in the folder, sorted, without hidden ones."""
    try:
        return sorted(name for name in os.listdir(folder) if not name.startswith("."))
    except OSError as error:
        raise CheckpointError(unreadable(folder, error)) from None


def listing(folder: str) -> str:
    return some(names_in(folder), 12) or "nothing"


def unreadable(path: str, error: OSError) -> str:
    """The sentence for a file that the system does not open, or fails to read."""
    if error.errno == errno.ENOENT and os.path.islink(path):
        return f"{path}: is a link to {os.readlink(path)}, which is not there; {_AGAIN}"
    if error.errno == errno.ELOOP:
        return f"{path}: is a link that leads back to itself; {_AGAIN}"
    return f"{path}: cannot be read: {error.strerror or error}"


# --- what is in it ---------------------------------------------------------------------------------------------------


def content(path: str) -> bytes:
    """All of a file that is small: JSON, a vocabulary."""
    with opened(path) as file:
        try:
            size = os.fstat(file.fileno()).st_size
            if size > JSON_LIMIT:
                raise CheckpointError(f"{path}: has {size} bytes; the limit is {JSON_LIMIT}")
            data = file.read(JSON_LIMIT)
        except OSError as error:
            raise CheckpointError(unreadable(path, error)) from None
    if data.startswith(b"version https://git-lfs"):
        raise CheckpointError(f"{path}: is a Git LFS pointer, not the file; run: git lfs pull")
    return data


def read_json(path: str) -> dict[str, object]:
    """The JSON object in a file."""
    value = parsed(content(path), path)
    if not isinstance(value, dict):
        raise CheckpointError(f"{path}: holds a JSON {kind_of(value)}; an object ({{...}}) belongs there")
    return value


def optional_json(path: str) -> dict[str, object]:
    """As read_json; an empty object where there is no such file."""
    return read_json(path) if there(path) else {}


def parsed(data: bytes, what: str) -> object:
    """The JSON value in `data`; errors start with `what`. A key that is there twice is one of them."""

    def object_of(pairs: list[tuple[str, object]]) -> dict[str, object]:
        found = dict(pairs)
        if len(found) < len(pairs):
            twice = sorted(name for name, count in Counter(name for name, _ in pairs).items() if count > 1)
            raise CheckpointError(f"{what}: names {some(twice)} twice; one of the two would be lost")
        return found

    try:
        value = json.loads(data.decode("utf-8-sig"), object_pairs_hook=object_of)
        if b"\\u" in data:  # only escapes can bring in what is no text
            _check_text(value, what)
        return value
    except UnicodeDecodeError as error:
        raise CheckpointError(f"{what}: byte {error.start} is not UTF-8; the file is damaged or not JSON") from None
    except json.JSONDecodeError as error:
        raise CheckpointError(f"{what}: line {error.lineno}, column {error.colno}: {error.msg}") from None
    except (RecursionError, ValueError) as error:  # thousands of brackets, or of digits
        raise CheckpointError(f"{what}: is no JSON that can be read: {error}") from None


def _check_text(value: object, what: str) -> None:
    """Refuses strings that no file name, tensor name or setting can be: with a NUL or half of a surrogate pair."""
    if isinstance(value, str):
        if "\0" in value or any("\ud800" <= c <= "\udfff" for c in value):
            raise CheckpointError(f"{what}: {value!r} holds a NUL or half of a surrogate pair, which is no text")
    elif isinstance(value, dict):
        for key, item in value.items():
            _check_text(key, what)
            _check_text(item, what)
    elif isinstance(value, list):
        for item in value:
            _check_text(item, what)


def kind_of(value: object) -> str:
    """The JSON word for what `parsed` has made."""
    names = {dict: "object", list: "array", str: "string", bool: "boolean", type(None): "null"}
    return names.get(type(value), "number")
