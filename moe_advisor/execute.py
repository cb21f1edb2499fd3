"""Runs one function over many inputs: in processes of this machine, or on a Dask cluster.

Outcomes come back in any order with the number of their task, so that what is made of them can't
depend on the executor. A worker that dies costs a retry of the task it held; a task that fails, or
kills its worker again and again, gives a `Failed` and the others go on.
"""

import contextlib
import os
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib import import_module
from multiprocessing import get_context, resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from types import FrameType
from typing import Any, Generic, Protocol, TypeVar

from moe_advisor import __version__, interrupts
from moe_advisor.errors import ConfigError, InputError

TRIES = 3
"""How often a task may lose its worker: memory runs out twice by accident, not three times."""

CONNECT_S = 30
"""A Dask scheduler on the same network answers within a second."""

STOP_S = 2.0
"""So long a worker gets to remove its temporary files when it is stopped."""

START_S = 300.0
"""A worker that has not imported its work by then never will; a second is usual."""

_STDERR = 2
"""The descriptor, which libraries write to as well."""

_WORKER_ENVIRONMENT = {
    "POLARS_MAX_THREADS": "1",  # the processes are the parallelism
    "PYTHONDONTWRITEBYTECODE": "1",  # a stopped worker must leave no half-written bytecode
}

T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True, slots=True)
class Failed:
    """A task without a value: one line that says why."""

    reason: str


Outcome = tuple[int, R | Failed]


class Executor(Protocol):
    """Runs a picklable function over picklable tasks."""

    def run(self, work: Callable[[T], R], tasks: Sequence[T]) -> Iterator[tuple[int, R | Failed]]:
        """The outcome of each task with its number, as they come. Closing it stops all work."""


# ------------------------------------------------------------------------------ local processes


@dataclass
class _Worker(Generic[T]):
    process: BaseProcess
    pipe: Connection
    task: int | None = None
    deadline: float = float("inf")
    up: bool = False


class _Up:
    """What a worker says first: from here on the time is its task's."""


class LocalProcesses:
    """Processes of this machine. `timeout_s` limits one task; None for no limit."""

    def __init__(self, jobs: int, timeout_s: float | None = None) -> None:
        self._jobs = max(jobs, 1)
        self._timeout_s = timeout_s

    def run(self, work: Callable[[T], R], tasks: Sequence[T]) -> Iterator[tuple[int, R | Failed]]:
        """See `Executor.run`."""
        waiting = deque(range(len(tasks)))
        tries = [0] * len(tasks)
        workers: list[_Worker[T]] = []
        lost, done = 0, 0
        try:
            while waiting or any(worker.task is not None for worker in workers):
                while waiting and len(workers) < min(self._jobs, len(tasks)):
                    with interrupts.held():  # else nobody would stop it
                        workers.append(self._started(work))
                for worker in workers:
                    if worker.task is None and waiting:
                        number = waiting.popleft()
                        worker.task = number
                        worker.deadline = self._deadline(worker)
                        with contextlib.suppress(OSError):  # dead already: seen below
                            worker.pipe.send(tasks[number])
                for worker, outcome in self._outcomes(workers):
                    number = worker.task if worker.task is not None else -1
                    worker.task = None
                    if outcome is not None:
                        done += 1
                        yield number, outcome
                    elif number >= 0:
                        workers.remove(worker)
                        tries[number] += 1
                        lost += 1
                        if not done and lost >= TRIES * self._jobs and len(tasks) > self._jobs:
                            raise InputError(
                                f"no process gets through its first input ({_how(worker.process)})"
                                ": out of memory? Try --jobs 1; a program that calls analyze must"
                                " guard its own start with if __name__ == '__main__'"
                            )
                        if tries[number] < TRIES:
                            waiting.append(number)
                        else:
                            yield number, Failed(_died(worker.process))
                    else:
                        workers.remove(worker)
                for worker in [one for one in workers if one.deadline < time.monotonic()]:
                    if worker.task is not None:
                        _stop([worker])
                        workers.remove(worker)
                        yield worker.task, Failed(_too_long(self._timeout_s or 0.0))
        finally:
            _stop(workers)

    def _started(self, work: Callable[[T], R]) -> _Worker[T]:
        context = get_context("spawn")
        ours, theirs = context.Pipe()
        process = context.Process(target=_serve, args=(theirs, work), daemon=True)
        before = {name: os.environ.get(name) for name in _WORKER_ENVIRONMENT}
        for name, value in _WORKER_ENVIRONMENT.items():
            os.environ.setdefault(name, value)
        # Ctrl-C reaches every process of the terminal: only this one answers, also while the worker
        # is still importing. The mask is inherited, unless the first start of multiprocessing's
        # tracker unblocks it on the way: hence before.
        resource_tracker.ensure_running()
        unmasked = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, unmasked)
            for name, earlier in before.items():
                if earlier is None:
                    del os.environ[name]
        theirs.close()
        return _Worker(process, ours)

    def _deadline(self, worker: _Worker[T]) -> float:
        if self._timeout_s is None:
            return float("inf")
        return time.monotonic() + self._timeout_s + (0.0 if worker.up else START_S)

    def _outcomes(self, workers: Sequence[_Worker[T]]) -> list[tuple[_Worker[T], Any]]:
        """What came back; None for a worker that died."""
        left = min((worker.deadline for worker in workers), default=float("inf"))
        timeout = min(max(left - time.monotonic(), 0.0), interrupts.WAIT_S)
        ready = set(wait([worker.pipe for worker in workers], timeout))
        found: list[tuple[_Worker[T], Any]] = []
        for worker in workers:
            if worker.pipe not in ready:
                continue
            try:
                said = worker.pipe.recv()
                if isinstance(said, _Up):
                    worker.up = True
                    worker.deadline = self._deadline(worker)
                    continue
                found.append((worker, said))
                worker.deadline = float("inf")
            except (EOFError, OSError):
                worker.process.join(STOP_S)
                found.append((worker, None))
        return found


