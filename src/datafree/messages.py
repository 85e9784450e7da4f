"""What errors say is one line that a terminal can show, whatever the names in a file are made of."""

from __future__ import annotations

LONGEST = 2000  # characters


class LineError(ValueError):
    """An error about what the user gave, whose text is one line."""

    def __str__(self) -> str:
        return one_line(super().__str__())


def one_line(text: str) -> str:
    """The text without line breaks, with other unprintable characters escaped; what is very long loses its middle.

    Example:
        >>> one_line("a\\nb \\x1b[31m")
        'a b \\\\x1b[31m'
    """
    line = " ".join(text.split())
    line = "".join(x if x.isprintable() else x.encode("unicode_escape").decode() for x in line)
    return line if len(line) <= LONGEST else f"{line[: LONGEST // 2 - 10]} [...] {line[-LONGEST // 2 + 10 :]}"


def brief(value: object, *, most: int = 100) -> str:
    """A value as Python writes it, or its beginning."""
    text = repr(value)
    return text if len(text) <= most else f"{text[:most]}..."
