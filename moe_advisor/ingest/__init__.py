"""Readers: one module per input format; inputs are only ever read."""
