"""The changes that can be simulated, one module per kind."""
