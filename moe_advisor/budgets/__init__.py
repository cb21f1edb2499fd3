"""Budgets: what a run must keep to, read from a file and judged on a result."""
