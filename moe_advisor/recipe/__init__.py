"""The recipe for NVIDIA's framework: `nsys recipe moe_advisor --input DIR` runs our analysis in it.

`python3 -m moe_advisor.recipe` prints the folder for NSYS_RECIPE_PATH. `nsys` imports `recipe.nsys`
into the python3 that it finds on PATH, so this package must be installed there.
"""

from pathlib import Path

FOLDER = Path(__file__).parent
"""What NSYS_RECIPE_PATH names: the folder that holds the folder of the recipe."""

NAME = "moe_advisor"

NEEDED = ("numpy", "pandas", "psutil", "pyarrow")
"""What the framework of nsys itself imports."""
