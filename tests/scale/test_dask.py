"""The same work on a Dask cluster gives the same bytes, also when a worker is killed."""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from moe_advisor import analysis
from moe_advisor.errors import ConfigError
from moe_advisor.output.json_output import encode
from moe_advisor.progress import Advance

dask = pytest.importorskip("dask")
distributed = pytest.importorskip("distributed")

ROOT = Path(__file__).parent.parent.parent
pytestmark = pytest.mark.filterwarnings("ignore")  # of distributed and what it imports


def test_a_cluster_that_loses_a_worker_gives_the_same_bytes(
    real_trace: Callable[[str], list[Path]], tmp_path: Path
) -> None:
    ranks = tmp_path / "ranks"
    command = [sys.executable, ROOT / "benchmarks" / "make_big_trace.py", "ranks"]
    command += [*real_trace("torch/base"), ranks, "--ranks", "12", "--steps", "1"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    local = encode(analysis.analyze([str(ranks)], analysis.Options(jobs=2)))
    # Nothing depends on how much memory and how little work the machine has.
    slow = {f"distributed.comm.timeouts.{name}": "300s" for name in ("connect", "tcp")}
    cluster_options = {"n_workers": 2, "threads_per_worker": 1, "memory_limit": 0}
    with (
        dask.config.set(slow),
        distributed.LocalCluster(
            **cluster_options, dashboard_address=None, local_directory=str(tmp_path)
        ) as cluster,
    ):
        pids = [worker.pid for worker in cluster.workers.values()]
        killed = threading.Event()

        def kill_one(now: Advance) -> None:
            if now.done == 2 and not killed.is_set():
                os.kill(pids[0], signal.SIGKILL)
                killed.set()

        options = analysis.Options(executor="dask", scheduler=cluster.scheduler_address)
        spread = encode(analysis.analyze([str(ranks)], options, kill_one))
        elsewhere = encode(analysis.analyze([ranks.as_uri()], options))
    assert killed.is_set()
    assert spread == local
    assert elsewhere == local  # workers copied what they read


def test_a_scheduler_that_isnt_there_or_isnt_named_is_one_line() -> None:
    with pytest.raises(ConfigError, match="--scheduler: no Dask scheduler answers"):
        analysis.analyze(
            [str(ROOT / "moe_advisor" / "demo")],
            analysis.Options(executor="dask", scheduler="bad://nowhere"),
        )
    with pytest.raises(ConfigError, match="give its --scheduler"):
        analysis.analyze([str(ROOT / "moe_advisor" / "demo")], analysis.Options(executor="dask"))
