"""Results over time in one SQLite file, safe for several jobs that write at once."""
