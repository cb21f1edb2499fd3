"""What is taken from a Kineto trace's metadata; host, user, job and file names are not."""

import re
from dataclasses import dataclass, field
from typing import Any

from moe_advisor.ingest.kineto_events import integer, integers, text_of
from moe_advisor.model import CaptureIssue, Device, ProcessGroup, Severity
from moe_advisor.privacy import gpu_name, safe_text

NAME_LIMIT = 4096
"""Longest name of a process group kept, in characters."""

_SETTINGS = (
    ("with_stack", "profiler-stacks-on", "Python stacks"),
    ("record_shapes", "profiler-shapes-on", "operator shapes"),
    ("profile_memory", "profiler-memory-on", "memory events"),
    ("with_modules", "profiler-modules-on", "module names"),
)
_VERSION = re.compile(r"[0-9][0-9.]{0,15}")


def _version(value: Any) -> str | None:
    text = text_of(value)
    return text if _VERSION.fullmatch(text) else None


def _cuda_version(value: Any) -> str | None:
    """13000 and "13000" are CUDA 13.0."""
    number = integer(value)
    return f"{number // 1000}.{number % 1000 // 10}" if 1000 <= number < 10**6 else None


@dataclass(frozen=True, slots=True)
class Metadata:
    """What is taken from the trace's metadata; host, user, job and file names are not."""

    known: bool = False
    rank: int | None = None
    world_size: int | None = None
    groups: tuple[ProcessGroup, ...] = ()
    devices: dict[int, Device] = field(default_factory=dict)
    base_ns: int | None = None
    producer: str | None = None
    issues: tuple[CaptureIssue, ...] = ()

    @classmethod
    def of(cls, found: dict[str, Any]) -> "Metadata":
        """What `found`, the trace's metadata as JSON, tells; anything odd in it tells nothing."""
        job = found.get("distributedInfo")
        job = job if isinstance(job, dict) else {}
        rank, world = integer(job.get("rank")), integer(job.get("world_size"))
        base = integer(found.get("baseTimeNanoseconds"))
        names = (
            ("CUDA", _cuda_version(found.get("cuda_runtime_version"))),
            ("CUPTI", _version(found.get("cupti_version"))),
            ("ROCm", _version(found.get("hip_runtime_version"))),
        )
        versions = ", ".join(f"{name} {version}" for name, version in names if version)
        return cls(
            known=bool({"deviceProperties", "distributedInfo", "schemaVersion"} & found.keys()),
            rank=rank if rank >= 0 else None,
            world_size=world if world > 0 else None,
            groups=_groups(job.get("pg_config")),
            devices=_devices(found.get("deviceProperties")),
            base_ns=base if base >= 0 else None,
            producer=f"PyTorch profiler ({versions})" if versions else "PyTorch profiler",
            issues=tuple(
                CaptureIssue(
                    id=issue,
                    severity=Severity.INFO,
                    message=f"The profiler recorded {what}, which slows the host: host-side times "
                    f"are longer than without.",
                )
                for key, issue, what in _SETTINGS
                if integer(found.get(key), 0) == 1 or found.get(key) is True
            ),
        )


def _groups(found: Any) -> tuple[ProcessGroup, ...]:
    groups = []
    for group in found if isinstance(found, list) else ():
        if not isinstance(group, dict):
            continue
        groups.append(
            ProcessGroup(
                name=safe_text(text_of(group.get("pg_name")), NAME_LIMIT),
                description=safe_text(text_of(group.get("pg_desc")), NAME_LIMIT),
                ranks=integers(group.get("ranks")),
            )
        )
    return tuple(groups)


def _devices(found: Any) -> dict[int, Device]:
    devices: dict[int, Device] = {}
    for device in found if isinstance(found, list) else ():
        if not isinstance(device, dict):
            continue
        number = integer(device.get("id"))
        if number < 0 or number in devices:
            continue
        major, minor = integer(device.get("computeMajor")), integer(device.get("computeMinor"))
        memory, sms = integer(device.get("totalGlobalMem")), integer(device.get("numSms"))
        devices[number] = Device(
            name=gpu_name(text_of(device.get("name"))),
            memory_bytes=memory if memory > 0 else None,
            sm_count=sms if sms > 0 else None,
            compute_capability=f"{major}.{minor}" if major > 0 and minor >= 0 else None,
        )
    return devices
