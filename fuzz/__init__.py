"""Fuzzing of everything that reads a file: see README.md."""
