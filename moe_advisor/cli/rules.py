"""`moe-advisor rules`: list, show, validate, test and document the rules."""

from pathlib import Path

import click


@click.group(
    epilog="""\b
examples:
  moe-advisor rules list
  moe-advisor rules show exposed-expert-all-to-all
  moe-advisor rules test my-rules/
"""
)
def rules() -> None:
    """The rules: what moe-advisor can recommend, and on what grounds."""


@rules.command(
    "list",
    epilog="""\b
examples:
  moe-advisor rules list
  moe-advisor rules list --rules my-rules/
""",
)
@click.option(
    "--rules",
    "folders",
    multiple=True,
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Rules of your own: add, override, disable.",
)
def list_rules(folders: tuple[Path, ...]) -> None:
    """List all rules by topic."""
    from moe_advisor.advise import load_rules

    found = load_rules(folders)
    width = max((len(rule.id) for rule in found), default=0)
    topic = None
    for rule in found:
        if rule.topic != topic:
            topic = rule.topic
            click.echo(f"{topic or '(no topic)'}:")
        click.echo(f"  {rule.id:<{width}}  {rule.severity:<6}  {rule.title}")
    click.echo(f"{len(found)} rules")


@rules.command(
    "show",
    epilog="""\b
examples:
  moe-advisor rules show exposed-expert-all-to-all
  moe-advisor rules show my-rule --rules my-rules/
""",
)
@click.argument("rule_id", metavar="ID")
@click.option(
    "--rules",
    "folders",
    multiple=True,
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Rules of your own: add, override, disable.",
)
def show(rule_id: str, folders: tuple[Path, ...]) -> None:
    """Show one rule: what, why, when not, how to apply and verify, sources."""
    import difflib

    from moe_advisor.advise import load_rules
    from moe_advisor.advise.docs import page
    from moe_advisor.errors import RuleError

    by_id = {rule.id: rule for rule in load_rules(folders)}
    if rule_id not in by_id:
        near = difflib.get_close_matches(rule_id, by_id, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else "; see: moe-advisor rules list"
        raise RuleError(f"no rule {rule_id!r}{hint}")
    click.echo(page(by_id[rule_id]), nl=False)


@rules.command(
    "validate",
    epilog="""\b
examples:
  moe-advisor rules validate
  moe-advisor rules validate my-rules/
""",
)
@click.argument("folder", metavar="[DIR]", required=False, type=click.Path(path_type=Path))
def validate(folder: Path | None) -> None:
    """Check the format of all rule files in DIR (the shipped rules without it)."""
    from moe_advisor.advise.rule import read_folder
    from moe_advisor.resources import rules_dir

    found = read_folder(folder or rules_dir())
    click.echo(f"{len(found)} rule files are valid")


@rules.command(
    "test",
    epilog="""\b
examples:
  moe-advisor rules test
  moe-advisor rules test my-rules/ --verbose
""",
)
@click.argument("folder", metavar="[DIR]", required=False, type=click.Path(path_type=Path))
@click.option("-v", "--verbose", is_flag=True, help="Print the reason of every case.")
def test(folder: Path | None, verbose: bool) -> None:
    """Run the cases that the rule files carry; exit 1 if one fails."""
    from collections import Counter

    from moe_advisor.advise.cases import run_cases
    from moe_advisor.advise.rule import Rule, read_folder
    from moe_advisor.errors import GateFailed
    from moe_advisor.resources import rules_dir
    from moe_advisor.result import Outcome

    loaded = read_folder(folder or rules_dir(), foreign=folder is not None)
    found = [rule for rule in loaded if isinstance(rule, Rule)]
    results = run_cases(found)
    columns: tuple[Outcome, ...] = ("finding", "pass", "not_applicable", "not_measured")
    width = max((len(rule.id) for rule in found), default=4)
    click.echo(f"{'rule':<{width}}  " + "  ".join(columns) + "  failed")
    for rule in sorted(found, key=lambda rule: (rule.topic, rule.id)):
        own = [item for item in results if item.rule == rule.id]
        counts = Counter(item.outcome for item in own)
        cells = "  ".join(f"{counts[name] or '·':>{len(name)}}" for name in columns)
        failed = sum(item.problem is not None for item in own)
        click.echo(f"{rule.id:<{width}}  {cells}  {failed or '·':>6}")
        for item in own:
            if item.problem:
                click.echo(f"  {item.case}: {item.problem}")
            elif verbose:
                click.echo(f"  {item.case}: {item.outcome}: {item.reason}")
    failures = sum(item.problem is not None for item in results)
    click.echo(f"{len(found)} rules, {len(results)} cases, {failures} failed")
    if failures:
        raise GateFailed(f"{failures} of {len(results)} rule cases failed")


@rules.command(
    "docs",
    epilog="""\b
examples:
  moe-advisor rules docs
  moe-advisor rules docs --check
""",
)
@click.option(
    "-o",
    "--output",
    "folder",
    default="docs/rules",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Folder of the pages.",
)
@click.option("--check", is_flag=True, help="Write nothing; exit 1 if a page is out of date.")
def docs(folder: Path, check: bool) -> None:
    """Write a Markdown page for each rule to DIR (docs/rules)."""
    from moe_advisor.advise import load_rules
    from moe_advisor.advise.docs import stale, write
    from moe_advisor.errors import GateFailed

    found = load_rules()
    if check:
        old = stale(found, folder)
        if old:
            raise GateFailed(f"{len(old)} pages are out of date: run moe-advisor rules docs")
        click.echo(f"{len(found) + 1} pages are up to date")
        return
    changed = write(found, folder)
    click.echo(f"{len(found) + 1} pages, {len(changed)} changed")


@rules.command(
    "schema",
    epilog="""\b
examples:
  moe-advisor rules schema > rule.schema.json
""",
)
def schema() -> None:
    """Print the JSON Schema of rule files, for editors."""
    import json

    from moe_advisor.advise.rule import json_schema

    click.echo(json.dumps(json_schema(), indent=1))
