"""Text that leaves this process: valid UTF-8, and what is one sentence stays on one line.

A file name that is no UTF-8 is a str with halves of surrogate pairs, which no log, socket or terminal takes; what it
quotes must not keep a sentence from being told. firesteel.Error does the same with every sentence it is given.
"""

from __future__ import annotations

import codecs
import logging
from contextlib import suppress
from typing import TextIO

from .._core import plain_text

ESCAPES = "firesteel.escapes"  # an error handler of encodings, both ways: what cannot be said becomes escapes


def one_line(text: object) -> str:
    r"""str(text) as one line of valid UTF-8.

    >>> one_line(os.fsdecode(b"/models/caf\xe9"))
    '/models/caf\\xe9'
    """
    return plain_text(str(text))


def _escape(error: UnicodeError) -> tuple[str, int]:
    if isinstance(error, UnicodeDecodeError):
        return "".join(f"\\x{byte:02x}" for byte in error.object[error.start : error.end]), error.end
    if not isinstance(error, UnicodeEncodeError):
        raise error
    lost = plain_text(error.object[error.start : error.end])
    return lost.encode("ascii", "backslashreplace").decode("ascii"), error.end


codecs.register_error(ESCAPES, _escape)


def escape_on(stream: TextIO | None) -> None:
    """From now on the stream prints what its encoding lacks as escapes, instead of raising UnicodeEncodeError."""
    with suppress(AttributeError, ValueError, OSError):  # None, not Python's own, or closed
        stream.reconfigure(errors=ESCAPES)


class Formatter(logging.Formatter):
    """Of a log whose records are a line each, tracebacks left aside."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        return plain_text(super().formatMessage(record))
