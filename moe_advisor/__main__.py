"""`python -m moe_advisor` is the same as `moe-advisor`."""

from moe_advisor.cli import main

main()
