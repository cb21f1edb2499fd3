"""A folder of ranks on a Dask cluster of two workers, one of which is killed on the way.

`python benchmarks/dask_ranks.py FOLDER RESULT.json` writes the result and prints how many ranks
were done when the worker died. The cluster is started here: its time and memory count.
"""

import json
import logging
import os
import signal
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

KILL_AFTER = 0.3
"""Share of the ranks done when a worker is killed."""


def main(folder: str, target: str) -> None:
    """Runs the cluster and the analysis."""
    distributed: Any = import_module("distributed")
    from moe_advisor import analysis
    from moe_advisor.output.json_output import encode
    from moe_advisor.progress import Advance

    killed: list[int] = []
    with distributed.LocalCluster(
        n_workers=2, threads_per_worker=1, memory_limit=0, dashboard_address=None,
        silence_logs=logging.CRITICAL,
    ) as cluster:  # fmt: skip
        victim = next(iter(cluster.workers.values())).pid

        def kill_one(now: Advance) -> None:
            if not killed and now.done >= KILL_AFTER * now.total:
                os.kill(victim, signal.SIGKILL)
                killed.append(now.done)

        options = analysis.Options(executor="dask", scheduler=cluster.scheduler_address)
        found = analysis.analyze([folder], options, kill_one)
    Path(target).write_bytes(encode(found))
    lost = sum(issue.id == "input-unreadable" for issue in found.capture.issues)
    print(json.dumps({"killed_after": killed, "ranks": len(found.ranks), "lost": lost}))


if __name__ == "__main__":
    main(*sys.argv[1:])
