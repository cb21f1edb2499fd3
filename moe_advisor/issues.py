"""Every issue that a result's `capture.issues` can carry: what it means and what to do about it.

The one table that documentation and tests read; a capture issue of an id that is not in it does not
exist.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class IssueText:
    """One kind of capture issue, for a reader who saw its id in a result."""

    meaning: str
    effect: str
    remedy: str


_RECAPTURE = "Capture again with fewer steps and stop the profiler before the program ends."

ISSUES: dict[str, IssueText] = {
    "clock-jump": IssueText(
        "Rows lie more than a day from the rest of the trace.",
        "They are left out.",
        "Check the host's clock synchronisation; capture again if many rows are named.",
    ),
    "clock-skew": IssueText(
        "GPU work begins before the call that launched it: host and GPU clocks disagree.",
        "Host gaps and their causes are uncertain; kernel times are not.",
        "Restart the profiler (or the job) and capture again.",
    ),
    "communicator-size-assumed": IssueText(
        "The creation of a NCCL communicator is not in the capture.",
        "Its size is taken to be the number of its users in the report.",
        "None needed if all ranks are in the report; else capture from the program's start.",
    ),
    "damaged-table": IssueText(
        "A table of the export can't be read to its end.",
        "What was readable is used; times and counts are too low.",
        "Export the report again: nsys export -t sqlite --include-blobs=true.",
    ),
    "duplicate-correlation-ids": IssueText(
        "Several API calls share the number that links GPU work to its launch.",
        "Work is linked to the latest call before it; some causes may be named wrongly.",
        "Give one rank per file, from one profiler session.",
    ),
    "duplicate-rank": IssueText(
        "Two inputs say that they are the same rank.",
        "The first is used.",
        "Give each rank once.",
    ),
    "events-without-duration": IssueText(
        "Complete events lack their duration.",
        "They are left out.",
        _RECAPTURE,
    ),
    "gpu-work-without-launch": IssueText(
        "GPU work has no launch call in the trace.",
        "Annotations and host gaps are less certain.",
        "Trace CPU activity too (ProfilerActivity.CPU), from before the first step on.",
    ),
    "graph-kernels-hidden": IssueText(
        "CUDA graph launches were recorded as a whole.",
        "Their kernels are unknown: above 1 % of the step what they hide is not measured.",
        "Capture with nsys profile --cuda-graph-trace=node.",
    ),
    "impossible-times": IssueText(
        "Events carry a time that is none.",
        "They are left out.",
        _RECAPTURE,
    ),
    "input-skipped": IssueText(
        "A file of the folder is named like a trace and can't be recognised as one.",
        "The others are used; an error where its name is that of another rank, as one is missing.",
        "Copy or export that file again, or move it out of the folder.",
    ),
    "input-unreadable": IssueText(
        "One of several inputs could not be read.",
        "The others are used; what needs all ranks is bounded or not measured.",
        "Copy or export that rank's file again.",
    ),
    "kernels-without-launch": IssueText(
        "Kernels inside the steps have no launch call.",
        "Host gaps may read as dependency idle.",
        _RECAPTURE,
    ),
    "launches-missing": IssueText(
        "GPU activities of the report have no launch call.",
        "Profiler data was lost or the captured range is very short; causes are less certain.",
        _RECAPTURE,
    ),
    "launches-without-kernel": IssueText(
        "Kernel launches inside the steps left no kernel in the trace.",
        "Busy time is too low and idle time too high: the verdict is marked as doubtful.",
        _RECAPTURE,
    ),
    "minor-device-skipped": IssueText(
        "A process touched a second GPU for next to nothing.",
        "That GPU's rows are left out.",
        "None needed.",
    ),
    "names-missing": IssueText(
        "Names are not in the export's table of strings.",
        "What they name can't be recognised.",
        "Export the report again.",
    ),
    "nccl-payload-missing": IssueText(
        "The export holds no NCCL payloads.",
        "Communicators, peers and sizes are unknown: roles rest on ranges and structure.",
        "Export with nsys export --include-blobs=true.",
    ),
    "negative-durations": IssueText(
        "Events end before they begin.",
        "They are left out.",
        _RECAPTURE,
    ),
    "no-api-calls": IssueText(
        "The capture holds no CUDA API calls.",
        "Launches, host gaps and synchronisations can't be seen.",
        "Capture with nsys profile -t cuda,nvtx.",
    ),
    "no-gpu-activity": IssueText(
        "No GPU work was recorded, or none inside a step.",
        "Nothing is measured.",
        "Trace CUDA (-t cuda,nvtx or ProfilerActivity.CUDA) over at least one whole step.",
    ),
    "no-ranges": IssueText(
        "The capture holds no NVTX ranges.",
        "Steps come from repetition and roles from structure and names.",
        "Capture with -t cuda,nvtx and let the framework emit ranges.",
    ),
    "no-steps": IssueText(
        "No step was found.",
        "The whole trace counts as one step.",
        "Name steps `iteration N`, call profiler.step(), or give --step-pattern.",
    ),
    "operator-ranges": IssueText(
        "Every operator pushed an NVTX range (emit_nvtx).",
        "The host was slowed down: host gaps are too large.",
        "Capture without emit_nvtx, with ranges for modules only.",
    ),
    "out-of-memory-events": IssueText(
        "Allocations failed for lack of GPU memory during the capture.",
        "The allocator freed its cache and asked again: allocator time is in the step.",
        "Lower the peak (micro-batch, recompute) before tuning anything else.",
    ),
    "profiler-errors": IssueText(
        "The profiler noted errors of its own while capturing.",
        "Data may be missing.",
        "Open the report's diagnostics in Nsight Systems, then capture again.",
    ),
    "rank-shorter": IssueText(
        "A rank has fewer whole steps than its peers.",
        "Only steps that all ranks have are compared across ranks.",
        _RECAPTURE,
    ),
    "rank-sparser": IssueText(
        "A rank lacks kernels and collectives that its peers have in the same steps.",
        "It is left out: its busy time would be too low. What needs all ranks is bounded.",
        "Capture again, and let the program run on for some seconds after the last traced step.",
    ),
    "ranks-missing": IssueText(
        "The run has more ranks than were read.",
        "Waiting, imbalance and late ranks are bounded or not measured.",
        "Give the files of all ranks, or of one whole expert-parallel group.",
    ),
    "ranks-renumbered": IssueText(
        "Several inputs number their ranks from 0.",
        "Ranks are counted on in the order given.",
        "None needed if the order is the order of ranks.",
    ),
    "repaired-events": IssueText(
        "Events were not valid JSON and were repaired: torch up to 2.11 writes some names so.",
        "None.",
        "None needed.",
    ),
    "rows-dropped": IssueText(
        "Rows have impossible times or sizes.",
        "They are left out.",
        "Export the report again; capture again if many rows are named.",
    ),
    "sampled": IssueText(
        "Only some of the inputs were read, as --sample asked.",
        "The result stands for them; spreads over ranks are estimates.",
        "Leave --sample out to read all.",
    ),
    "stray-device-work": IssueText(
        "A process did a little work on a GPU that it does not train on.",
        "That work is left out.",
        "None needed; setting the device before the first CUDA call avoids it.",
    ),
    "too-many-ranks": IssueText(
        "More processes used a GPU than one report may hold.",
        "Those with the most GPU work are read.",
        "Give one report per node.",
    ),
    "truncated-file": IssueText(
        "The SQLite file is shorter than its header says.",
        "What was readable is used; times and counts are too low.",
        "Copy or export the file again.",
    ),
    "truncated-input": IssueText(
        "The JSON file ends early or is damaged.",
        "What was complete is used.",
        "Copy the file again, or let the program end before the trace is read.",
    ),
    "uneven-steps": IssueText(
        "Some steps hold less than half of the kernels of the others.",
        "Records were lost there, or the step did other work (evaluation, a checkpoint).",
        "Leave them out with --steps, or capture again.",
    ),
    "unreadable-events": IssueText(
        "Events could not be read.",
        "They are left out.",
        "Copy the file again; capture again if many are named.",
    ),
}
