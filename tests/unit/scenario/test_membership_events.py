"""Who is in the run: files of events, drawn events, traces, and what is refused in one line."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
from pydantic import ValidationError

from cobo_dist.errors import ConfigError
from cobo_dist.maths.participation import Participation
from cobo_dist.scenario.availability import read_availability
from cobo_dist.scenario.membership import Membership, MembershipConfig

HEAD = "round,client,event\n"


def members_of(file: Path, clients: int = 4, rounds: int = 10) -> Membership:
    found = MembershipConfig(file=str(file)).of(0, clients, rounds)
    assert found is not None
    return found


def refusal(file: Path, clients: int = 4, rounds: int = 10) -> str:
    with pytest.raises(ConfigError) as caught:
        members_of(file, clients, rounds)
    message = str(caught.value)
    assert message.splitlines() == [message], "one line"
    return message


def test_events_say_who_is_in_each_round(tmp_path: Path) -> None:
    file = tmp_path / "events.csv"
    file.write_text(HEAD + "5,2,leave\n3,1,join\n\n7,2,join\n9,1,leave\n")
    found = members_of(file)
    everyone = [[client for client in range(4) if found(t)[client]] for t in range(10)]
    assert everyone[:4] == [[0, 2, 3], [0, 2, 3], [0, 1, 2, 3], [0, 1, 2, 3]]
    assert everyone[4:] == [[0, 1, 3]] * 2 + [[0, 1, 2, 3]] * 2 + [[0, 2, 3]] * 2
    assert [event[:3] for event in found.at(6)] == [(7, 2, True)]
    assert [found.returns(event) for event in found.events] == [False, True, True, True]
    assert found.recent(4, 3).tolist() == [False, True, False, False]
    assert not found.recent(5, 3).any()
    assert found.rounds_without(10, 4) == 1


@pytest.mark.parametrize("suffix", ["yaml", "json", "csv"])
def test_files_of_each_kind_say_the_same(tmp_path: Path, suffix: str) -> None:
    events = [
        {"round": 3, "client": 1, "event": "join"},
        {"client": 2, "event": "leave", "round": 5},
    ]
    text = json.dumps(events)
    if suffix == "csv":
        text = "\ufeffclient, event,round\r\n1,join,3\r\n 2 , leave,5\r\n"
    (tmp_path / f"events.{suffix}").write_text(text, newline="")
    found = members_of(tmp_path / f"events.{suffix}")
    assert [event[:3] for event in found.events] == [(3, 1, True), (5, 2, False)]


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        ("3,9,join", "line 2: client 9 is none of the 4 clients, 0 to 3"),
        ("3,-1,join", "line 2: client is -1; write a whole number from 0"),
        ("3,one,join", "line 2: client is 'one', not a whole number"),
        ("0,1,join", "line 2: round is 0; write a whole number from 1"),
        ("-3,1,join", "line 2: round is -3"),
        ("1.5,1,join", "line 2: round is '1.5', not a whole number"),
        (",1,join", "line 2: round is empty"),
        ("11,1,join", "line 2: round 11 comes after the last, run.rounds=10"),
        ("3,1,joins", "line 2: event is 'joins'; write join or leave"),
        ("3,1,join\n5,1,join", "line 3: client 1 has a second join, in round 5, after that in round 3"),
        ("5,1,leave\n3,1,leave", "line 2: client 1 has a second leave, in round 5, after that in round 3"),
        ("3,1,join\n3,1,join", "line 3: client 1 has two events in round 3; keep one"),
        ("3,1,join\n3,1,leave", "client 1 has two events in round 3"),
        ("3,1", "line 2: 2 cells, and the header has 3"),
        ("3,1,join,now", "line 2: 4 cells, and the header has 3"),
        ('3,"1,join', "is not CSV"),
        ("3,0,leave\n3,1,leave\n4,2,leave\n4,3,leave", "no client is in the run in round 4"),
        ("1,0,leave\n1,1,leave\n2,2,join\n1,3,leave", "no client is in the run in round 1"),
    ],
)  # fmt: skip
def test_wrong_events_are_refused_in_one_line(tmp_path: Path, lines: str, words: str) -> None:
    (tmp_path / "events.csv").write_text(HEAD + lines + "\n")
    message = refusal(tmp_path / "events.csv")
    assert words in message
    assert message.startswith(f"membership.file={tmp_path / 'events.csv'}")


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("a.csv", "", "is empty; its first line is round,client,event"),
        ("a.csv", "round,client\n", "line 1: the columns are round, client, and must be round"),
        ("a.csv", "3,1,join\n", "line 1: the columns are 3, 1, join, and must be"),
        ("a.yaml", "round: 3\n", "holds a dict; it must hold a list of {round: ..., client: ..."),
        ("a.yaml", "- 3\n", "entry 1 is 3; write {round"),
        ("a.yaml", "- {round: 3, client: 1}\n", "entry 1: the columns are round, client, and must be"),
        ("a.yaml", "- {round: true, client: 1, event: join}\n", "entry 1: round is 'True', not a whole"),
        ("a.yaml", "- {round: 3, client: , event: join}\n", "entry 1: client is empty"),
        ("a.json", "[{", "line 1 is not valid YAML"),
        ("a.json", "null", "holds nothing"),
    ],
)  # fmt: skip
def test_files_that_are_no_tables_of_events_are_refused(
    tmp_path: Path, name: str, text: str, words: str
) -> None:
    (tmp_path / name).write_text(text)
    assert words in refusal(tmp_path / name)


def test_files_that_cannot_be_read_are_refused(tmp_path: Path) -> None:
    assert "does not exist; give the path" in refusal(tmp_path / "none.csv")
    os.mkfifo(tmp_path / "pipe.csv")
    assert "is no regular file" in refusal(tmp_path / "pipe.csv")
    (tmp_path / "binary.csv").write_bytes(b"\x80\x81")
    assert "not UTF-8 text" in refusal(tmp_path / "binary.csv")
    assert "Is a directory" in refusal(tmp_path) or "no regular file" in refusal(tmp_path)


def test_drawn_events_are_a_function_of_the_seed() -> None:
    config = MembershipConfig(joins=3, leaves=4, first=5, last=9)
    one, other, again = (config.of(seed, 20, 50) for seed in (0, 1, 0))
    assert None not in (one, other, again)
    assert one.events == again.events != other.events
    assert sum(event.joins for event in one.events) == 3
    assert len({event.client for event in one.events}) == len(one.events) == 7
    assert all(5 <= event.round <= 9 for event in one.events)
    assert (one(0).sum(), one(49).sum()) == (17, 16)


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"joins": 5, "leaves": 4}, "membership.joins=5 and membership.leaves=4 are more than the 8 clients"),
        ({"joins": 1, "last": 60}, "membership.last=60 comes after the last round, run.rounds=50"),
        ({"joins": 1, "first": 60}, "membership.first=60 comes after the last round, run.rounds=50"),
        ({"leaves": 8, "first": 3, "last": 3}, "membership: no client is in the run in round 3"),
    ],
)  # fmt: skip
def test_draws_that_do_not_fit_are_refused(keys: dict[str, int], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        MembershipConfig(**keys).of(0, 8, 50)


def test_keys_that_exclude_one_another_are_refused() -> None:
    both = MembershipConfig(file="a.csv", leaves=2)
    assert "membership.file=a.csv and membership.leaves=2 both say" in both.contradiction()
    assert "membership.first=5 comes after" in MembershipConfig(first=5, last=3).contradiction()
    assert not MembershipConfig(first=5).contradiction()
    for key in ("joins", "leaves", "first"):
        with pytest.raises(ValidationError):
            MembershipConfig(**{key: -1})
    assert MembershipConfig(joins=1).needs_rounds
    assert not MembershipConfig(joins=1, last=9).needs_rounds
    assert not MembershipConfig(file="a.csv").needs_rounds


# -- availability and failures ---------------------------------------------------------------------


def test_a_trace_says_who_is_available(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("client,from,to\n0,1,2\n1,2,9\n0,4,4\n2,1,9\n")
    found = read_availability(str(tmp_path / "t.csv"), 3)
    available = [np.flatnonzero(found(t)).tolist() for t in range(6)]
    assert available == [[0, 2], [0, 1, 2], [1, 2], [0, 1, 2], [1, 2], [1, 2]]
    assert found.changes == [1, 2, 3, 4, 5, 10]


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        ("0,1,2", "has no row for client 1"),
        ("0,1,2\n1,,3", "line 3: from is empty; write a whole number from 1"),
        ("0,1,2\n1,-4,3", "line 3: from is -4"),
        ("0,1,2\n1,4,3", "line 3: from 4 comes after to 3; swap them"),
        ("0,1,4\n1,1,9\n0,4,6", "line 4: client 0 is available twice in round 4"),
        ("0,1,4\n1,1,9\n2,1,2", "line 4: client 2 is none of the 2 clients"),
    ],
)
def test_wrong_traces_are_refused_in_one_line(tmp_path: Path, lines: str, words: str) -> None:
    (tmp_path / "t.csv").write_text(f"client,from,to\n{lines}\n")
    with pytest.raises(ConfigError) as caught:
        read_availability(str(tmp_path / "t.csv"), 2)
    assert words in str(caught.value)
    assert str(caught.value).startswith(f"participation.trace={tmp_path / 't.csv'}")


def test_clients_that_were_drawn_fail_and_one_stays() -> None:
    drawn, failing = (Participation(0, 40, 10, dropout=p) for p in (0.0, 0.3))
    assert failing.is_partial
    stayed = 0
    for t in range(50):
        assert not (failing(t) & ~drawn(t)).any(), "nobody is drawn in their place"
        stayed += int(failing(t).sum())
    assert 0.65 * 500 < stayed < 0.75 * 500
    worst = Participation(0, 5, 5, dropout=0.999)
    assert [int(worst(t).sum()) for t in range(20)] == [1] * 20


def test_a_share_is_one_of_the_members() -> None:
    def members(t: int) -> np.ndarray:
        return np.arange(8) < (8 if t else 4)

    part = Participation(0, 8, 8, members, share=0.5)
    assert [int(part(t).sum()) for t in (0, 1)] == [2, 4]
    assert not part(0)[4:].any()
    whole = Participation(3, 8, 4)
    shared = Participation(3, 8, 8, share=0.5)
    assert all(np.array_equal(whole(t), shared(t)) for t in range(9))
    assert part.with_count(1)(0).sum() == 1
    assert not part.with_count(8)(0)[4:].any()
