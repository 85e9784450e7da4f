"""How far a command is: a bar on the terminal, else lines."""

from __future__ import annotations

from collections.abc import Mapping

from datafree.app.command_line import first_begun
from datafree.app.console import note, open_console
from datafree.progress import JobProgress

ESTIMATING, WRITING, TIMING = "estimating what was lost", "writing and checking", "timing beside float"
FILE_PASSES = {WRITING: 60, TIMING: 20}  # forward passes


def job_progress(label: str = "", after: Mapping[str, int] | None = None) -> JobProgress:
    """Of one command, or of a part of it: `label` stands in front of every phase, `after` follows those of the plan.

    The first part of a command counts from its beginning, so that loading torch is no silence.
    """
    return JobProgress(label, after, console=open_console(stderr=True), say=note, begun=first_begun())
