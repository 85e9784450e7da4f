"""How a command is stopped from outside: SIGTERM ends it as Ctrl-C does, with an exit code of its own."""

from __future__ import annotations

import signal
from types import FrameType

INTERRUPTED, TERMINATED = 130, 143  # as shells count SIGINT and SIGTERM

_received: set[int] = set()


def stop_on_sigterm() -> None:
    """Let SIGTERM, which batch systems and containers send, end the program as Ctrl-C does, not at once."""
    signal.signal(signal.SIGTERM, _unwind)


def _unwind(number: int, frame: FrameType | None) -> None:
    _received.add(number)
    raise KeyboardInterrupt


def how_stopped() -> tuple[int, str]:
    """Exit code and word for a command that a KeyboardInterrupt ended."""
    return (TERMINATED, "terminated") if signal.SIGTERM in _received else (INTERRUPTED, "interrupted")
