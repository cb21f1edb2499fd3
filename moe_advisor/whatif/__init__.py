"""What a change would bring: a replayable step model, changes on it, estimates with ranges."""

from moe_advisor.whatif.build import build
from moe_advisor.whatif.catalog import CHANGES, ChangeInfo, fault
from moe_advisor.whatif.engine import combine, estimate, quality, replay_error, unexplained_share
from moe_advisor.whatif.model import StepModel

__all__ = [
    "CHANGES",
    "ChangeInfo",
    "StepModel",
    "build",
    "combine",
    "estimate",
    "fault",
    "quality",
    "replay_error",
    "unexplained_share",
]
