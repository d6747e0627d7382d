"""Measuring two sides in one run: alternating times, memory per process."""

import json
import multiprocessing
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch


def synchronize() -> None:
    """Wait for the GPU, where there is one."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def paired_ratio(ours: Callable, theirs: Callable, rounds: int,
                 warmup: int = 2,
                 clock: Callable = time.perf_counter) -> dict[str, Any]:
    """Time two functions in turn.

    The order alternates from round to round, so that neither a drift of the
    machine's speed nor the warmth of its caches favours a side.

    Args:
        ours: Numerator.
        theirs: Denominator.
        rounds: How many pairs to time.
        warmup: How many pairs to run before.
        clock: Gives seconds; ``time.process_time`` counts those of the CPU,
            on a machine that others use.

    Returns:
        Median ``ratio`` over the pairs, all ratios, and the median seconds
        of each side.
    """

    def seconds(function: Callable) -> float:
        synchronize()
        start = clock()
        function()
        synchronize()
        return clock() - start

    times: list[tuple[float, float]] = []
    for i in range(warmup + rounds):
        if i % 2:
            pair = seconds(ours), seconds(theirs)
        else:
            pair = tuple(reversed((seconds(theirs), seconds(ours))))
        times.append(pair)
    times = times[warmup:]
    ratios = [a / b for a, b in times]
    return dict(
        ratio=statistics.median(ratios),
        ratios=ratios,
        ours_s=statistics.median(a for a, _ in times),
        theirs_s=statistics.median(b for _, b in times),
        rounds=rounds)


def _measure(build: Callable, args: tuple, queue: Any) -> None:
    torch.set_num_threads(1)
    step = build(*args)
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        # MMEngine's log starts the peak anew in the midst of a step
        torch.cuda.reset_peak_memory_stats = lambda *_: None
        before = torch.cuda.memory_allocated()
        step()
        queue.put(torch.cuda.max_memory_allocated() - before)
        return
    # the peak starts anew
    Path('/proc/self/clear_refs').write_text('5', encoding='utf-8')
    before = _resident('VmRSS')
    step()
    queue.put(_resident('VmHWM') - before)


def _resident(field: str) -> int:
    """Bytes of a field of Linux's account of this process."""
    status = Path('/proc/self/status').read_text(encoding='utf-8')
    for line in status.splitlines():
        if line.startswith(f'{field}:'):
            return int(line.split()[1]) * 1024
    raise ValueError(f'{field!r} is not in /proc/self/status: measure the '
                     'peak memory on Linux, or on a GPU.')


def peak_memory(build: Callable, *args: Any) -> int:
    """Bytes that one step adds to the peak of a fresh process.

    Args:
        build: Makes a step, a function without arguments; can be pickled.
        *args: For ``build``.

    Returns:
        Resident bytes on a CPU, allocated bytes on a GPU.
    """
    context = multiprocessing.get_context('spawn')
    queue = context.Queue()
    process = context.Process(target=_measure, args=(build, args, queue))
    process.start()
    peak = queue.get()
    process.join()
    return peak


def machine() -> dict[str, Any]:
    """What the figures were measured with."""
    from gap_plugin.host import versions  # after what is timed
    return dict(
        versions=versions(),
        python=platform.python_version(),
        processor=platform.machine(),
        threads=torch.get_num_threads(),
        gpu=torch.cuda.get_device_name()
        if torch.cuda.is_available() else None)


def read(path: str) -> list[dict]:
    """Rows that :func:`write` has kept; none if there is no file."""
    kept = Path(path)
    return (json.loads(kept.read_text(encoding='utf-8'))['rows']
            if kept.exists() else [])


def write(path: str, rows: list[dict]) -> None:
    """Keep the raw figures, with what they were measured on."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_text(
        json.dumps(dict(machine=machine(), rows=rows), indent=1) + '\n',
        encoding='utf-8')
    print(f'wrote {path}')
