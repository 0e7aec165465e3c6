import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from leanconv.train.strings import Strings


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"]))))
def test_reads_like_a_list(strings):
    made = Strings.of(strings)
    assert list(made) == strings and len(made) == len(strings)
    assert made[-2:] == strings[-2:] and made[::-1] == strings[::-1]
    assert list(pickle.loads(pickle.dumps(made))) == strings


def test_ends():
    made = Strings.of(["a", "", "bc"])
    assert made[-1] == "bc" and made[1] == ""
    with pytest.raises(IndexError):
        made[3]


def test_names_that_are_no_text():
    name = b"caf\xe9.png".decode("utf-8", "surrogateescape")  # as os.listdir gives a name in Latin-1
    assert Strings.of([name])[0] == name
