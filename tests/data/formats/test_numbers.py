import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from haste.data.formats import _numbers
from haste.data.formats._lines import Malformed
from haste.data.formats._numbers import parse_lists, parse_rows

token = st.one_of(
    st.builds("{}:{}".format, st.integers(-1, 12), st.floats(width=32)),
    st.text("0123456789:.,eE+-_xnaif \t\r\x0b\x00#\"'", max_size=6),
)
row = st.lists(token, max_size=5).map(lambda tokens: " ".join(tokens).strip().encode())


def _said(rows: list) -> list:
    return [
        str(row) if isinstance(row, Malformed) else (row[0].tolist(), [float(np.float32(x)) for x in row[1]])
        for row in rows
    ]


@settings(max_examples=500, deadline=None)
@given(rows=st.lists(row, max_size=4))
def test_many_rows_at_once_say_what_single_ones_do(rows: list[bytes]) -> None:
    alone = [_numbers._caught(part, 10, "column") for part in rows]
    assert _said(parse_rows(rows, 10, "column")) == _said(alone)


@settings(max_examples=500, deadline=None)
@given(rows=st.lists(st.text("0123456789,_+-. x", max_size=8).map(lambda text: text.strip().encode()), max_size=4))
def test_many_lists_at_once_say_what_single_ones_do(rows: list[bytes]) -> None:
    alone = [_numbers._caught_list(part, 50, "label") for part in rows]
    assert list(map(str, parse_lists(rows, 50, "label"))) == list(map(str, alone))


def test_rows_come_in_columns_order_whatever_their_order() -> None:
    (first, second) = parse_rows([b"7:1 2:0.5 4:3", b"9:1 0:2"], 10, "column")
    assert not isinstance(first, Malformed)
    assert not isinstance(second, Malformed)
    assert (first[0].tolist(), first[1].tolist()) == ([2, 4, 7], [0.5, 3, 1])
    assert (second[0].tolist(), second[1].tolist()) == ([0, 9], [2, 1])
