"""Makes the pictures in docs/images from the demo report: `python docs/make_screenshots.py`.

One picture of the first screen for each colour scheme. `--check FOLDER` writes them elsewhere, to
look at before the old ones are replaced.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from playwright.sync_api import sync_playwright

IMAGES = Path(__file__).parent / "images"
SCHEMES = ("light", "dark")
SIZE = {"width": 1280, "height": 840}


def main() -> None:
    """Takes the first screen, light and dark."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", type=Path, metavar="FOLDER")
    target = parser.parse_args().check or IMAGES
    target.mkdir(parents=True, exist_ok=True)
    browser_path = os.environ.get("CHROMIUM", "/usr/bin/chromium")
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as play:
        subprocess.run(
            [sys.executable, "-m", "moe_advisor", "demo", "-q", "-o", folder], check=True
        )
        browser = play.chromium.launch(executable_path=browser_path, args=["--no-sandbox"])
        for scheme in SCHEMES:
            page = browser.new_page(viewport=SIZE, color_scheme=scheme)
            page.goto((Path(folder) / "moe-advisor-demo.html").as_uri())
            page.screenshot(path=target / f"report-{scheme}.png")
        browser.close()


if __name__ == "__main__":
    main()
