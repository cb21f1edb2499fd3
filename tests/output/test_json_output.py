"""`result.json` reads back as it was written, and nothing else is taken for one."""

import json

import jsonschema
import msgspec
import pytest

from moe_advisor.errors import InputError
from moe_advisor.output import json_output
from moe_advisor.result import Result, json_schema
from tests.output.result_builder import ALL, balanced


@pytest.mark.parametrize("name", ALL)
def test_what_was_written_reads_back_equal(name: str) -> None:
    result = ALL[name]()
    assert json_output.decode(json_output.encode(result)) == result


@pytest.mark.parametrize("name", ALL)
def test_encoding_is_the_same_bytes_again(name: str) -> None:
    data = json_output.encode(ALL[name]())
    assert json_output.encode(json_output.decode(data)) == data
    assert json_output.encode(ALL[name]()) == data


def test_written_document_fits_the_published_schema() -> None:
    jsonschema.validate(json.loads(json_output.encode(balanced())), json_schema())


def test_every_top_level_key_has_a_line() -> None:
    lines = json_output.encode(balanced()).decode().splitlines()
    assert len(lines) == len(msgspec.structs.fields(Result)) + 2


def _with(**more: object) -> bytes:
    return json.dumps(json.loads(json_output.encode(balanced())) | more).encode()


def test_newer_minor_version_with_unknown_keys_is_read() -> None:
    assert json_output.decode(_with(schema_version="1.7", new_key=[1])).schema_version == "1.7"


def test_newer_major_version_is_refused_with_what_to_do() -> None:
    with pytest.raises(InputError, match=r"r\.json: .*schema 2.*update moe-advisor"):
        json_output.decode(_with(schema_version="2.0"), "r.json")


@pytest.mark.parametrize("version", ["", "x", "-1.0", "9" * 5000])
def test_nonsense_versions_are_refused(version: str) -> None:
    with pytest.raises(InputError):
        json_output.decode(_with(schema_version=version))


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b"\xff\xfe",
        b"[" * 100_000,
        b'{"schema":"moe-advisor/result","schema_version":"1.0"}',
        b'{"traceEvents":[]}',
        json_output.encode(balanced())[:-3000],
    ],
)
def test_broken_or_foreign_json_is_one_clear_error(data: bytes) -> None:
    with pytest.raises(InputError) as error:
        json_output.decode(data, "r.json")
    assert str(error.value).startswith("r.json: ")
    assert "\n" not in str(error.value)


def test_timeline_rows_outside_their_lists_are_refused() -> None:
    document = json.loads(json_output.encode(balanced()))
    document["timeline"]["slices"]["name"][0] = 99
    with pytest.raises(InputError, match=r"timeline\.slices\.name"):
        json_output.decode(json.dumps(document).encode())


def test_timeline_columns_of_different_length_are_refused() -> None:
    document = json.loads(json_output.encode(balanced()))
    document["timeline"]["slices"]["name"].pop()
    with pytest.raises(InputError, match="differ in length"):
        json_output.decode(json.dumps(document).encode())


def test_timeline_gaps_without_numbers_are_refused() -> None:
    document = json.loads(json_output.encode(balanced()))
    document["timeline"]["gaps"][0] = ["a", "b", "c"]
    with pytest.raises(InputError, match="row of the timeline"):
        json_output.decode(json.dumps(document).encode())
