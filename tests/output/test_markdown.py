"""Markdown: exact for known results, harmless for hostile ones, never too long for a comment."""

import re

import msgspec
import pytest

from moe_advisor.output import markdown
from moe_advisor.output.markdown import LARGEST, code, escape
from tests.output.regenerate import GOLDEN, documents
from tests.output.result_builder import ALL, balanced, hostile, recommendation


@pytest.mark.parametrize("name", [name for name in documents() if name.endswith(".md")])
def test_document_is_the_golden_one(name: str) -> None:
    assert documents()[name] == (GOLDEN / name).read_text(encoding="utf-8")


@pytest.mark.parametrize("name", ALL)
def test_it_fits_a_comment(name: str) -> None:
    assert len(markdown.render(ALL[name]()).encode()) <= LARGEST


def test_too_many_recommendations_are_left_out_and_counted() -> None:
    many = [recommendation(f"rule-{i}", i, f"Title {i}", why="word " * 280) for i in range(60)]
    text = markdown.render(
        msgspec.structs.replace(balanced(), recommendations=many, plan_change=None)
    )
    assert len(text.encode()) <= LARGEST
    left_out = int(re.search(r"_(\d+) more recommendations", text)[1])  # type: ignore[index]
    assert text.count("<details>") == 60 - left_out
    assert 0 < left_out < 60


def _outside_fences(text: str) -> str:
    kept, fence = [], ""
    for line in text.splitlines():
        mark = re.match(r"`{3,}", line)
        if fence:
            fence = "" if line == fence else fence
        elif mark:
            fence = mark[0]
        else:
            kept.append(line)
    assert not fence
    return "\n".join(kept)


def test_hostile_strings_bring_no_markup_mention_or_link() -> None:
    text = _outside_fences(markdown.render(hostile()))
    assert not re.search(r"(?<!\\)<(?!/?(?:details|summary|sub)>)", text)
    assert not re.search(r"(?<!\\)@all", text)
    assert not re.search(r"https?://", text)
    assert not re.search(r"(?<!\\)\]\(", text)
    assert not re.search(r"[\x00-\x09\x0b-\x1f\u2028\u2029\u202e]", text)


def test_hostile_strings_keep_the_columns_of_every_table() -> None:
    rows = [line for line in markdown.render(hostile()).splitlines() if line.startswith("|")]
    columns = [len(re.findall(r"(?<!\\)\|", row)) for row in rows]
    heads = [i for i, row in enumerate(rows) if re.fullmatch(r"(\| -{3}:? )+\|", row)]
    assert len(heads) == 4
    for head, after in zip(heads, [*heads[1:], len(rows) + 1], strict=True):
        assert set(columns[head - 1 : after - 1]) == {columns[head]}


def test_escape_covers_everything_that_markdown_reads() -> None:
    assert escape("a|b*c_d`e<f>@g[h](i)#1") == r"a\|b\*c\_d\`e\<f\>\@g\[h\](i)\#1"


def test_code_survives_backticks_and_pipes() -> None:
    assert code("a``b|c") == "```a``b¦c```"
