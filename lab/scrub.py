"""Take host, user, paths, environment and command line out of a capture: scrub.py IN OUT.

The product's `moe-advisor scrub`; it needs moe-advisor installed.
"""

import sys

from moe_advisor.cli import main

if __name__ == "__main__":
    main(["scrub", *sys.argv[1:]])
