"""Checks what the program is built from: `lock`, `licences` and `audit`; see SECURITY.md.

python .ci/supply_chain.py lock            # writes requirements.lock (needs pip-tools)
python .ci/supply_chain.py licences        # writes docs/dependencies.md; --check compares
python .ci/supply_chain.py audit           # known vulnerabilities (needs pip-audit and an index
                                           # that knows them, as the public one does)
"""

import argparse
import importlib.metadata as metadata
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LOCK = ROOT / "requirements.lock"
PAGE = ROOT / "docs" / "dependencies.md"
EXTRAS = ("test", "docs", "dask", "remote")
TOOLS = ("build", "hatchling", "twine")
"""What CI builds and checks the distributions with; not needed by what they hold."""
NEVER_ADDRESSES = ("--no-emit-index-url", "--no-emit-trusted-host", "--no-emit-find-links")
PERMISSIVE = re.compile(
    r"MIT|BSD|Apache|Python Software Foundation|PSF|ISC|Zlib|0BSD|CC0|Unlicense|MPL-2\.0|"
    r"Mozilla Public License 2\.0",
    re.IGNORECASE,
)
_NAME = re.compile(r"[A-Za-z0-9._-]+")
_CLASSIFIER = "License :: OSI Approved :: "


def lock() -> int:
    """Pins everything CI installs, with hashes and without the address of any index."""
    program = shutil.which("pip-compile")
    if program is None:
        print("pip-compile not found: pip install pip-tools", file=sys.stderr)
        return 2
    extras = [part for extra in EXTRAS for part in ("--extra", extra)]
    command = [
        program, "--quiet", "--generate-hashes", *NEVER_ADDRESSES, "--allow-unsafe",
        "--strip-extras", *extras, "--output-file", LOCK.name, "pyproject.toml", "-",
    ]  # fmt: skip
    tools = "".join(f"{name}\n" for name in TOOLS)
    return subprocess.run(command, cwd=ROOT, input=tools, text=True, check=False).returncode


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _needs(name: str) -> list[str]:
    """What a package needs on Linux, without its extras."""
    found = []
    for text in metadata.requires(name) or ():
        requirement, _, marker = text.partition(";")
        if re.search(r"extra|platform_system|sys_platform|python_version\s*<", marker):
            continue
        match = _NAME.match(requirement.strip())
        if match:
            found.append(_normal(match[0]))
    return found


def _licence(name: str) -> str:
    about = metadata.metadata(name)
    expression = about.get("License-Expression")
    if expression:
        return str(expression)
    classified = [
        text.removeprefix(_CLASSIFIER)
        for text in about.get_all("Classifier") or ()
        if text.startswith(_CLASSIFIER)
    ]
    first = (about.get("License") or "").strip().splitlines()
    return ", ".join(classified) or (first[0] if first else "unknown")


def page() -> tuple[str, list[str]]:
    """The page on licences, and what is wrong with them."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    direct = [match[0] for one in project["dependencies"] if (match := _NAME.match(one))]
    wanted: dict[str, str] = {}
    queue = [(_normal(name), "moe-advisor") for name in direct]
    while queue:
        name, by = queue.pop(0)
        if name not in wanted:
            wanted[name] = by
            queue += [(other, name) for other in _needs(name)]
    problems = []
    rows = []
    for name, by in sorted(wanted.items()):
        licence = _licence(name)
        if not PERMISSIVE.search(licence):
            problems.append(f"{name}: licence {licence!r} is not on the list of permissive ones")
        rows.append(f"| {name} | {licence} | {by} |")
    text = (
        "# Dependencies and their licences\n\n"
        "What an installation brings; the extras `dask` and `remote` add Dask, fsspec\n"
        "(BSD-3-Clause) and aiohttp (Apache-2.0). Written by\n"
        "`python .ci/supply_chain.py licences`, checked in CI; the exact versions that CI tests\n"
        "are in `requirements.lock`.\n\n"
        "| package | licence | needed by |\n|---|---|---|\n" + "\n".join(rows) + "\n"
    )
    return text, problems


def licences(check: bool) -> int:
    """Writes or checks the page; 1 where it differs or a licence is not known to be permissive."""
    text, problems = page()
    if check and (not PAGE.exists() or PAGE.read_text() != text):
        problems.append("docs/dependencies.md is out of date: run this without --check")
    if not check:
        PAGE.write_text(text)
    lines = LOCK.read_text().splitlines() if LOCK.exists() else []
    if not lines:
        problems.append("requirements.lock is missing: python .ci/supply_chain.py lock")
    problems += [f"requirements.lock holds an address: {one}" for one in lines if "://" in one]
    for problem in problems:
        print(problem, file=sys.stderr)
    return 1 if problems else 0


def audit() -> int:
    """Known vulnerabilities of the locked versions; says why where it can't tell."""
    program = shutil.which("pip-audit")
    if program is None:
        print("audit skipped: pip-audit is not installed")
        return 0
    done = subprocess.run(
        [program, "--requirement", str(LOCK), "--disable-pip", "--progress-spinner", "off"],
        check=False, capture_output=True, text=True,
    )  # fmt: skip
    said = (done.stdout + done.stderr).strip()
    if done.returncode and re.search(
        r"ConnectionError|ConnectTimeout|ProxyError|resolve|ServiceError|unreachable|"
        r"HTTPError|Max retries|SSLError|Tunnel connection",
        said,
    ):
        print("audit skipped: the vulnerability service can't be reached from here")
        return 0
    unseen = said.count("could not be audited")
    if unseen:
        print(f"audit skipped for {unseen} packages: the vulnerability service doesn't know them")
    print("\n".join(line for line in said.splitlines() if "could not be audited" not in line))
    return done.returncode


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("lock", "licences", "audit"))
    parser.add_argument("--check", action="store_true")
    given = parser.parse_args()
    if given.what == "lock":
        return lock()
    return audit() if given.what == "audit" else licences(given.check)


if __name__ == "__main__":
    sys.exit(main())
