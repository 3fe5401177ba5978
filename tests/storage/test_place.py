"""What a check of a place leaves behind, and what a limited key may write."""

import pytest

from benchmarks.chaos.storage import Storage
from clue_ray.storage.place import check_writable


@pytest.fixture
def storage():
    pytest.importorskip("moto")
    started = Storage()
    yield started
    started.end()


def test_a_check_writes_no_key_above_the_place(storage):
    """A policy that is limited to a prefix forbids the folders above it."""
    check_writable(storage.place("org/team/study"), "choose another")
    assert set(storage.names("", "")) <= {"org/team/study/"}  # pyarrow keeps the folder itself
