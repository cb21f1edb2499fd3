"""Says what a change gained, unprofiled: median.py LOG_BEFORE LOG_AFTER (rank 0's RESULT lines)."""

import json
import re
import sys
from pathlib import Path


def step_ms(log: Path) -> float:
    """Rank 0's median step without a profiler; ValueError where the log has none."""
    decoder = json.JSONDecoder()
    text = log.read_text()
    for found in re.finditer(r"RESULT (?=\{)", text):  # both ranks may write into one line
        record = decoder.raw_decode(text, found.end())[0]
        if record["rank"] == 0:
            return float(record["step_ms_median"])
    raise ValueError(f"{log}: no RESULT line of rank 0")


def main() -> int:
    """Command line; returns the exit code."""
    if len(sys.argv) != 3:
        print("usage: median.py LOG_BEFORE LOG_AFTER", file=sys.stderr)
        return 2
    try:
        before, after = (step_ms(Path(one)) for one in sys.argv[1:])
    except (OSError, ValueError, KeyError) as error:
        print(f"median.py: {error}", file=sys.stderr)
        return 1
    gain = before - after
    print(f"measured: {before:.1f} -> {after:.1f} ms, {gain:+.1f} ms ({gain / before:+.1%} saved)")
    return 0


if __name__ == "__main__":
    sys.exit(main())
