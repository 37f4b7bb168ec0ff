"""Groups of clients as members and in words."""

from __future__ import annotations

import numpy as np
import pytest

from cobo_dist.reports.reading.groups import Groups, groups_in_words


def test_members_are_in_the_order_of_first_clients_and_leave_out_absent_ones() -> None:
    found = Groups(np.array([0, 1, -1, 0, 1, 2]), 0.5)
    assert list(found) == [[0, 3], [1, 4], [5]]
    assert str(found) == "2 groups: {0,3} {1,4}; 1 client alone: 5"


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        ([0, 0, 1, 1, 2, 2, 3, 3], "4 groups: {0,1} {2,3} {4,5} {6,7}"),
        ([0, 0, 0, 1, 1, 1], "2 groups: {0-2} {3-5}"),
        ([0, 0, 1, 2], "1 group: {0,1}; 2 clients alone: 2,3"),
        ([0] * 8, "1 group of all 8 clients"),
        ([0, 0, -1], "1 group of all 2 clients"),
        ([0, 1, 2], "no groups: each of the 3 clients is alone"),
        ([0], "no groups: there is only one client"),
        ([], "no groups: there are no clients"),
        ([-1, -1], "no groups: there are no clients"),
    ],
)
def test_words(labels: list[int], words: str) -> None:
    assert groups_in_words(labels) == words


def test_long_lists_are_cut_and_say_how_many_there_are() -> None:
    two = groups_in_words(np.arange(40) % 2)
    assert two.startswith("2 groups: {0,2,4,6,8,10,12,14,... 20 clients} {1,3,")
    many = groups_in_words(np.arange(100) // 2)
    assert many.startswith("50 groups: {0,1} {2,3}")
    assert many.endswith("{22,23} and 38 more")


def test_names_stand_in_place_of_numbers() -> None:
    assert groups_in_words([0, 0, 1], ["de", "nl", "fr"]) == "1 group: {de, nl}; 1 client alone: fr"
