"""From measured facts to advice: rules, their outcomes and one ordered plan."""

from moe_advisor.advise.engine import Advice, advise
from moe_advisor.advise.facts import Facts, effective, infer_config, merge_config
from moe_advisor.advise.rule import Rule, load_rules

__all__ = [
    "Advice",
    "Facts",
    "Rule",
    "advise",
    "effective",
    "infer_config",
    "load_rules",
    "merge_config",
]
