"""What text data of every kind begins as: three splits, and raw bytes that need not be UTF-8."""

import re

SPLITS = ("train", "validation", "test")


def lines_of(content: bytes) -> list[bytes]:
    """The lines of a text file, without their ends (LF or CR LF); the last may lack its end.

    >>> lines_of(b"one\\r\\ntwo"), lines_of(b"\\n"), lines_of(b"")
    ([b'one', b'two'], [b''], [])
    """
    lines = content.split(b"\n")
    if not lines[-1]:
        lines.pop()
    return [line.removesuffix(b"\r") for line in lines]


def text_of(line: bytes) -> str:
    """A line as text; what is no UTF-8 becomes U+FFFD."""
    return line.decode(errors="replace").strip()


def is_utf8(line: bytes) -> bool:
    """Whether a line is UTF-8."""
    try:
        line.decode()
    except UnicodeDecodeError:
        return False
    return True


def words_alone(text: str) -> str:
    """Text without case and punctuation, by which repetitions are found.

    >>> words_alone("Click the 'OK' button!")
    'click the ok button'
    """
    return re.sub(r"\W+", " ", text.lower()).strip()
