"""A link of another speed."""

from collections.abc import Mapping

import numpy as np

from moe_advisor.roles.roles import Family, Role
from moe_advisor.whatif.changes.edit import Ask, Case, NotApplicableError, each, require
from moe_advisor.whatif.model import Lane, StepModel


def link(model: StepModel, ask: Ask) -> StepModel:
    """Every collective's wire faster by a factor; its fixed cost stays."""
    factor = _number(ask.value, 2.0, "link")
    require(factor > 0, f"link={ask.value}: the factor is above 0, 2 for a link twice as fast")
    scaled = scale_wire(model, dict.fromkeys(WIRE_FAMILIES, 1.0 / factor), ask.case)
    require(
        any(lane.items.family(*WIRE_FAMILIES).any() for lane in model.lanes),
        "no collectives in the step (sends and receives of a pipeline are not scaled)",
    )
    return scaled


WIRE_FAMILIES = (Family.EP, Family.DP, Family.TP, Family.CP, Family.OTHER_COLLECTIVE)
"""Not the pipeline's: a receive is nearly all waiting, and its transfer can't be told from it."""


def scale_wire(
    model: StepModel, factors: Mapping[Family, float], case: Case = Case.EXPECTED
) -> StepModel:
    """The model with the transfers of each family scaled; small ones are latency and stay.

    Unmatched collectives hold their waiting too: of those the low case scales a half.
    """
    fixed = model.calibration.wire_floor_ns

    def change(lane: Lane) -> Lane:
        items = lane.items
        duration, transfer = items.duration_ns.copy(), items.transfer_ns.copy()
        for family, factor in factors.items():
            rows = items.family(family) & ~items.has_role(Role.EP_NOTIFY)
            own = np.minimum(transfer, fixed)
            new = own + ((transfer - own) * factor).astype(np.int64)
            part = np.where(
                items.collective >= 0, 1.0, (0.5, 0.8, 1.0)[case] if factor < 1 else 1.0
            )
            delta = ((new - transfer) * part).astype(np.int64)
            duration = np.where(rows, np.maximum(duration + delta, 0), duration)
            transfer = np.where(rows, transfer + delta, transfer)
        return lane.with_items(duration_ns=duration, transfer_ns=transfer)

    return each(model, change)


def _number(value: str | None, default: float, name: str) -> float:
    if value is None:
        return default
    try:
        return float(value)
    except ValueError:
        raise NotApplicableError(f"{name}={value}: not a number") from None
