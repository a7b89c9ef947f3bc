"""What stands behind `%%budget`: read, or refused with a sentence that says how it is written."""

import pytest

import tokenbudget_lab as tbl
from tokenbudget_lab.magic_lines import Asked, asked


@pytest.mark.parametrize(
    ("line", "read"),
    [
        ("lab", Asked("lab")),
        ("lab --usd 2 --tokens=1000", Asked("lab", {"usd": "2", "tokens": 1000})),
        ("lab --requests 3 --window day", Asked("lab", {"requests": 3, "window": "day"})),
        ("--tag a=b --tag c='d e' lab", Asked("lab", {}, {"a": "b", "c": "d e"})),
        ("lab --tag query=x=y --ledger mine", Asked("lab", {}, {"query": "x=y"}, "mine")),
        ("lab --tag \"'; DROP TABLE events; --=1\"", Asked("lab", {}, {"'; DROP TABLE events; --": "1"})),
    ],
)  # fmt: skip
def test_a_line_is_read_as_a_shell_would(line: str, read: Asked) -> None:
    assert asked(line) == read


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("", "names no budget"),
        ("lab study", "'study' is a second name beside 'lab'"),
        ("lab --udd 2", "'--udd' is no option; --usd is"),
        ("lab --usd", "--usd: has no value"),
        ("lab --usd --tokens 2", "--usd: has no value"),
        ("lab --tokens 1e3", "'1e3' is no whole number"),
        ("lab --tokens \u0661", "is no whole number"),
        ("lab --tag few-shot", "write --tag condition=few-shot"),
        ("lab --tag =b", "is no pair"),
        ("lab --window day", "needs a limit beside it"),
        ("lab 'open", "cannot be read"),
        ("lab --tag a=b --tag a=c", "'a' is given two values, 'b' and 'c'"),
        ("lab --usd 1 --usd=2", "--usd: is given twice"),
    ],
)
def test_what_cannot_be_read_is_refused_with_a_sentence(line: str, says: str) -> None:
    with pytest.raises(tbl.InvalidValue, match=says):
        asked(line)
