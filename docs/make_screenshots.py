"""Makes the pictures in docs/images from the demo report: `python docs/make_screenshots.py`."""

import subprocess
import sys
import tempfile
from pathlib import Path

from playwright.sync_api import sync_playwright

IMAGES = Path(__file__).parent / "images"


def main() -> None:
    """Takes the first screen, light and dark."""
    IMAGES.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as play:
        subprocess.run(
            [sys.executable, "-m", "moe_advisor", "demo", "-q", "-o", folder], check=True
        )
        browser = play.chromium.launch(executable_path="/usr/bin/chromium", args=["--no-sandbox"])
        for scheme in ("light", "dark"):
            page = browser.new_page(viewport={"width": 1280, "height": 840}, color_scheme=scheme)
            page.goto((Path(folder) / "moe-advisor-demo.html").as_uri())
            page.screenshot(path=IMAGES / f"report-{scheme}.png")
        browser.close()


if __name__ == "__main__":
    main()
