"""Evaluates expressions of rules that do not ship with the program, in a child process.

The child has a memory limit and a processor-time limit, and each expression a deadline. A child
that is killed is replaced; the expression that killed it is an error and the rest goes on. Run as
a module it is the child: one JSON request per line in, one JSON answer per line out.
"""

import json
import os
import select
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from moe_advisor.advise.expressions import Answer, Context, Truth, evaluate, names, plain

DEADLINE_S = 2.0
"""Processor time of one expression. A rule of the longest allowed source takes under 1 ms."""

PATIENCE = 15.0
"""So many times the deadline may pass on the wall clock: on a busy machine the child waits too."""

START_S = 60.0
"""Wall time for the child's start on a busy machine."""

CPU_S = 60
MEMORY_BYTES = 512 * 2**20
"""The interpreter and the engine need under 100 MB."""

LOOK_EVERY_S = 0.1
"""How often a silent child is looked at; the system counts processor time in steps of 10 ms."""

_READY = "ready"


class Sandbox:
    """An evaluator in a child process; a context manager that ends it."""

    def __init__(self, deadline_s: float = DEADLINE_S) -> None:
        self._deadline_s = deadline_s
        self._child: subprocess.Popen[bytes] | None = None
        self._buffer = b""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def __call__(
        self, source: str, context: Context, extra: Mapping[str, Any] | None = None
    ) -> Answer:
        """The answer of `source` on `context`; a timeout or a crash is an error answer.

        `extra` holds further names as they are, as for `evaluate`.
        """
        request = json.dumps(
            {"source": source, "context": _used(source, context), "extra": dict(extra or {})}
        ).encode()
        try:
            child = self._start()
            if child.stdin is None:
                raise OSError("no pipe to the child")
            child.stdin.write(request + b"\n")
            child.stdin.flush()
            line = self._answer(child)
        except OSError as error:
            self.close()
            return Answer(Truth.ERROR, error=f"the evaluating process failed: {error.strerror}")
        if line is None:
            self.close()
            return Answer(
                Truth.ERROR,
                error=f"no answer within {self._deadline_s:g} s and {MEMORY_BYTES >> 20} MiB",
            )
        answer = json.loads(line)
        return Answer(Truth(answer["truth"]), tuple(answer["missing"]), answer["error"])

    def close(self) -> None:
        """End the child, if there is one."""
        child, self._child, self._buffer = self._child, None, b""
        if child is None:
            return
        child.kill()
        for pipe in (child.stdin, child.stdout):
            if pipe is not None:
                try:
                    pipe.close()
                except OSError:
                    continue
        child.wait()

    def _start(self) -> subprocess.Popen[bytes]:
        if self._child is not None:
            return self._child
        self._child = subprocess.Popen(  # noqa: S603 - the interpreter and module are fixed
            [sys.executable, "-I", "-c", _bootstrap()],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={},
            cwd="/" if os.name == "posix" else None,
        )
        if self._read_line(START_S) is None:
            self.close()
            raise OSError(0, "it did not start")
        return self._child

    def _answer(self, child: "subprocess.Popen[bytes]") -> bytes | None:
        """The child's next line; None when it has worked for too long or is gone."""
        until = time.monotonic() + self._deadline_s * PATIENCE
        cpu_until_s = _cpu_s(child.pid) + self._deadline_s
        wait_s = self._deadline_s
        while (line := self._read_line(wait_s)) is None:
            left_s = cpu_until_s - _cpu_s(child.pid)
            if child.poll() is not None or not left_s > 0 or time.monotonic() >= until:
                return None
            wait_s = max(left_s, LOOK_EVERY_S)
        return line

    def _read_line(self, timeout_s: float) -> bytes | None:
        """The child's next line, or None when it is silent for too long or gone."""
        child = self._child
        if child is None or child.stdout is None:
            return None
        while b"\n" not in self._buffer:
            ready, _, _ = select.select([child.stdout], [], [], timeout_s)
            if not ready:
                return None
            chunk = os.read(child.stdout.fileno(), 65536)
            if not chunk:
                return None
            self._buffer += chunk
        line, _, self._buffer = self._buffer.partition(b"\n")
        return line


def _cpu_s(process: int) -> float:
    """Processor time of a process so far; without end where it is gone or nothing tells."""
    try:
        fields = Path(f"/proc/{process}/stat").read_bytes().rpartition(b")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, IndexError, AttributeError):
        return float("inf")


def _used(source: str, context: Context) -> dict[str, dict[str, Any]]:
    """The part of the facts that the expression names; nothing else leaves this process."""
    used: dict[str, dict[str, Any]] = {}
    for name in names(source):
        root, _, leaf = name.partition(".")
        table = context.get(root, {})
        if leaf in table:
            used.setdefault(root, {})[leaf] = plain(table[leaf])
    return used


def _bootstrap() -> str:
    """Program of the child: isolated from the environment, it knows only this import path."""
    return f"import sys; sys.path[:] = {sys.path!r}; from {__name__} import serve; serve()"


def serve() -> None:
    """Body of the child: limits first, then answers until the pipe closes."""
    try:
        import resource

        resource.setrlimit(resource.RLIMIT_CPU, (CPU_S, CPU_S))
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    except (ImportError, ValueError, OSError):
        # Not every platform has limits; the deadline holds without them.
        pass
    evaluate("true", {})
    print(_READY, flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        answer = evaluate(request["source"], request["context"], request["extra"])
        reply = {
            "truth": answer.truth.value,
            "missing": list(answer.missing),
            "error": answer.error,
        }
        print(json.dumps(reply), flush=True)
