"""Measures ranks and merges them; pure functions over the tables of `model`."""
