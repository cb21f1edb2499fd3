"""Prints the folder for NSYS_RECIPE_PATH; what nsys will miss in this Python goes to stderr."""

import sys
from importlib.util import find_spec

from moe_advisor.recipe import FOLDER, NEEDED

if missing := [name for name in NEEDED if find_spec(name) is None]:
    print(
        f"moe-advisor: nsys recipe needs {', '.join(missing)} in this Python: "
        "install moe-advisor[recipe]",
        file=sys.stderr,
    )
print(FOLDER)
