"""How long written files take: each in a process of its own, taking turns, so that a noisy moment hits all alike."""

from __future__ import annotations

import multiprocessing
import time
import zlib
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median, quantiles

from datafree.execution import peak_memory
from datafree.export import Runtime, exporters_by_suffix
from datafree.models import files_of, num_file_bytes

TURN = 0.1  # seconds of one file's turn, at least
WARM_UP = 3  # runs before the first turn
Size = tuple[int, ...] | None


class BenchError(ValueError):
    """A file that cannot be timed."""


@dataclass(frozen=True)
class Latency:
    """One file. Milliseconds of one run of a whole batch: median and quartiles over turns.

    `speed` is how many times faster than the first file, the median of ratios within a turn. `compressed_bytes` are
    those of zlib. `peak_memory_bytes` is of its process, Python and runtime included.
    """

    file: str
    runtime: str
    threads: int
    batch: int
    turns: int
    median_ms: float
    low_ms: float
    high_ms: float
    speed: float
    images_per_second: float
    bytes: int
    compressed_bytes: int
    peak_memory_bytes: int


def bench(
    files: Sequence[str | Path], *, threads: int = 1, batch: int = 1, turns: int = 20, size: Size = None
) -> list[Latency]:
    """Time files side by side on random images.

    Args:
        files: of exporters that have a runtime: .onnx, run by ONNX Runtime; packed .safetensors, whose student PyTorch
            simulates in float. The first is what the others are compared with.
        threads: of each runtime.
        batch: images in a run.
        turns: rounds; in each, every file runs for a tenth of a second or once.
        size: (C, H, W) of an input, where a file leaves that open.

    Raises:
        BenchError: no such file, not one that is run here, or one that its runtime refuses.
    """
    paths = [Path(file) for file in files]
    runtimes = [_runtime(path) for path in paths]
    with ExitStack() as stack:
        opened = [_Worker(path, r, threads, batch, size) for path, r in zip(paths, runtimes, strict=True)]
        workers = [stack.enter_context(worker) for worker in opened]
        times = [[worker.turn() for worker in workers] for _ in range(turns)]
        peaks = [worker.peak() for worker in workers]
    columns = list(zip(*times, strict=True))
    return [
        _latency(path, runtime, own, columns[0], peak, threads, batch)
        for path, runtime, own, peak in zip(paths, runtimes, columns, peaks, strict=True)
    ]


def _runtime(path: Path) -> Runtime:
    """What runs a file."""
    known = {suffix: row.runtime for suffix, row in exporters_by_suffix().items() if row.runtime}
    allowed = f"give {' or '.join(known)} files, as datafree export writes them"
    if not path.is_file():
        raise BenchError(f"{path} is not a file; {allowed}")
    if path.suffix not in known:
        raise BenchError(f"{path} is not run here; {allowed}")
    return known[path.suffix]


def _latency(
    path: Path, runtime: Runtime, seconds: Sequence[float], first: Sequence[float], peak: int, threads: int, batch: int
) -> Latency:
    low, _, high = quantiles(seconds, n=4) if len(seconds) > 1 else [seconds[0]] * 3
    return Latency(
        file=str(path),
        runtime=runtime.name,
        threads=threads,
        batch=batch,
        turns=len(seconds),
        median_ms=1e3 * median(seconds),
        low_ms=1e3 * low,
        high_ms=1e3 * high,
        speed=median(a / b for a, b in zip(first, seconds, strict=True)),
        images_per_second=batch / median(seconds),
        bytes=num_file_bytes(path),
        compressed_bytes=sum(map(_squeezed, files_of(path))),
        peak_memory_bytes=peak,
    )


def _squeezed(path: Path) -> int:
    """Bytes of a file behind zlib."""
    squeezer, total = zlib.compressobj(6), 0
    with path.open("rb") as file:
        while part := file.read(2**24):
            total += len(squeezer.compress(part))
    return total + len(squeezer.flush())


class _Worker:
    """A process that holds one opened file and runs it when asked."""

    def __init__(self, path: Path, runtime: Runtime, threads: int, batch: int, size: Size) -> None:
        context, self._path = multiprocessing.get_context("spawn"), path
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, path, runtime, threads, batch, size), daemon=True)

    def __enter__(self) -> _Worker:
        self._process.start()
        try:
            self._ask(None)  # opened and warm
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        self._process.join()

    def turn(self) -> float:
        """Seconds of one run."""
        return self._ask("turn")

    def peak(self) -> int:
        return int(self._ask("peak"))

    def _ask(self, what: str | None) -> float:
        if what is not None:
            self._pipe.send(what)
        while not self._pipe.poll(0.2) and self._process.is_alive():
            pass
        try:
            answer = self._pipe.recv() if self._pipe.poll() else None
        except EOFError:
            answer = None
        if answer is None:
            raise BenchError(
                f"{self._path}: the process that ran it ended, perhaps out of memory; time fewer files, or a smaller "
                "--batch"
            )
        if isinstance(answer, str):
            raise BenchError(answer)
        return answer


def _serve(pipe: Connection, path: Path, runtime: Runtime, threads: int, batch: int, size: Size) -> None:
    """Answer turns until the process is ended."""
    try:
        run = runtime.open(path, threads, batch, size)
        for _ in range(WARM_UP):
            run()
    except Exception as error:  # any runtime's; told on the other side
        pipe.send(f"{path} cannot be timed: {' '.join(str(error).split())[:300]}")
        return
    pipe.send(0.0)
    while True:
        pipe.send(timed(run) if pipe.recv() == "turn" else float(peak_memory()))


def timed(run: Callable[[], object]) -> float:
    """Seconds of one run, over a tenth of a second or one."""
    start, count = time.perf_counter(), 0
    while (spent := time.perf_counter() - start) < TURN or not count:
        run()
        count += 1
    return spent / count