def _serve(pipe: Connection, work: Callable[[Any], Any]) -> None:
    """The life of a worker: a task in, its outcome out, until the pipe closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _leave)
    with contextlib.suppress(OSError):  # nobody waits any more: seen below
        pipe.send(_Up())
    while True:
        try:
            task = pipe.recv()
        except (EOFError, OSError):
            signal.signal(signal.SIGTERM, interrupts.deaf)  # it is leaving
            return
        pipe.send(guarded(work, task))


def _leave(number: int, frame: FrameType | None) -> None:
    """Ends a worker that is told to stop, once: a terminal and the parent may both tell it."""
    del frame
    signal.signal(number, interrupts.deaf)  # a second one would break into the clean-up
    # Where it breaks into a finaliser, Python prints the exit and goes on. The parent says what
    # happened, and kills a worker that goes on.
    silent = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silent, _STDERR)
    os.close(silent)
    sys.exit(128 + number)  # runs the clean-up of temporary folders


def guarded(work: Callable[[T], R], task: T) -> R | Failed:
    """The value of work(task), or why there is none; ConfigError is the user's and goes on."""
    try:
        return work(task)
    except InputError as error:
        return Failed(str(error))
    except MemoryError:
        return Failed("memory ran out")
    except ConfigError as error:
        return Failed(f"{_OPTION}{error}")
    except BaseException as error:
        # polars panics with an exception that is no Exception. What it says may hold data.
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        return Failed(f"internal error {type(error).__name__}: please report it")


def timed(work: Callable[[T], R], task: T, timeout_s: float | None) -> R | Failed:
    """As `guarded`; given up after `timeout_s`."""
    if timeout_s is None:
        return guarded(work, task)
    found: list[R | Failed] = []
    thread = threading.Thread(target=lambda: found.append(guarded(work, task)), daemon=True)
    thread.start()
    thread.join(timeout_s)
    return found[0] if found else Failed(_too_long(timeout_s))


def _too_long(timeout_s: float) -> str:
    return f"took longer than {timeout_s:g} s"


_OPTION = "\0option\0"
"""Marks a failure that no other task escapes: the options are wrong, not the input."""


def raise_if_option(failed: Failed) -> None:
    """Raises ConfigError where a task failed by the options that all tasks share."""
    if failed.reason.startswith(_OPTION):
        raise ConfigError(failed.reason.removeprefix(_OPTION))


def _how(process: BaseProcess) -> str:
    code = process.exitcode
    killed = code is not None and code < 0
    return f"signal {signal.Signals(-(code or 0)).name}" if killed else f"exit {code}"


def _died(process: BaseProcess) -> str:
    return f"its process died {TRIES} times ({_how(process)}): out of memory? Try --jobs 1"


def _stop(workers: Sequence[_Worker[Any]]) -> None:
    with interrupts.held():
        for worker in workers:
            if worker.task is None:
                worker.pipe.close()
            else:
                worker.process.terminate()
        deadline = time.monotonic() + STOP_S
        for worker in workers:
            worker.process.join(max(deadline - time.monotonic(), 0.0))
            if worker.process.is_alive():
                worker.process.kill()
                worker.process.join()
            worker.pipe.close()


# ----------------------------------------------------------------------------------------- Dask


class DaskCluster:
    """An existing Dask cluster whose workers see the same files and have the same moe-advisor.

    `timeout_s` limits one task; its thread on the worker can't be ended and goes on unheard.
    """

    def __init__(self, scheduler: str, timeout_s: float | None = None) -> None:
        self._scheduler = scheduler
        self._timeout_s = timeout_s

    def run(self, work: Callable[[T], R], tasks: Sequence[T]) -> Iterator[tuple[int, R | Failed]]:
        """See `Executor.run`. Raises ConfigError where the cluster can't be used."""
        try:
            distributed: Any = import_module("distributed")
        except ImportError:
            raise ConfigError(
                "--executor dask: needs dask.distributed; install moe-advisor[dask]"
            ) from None
        try:
            client = distributed.Client(self._scheduler, timeout=CONNECT_S, set_as_default=False)
        except (OSError, ValueError) as error:
            raise ConfigError(
                f"--scheduler: no Dask scheduler answers there ({type(error).__name__}); "
                "give its address, for example tcp://host:8786"
            ) from None
        futures: dict[Any, int] = {}
        try:
            _check_workers(client)
            for number, task in enumerate(tasks):
                future = client.submit(
                    timed, work, task, self._timeout_s, pure=False, retries=TRIES - 1
                )
                futures[future] = number
            for future in distributed.as_completed(list(futures), loop=client.loop):
                number = futures.pop(future)
                if future.status == "finished":
                    try:
                        yield number, future.result()
                    except Exception as error:  # lost between finishing and fetching
                        yield number, Failed(f"lost with its worker ({type(error).__name__})")
                else:
                    yield number, Failed(f"its workers died ({type(future.exception()).__name__})")
                future.release()
        finally:
            if futures:
                client.cancel(list(futures), force=True)
            client.close()


def _check_workers(client: Any) -> None:
    versions = client.run(worker_version)
    if not versions:
        raise ConfigError("--scheduler: the Dask cluster has no workers")
    others = sorted({str(version) for version in versions.values()} - {__version__})
    if others:
        raise ConfigError(
            f"--scheduler: the workers have moe-advisor {', '.join(others)}, this is "
            f"{__version__}: install the same version"
        )


def worker_version() -> str:
    """The version of this program on a worker."""
    return __version__
