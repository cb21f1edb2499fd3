"""The closed list of roles that a GPU activity can have, and their families."""

from enum import IntEnum, StrEnum


class Family(StrEnum):
    """What a role's time counts as."""

    EP = "ep_a2a"
    DP = "dp_collective"
    TP = "tp_collective"
    CP = "cp_collective"
    PP = "pp_p2p"
    OTHER_COLLECTIVE = "other_collective"
    COMPUTE = "compute"
    COPY = "copy"
    OPAQUE = "opaque"


class Role(IntEnum):
    """What a GPU activity is for. The order is the order of reports."""

    EXPERT_GEMM = 0
    DENSE_GEMM = 1
    GEMM_UNATTRIBUTED = 2
    ATTENTION = 3
    ROUTER = 4
    PERMUTE = 5
    ACTIVATION = 6
    NORM = 7
    EMBEDDING_LOSS = 8
    OPTIMIZER = 9
    CAST_QUANTIZE = 10
    ELEMENTWISE = 11
    COMPUTE_OTHER = 12
    EP_DISPATCH = 13
    EP_COMBINE = 14
    EP_NOTIFY = 15
    DP_GRAD_REDUCE = 16
    DP_PARAM_GATHER = 17
    DP_NORM = 18
    TP_COLLECTIVE = 19
    CP_COLLECTIVE = 20
    PP_P2P = 21
    COLLECTIVE_OTHER = 22
    MEMCPY = 23
    MEMSET = 24
    GRAPH_OPAQUE = 25

    @property
    def label(self) -> str:
        """The role as results and rules spell it."""
        return self.name.lower()

    @property
    def family(self) -> Family:
        """The family that this role's time is summed in."""
        return _FAMILIES.get(self, Family.COMPUTE)


_FAMILIES = {
    Role.EP_DISPATCH: Family.EP,
    Role.EP_COMBINE: Family.EP,
    Role.EP_NOTIFY: Family.EP,
    Role.DP_GRAD_REDUCE: Family.DP,
    Role.DP_PARAM_GATHER: Family.DP,
    Role.DP_NORM: Family.DP,
    Role.TP_COLLECTIVE: Family.TP,
    Role.CP_COLLECTIVE: Family.CP,
    Role.PP_P2P: Family.PP,
    Role.COLLECTIVE_OTHER: Family.OTHER_COLLECTIVE,
    Role.MEMCPY: Family.COPY,
    Role.MEMSET: Family.COPY,
    Role.GRAPH_OPAQUE: Family.OPAQUE,
}

COMMUNICATION = tuple(role for role in Role if Role.EP_DISPATCH <= role <= Role.COLLECTIVE_OTHER)
COMPUTE = tuple(role for role in Role if role.family is Family.COMPUTE)
GEMMS = (Role.EXPERT_GEMM, Role.DENSE_GEMM, Role.GEMM_UNATTRIBUTED)


class Source(IntEnum):
    """The evidence that decided a role, best first."""

    METADATA = 0  # collective metadata, process-group description, activity kind
    ANNOTATION = 1  # the annotation, operator or module the launch stood under
    FORWARD_LINK = 2  # backward work: the annotation of its forward operator
    STRUCTURE = 3  # the place between dispatch and combine, bursts, stream order
    NAME = 4  # the kernel's name


CONFIDENCE = {
    Source.METADATA: "high",
    Source.ANNOTATION: "high",
    Source.FORWARD_LINK: "high",
    Source.STRUCTURE: "medium",
    Source.NAME: "medium",
}
