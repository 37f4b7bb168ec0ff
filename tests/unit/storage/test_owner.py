"""Who may write into a run folder: exclusive records, living and stale owners; which files are opened."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from unittest import mock

import pytest

from cobo_dist.errors import ConfigError
from cobo_dist.storage import owner_record
from cobo_dist.storage.files import open_file, read_file
from cobo_dist.storage.owner import Ownership, TakenOver
from cobo_dist.storage.owner_record import await_verdict, is_alive, latest, refuse_living
from cobo_dist.storage.run_dir import RunDir
from cobo_dist.storage.schema import Owner

LATER_SECONDS = owner_record.STALE_SECONDS + 1


def leave(folder: Path, epoch: int = 1, age: float = 0.0, **changes: object) -> Owner:
    """Write the record of an owner on another machine, whose last heartbeat is `age` seconds old."""
    values = {
        "epoch": epoch, "host": "node7", "pid": 4711, "job": "99", "since": "2026-11-28 16:50:02",
        "ended": None, "machine": "another boot", "started": 5, "token": f"t{epoch}",
    }  # fmt: skip
    owner = Owner.model_validate(values | changes)
    path = owner_record.record_path(folder, epoch)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(owner.to_json())
    os.utime(path, (time.time() - age,) * 2)
    return owner


def mine(folder: Path, **changes: object) -> Owner:
    """Write the record of this process."""
    own = {"pid": os.getpid(), "machine": owner_record.machine_id()}
    ticks = owner_record.start_ticks(os.getpid())
    assert ticks is not None
    return leave(folder, **{**own, "started": ticks[1], **changes})


# -- exclusive ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("links", [True, False])
def test_one_of_many_starts_takes_an_epoch(tmp_path: Path, links: bool) -> None:
    """With and without hard links; the records and drafts of the others are gone."""
    barrier = threading.Barrier(8)

    def take(_: int) -> Ownership | ConfigError:
        barrier.wait()
        try:
            return Ownership.acquire(tmp_path, seen=0, job="7")
        except ConfigError as error:
            return error

    refused = OSError(errno.EOPNOTSUPP, "not supported")
    link = mock.patch("os.link", side_effect=os.link if links else refused)
    with link, ThreadPoolExecutor(8) as threads:
        answers = list(threads.map(take, range(8)))
    owners = [one for one in answers if isinstance(one, Ownership)]
    assert len(owners) == 1
    for error in (one for one in answers if isinstance(one, ConfigError)):
        assert f"was taken by process {os.getpid()} on" in str(error)
        assert "(job 7)" in str(error)
    assert os.listdir(tmp_path / "owner") == ["000001.json"]
    owners[0].release()


def test_a_record_that_is_being_written_is_named_all_the_same(tmp_path: Path) -> None:
    """Without hard links a record is created empty, and another start may look at it then."""
    leave(tmp_path, epoch=1)
    record = owner_record.record_path(tmp_path, 1)
    content = record.read_bytes()
    record.write_bytes(b"")
    later = threading.Timer(0.2, record.write_bytes, [content])
    later.start()
    with pytest.raises(ConfigError, match="was taken by process 4711 on node7"):
        Ownership.acquire(tmp_path, seen=0)
    later.join()


def test_ranks_without_a_shared_disk_do_not_mind_what_an_earlier_run_left_on_theirs(
    tmp_path: Path,
) -> None:
    owner = Ownership.acquire(tmp_path / "of_rank_0", seen=0)
    for epoch in (1, 4):
        leave(tmp_path / str(epoch), epoch=epoch)
        other = Ownership(tmp_path / str(epoch), owner.owner, is_rank_0=False)
        assert other.taken_over() is None
    shared = Ownership(tmp_path / "of_rank_0", owner.owner, is_rank_0=False)
    assert shared.taken_over() is None
    leave(tmp_path / "of_rank_0", epoch=2)
    assert shared.taken_over() is not None, "it has seen the record of its own run there"
    owner.release()


def test_an_epoch_that_has_passed_is_not_taken(tmp_path: Path) -> None:
    """A start that was slow must not take epoch 1 after others took 1 and 2 and removed record 1."""
    leave(tmp_path, epoch=2)
    with pytest.raises(ConfigError, match="was taken by process 4711 on node7"):
        Ownership.acquire(tmp_path, seen=0)
    assert os.listdir(tmp_path / "owner") == ["000002.json"]


def test_an_owner_notices_that_it_was_taken_over(tmp_path: Path) -> None:
    first = Ownership.acquire(tmp_path, seen=0)
    first.check()
    leave(tmp_path, epoch=2)
    with pytest.raises(TakenOver, match=r"taken over by process 4711 on node7 \(job 99\), since"):
        first.check()
    first.release()
    found = latest(tmp_path)
    assert found is not None
    assert found.epoch == 2
    assert found.owner is not None
    assert found.owner.ended is None, "the release of the first is not that of the second"


def test_a_folder_that_was_removed_or_replaced_is_not_written(tmp_path: Path) -> None:
    first = Ownership.acquire(tmp_path, seen=0)
    owner_record.record_path(tmp_path, 1).unlink()
    with pytest.raises(TakenOver, match="was removed or replaced"):
        first.check()
    leave(tmp_path, epoch=1)
    with pytest.raises(TakenOver, match="taken over by process 4711"):
        first.check()
    first.release()


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE, errno.EMFILE, errno.EACCES])
def test_an_error_that_passes_does_not_end_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    mine = Ownership.acquire(tmp_path, 0)
    listdir, errors = os.listdir, iter(range(3))

    def refuse_three_times(path: Path) -> list[str]:
        if next(errors, None) is not None:
            raise OSError(number, os.strerror(number), str(path))
        return listdir(path)

    monkeypatch.setattr(os, "listdir", refuse_three_times)
    assert mine.taken_over() is None
    errors = iter(range(1_000_000))
    monkeypatch.setattr("cobo_dist.storage.owner._RETRY_SECONDS", 0.2)
    lost = mine.taken_over()
    assert f"owner cannot be read: {os.strerror(number)}" in str(lost)
    monkeypatch.undo()
    mine.release()


def test_a_refusal_names_what_to_end_or_remove(tmp_path: Path) -> None:
    leave(tmp_path, 2, host="node7", pid=42, machine="another")
    with pytest.raises(ConfigError, match="end it with kill 42 on node7, or name another"):
        refuse_living(tmp_path)
    owner_record.record_path(tmp_path, 3).write_text("{")
    with pytest.raises(ConfigError, match=r"if no such run exists, remove owner/000003\.json, or"):
        refuse_living(tmp_path)


def test_a_rank_without_the_shared_disk_goes_on(tmp_path: Path) -> None:
    owner = Ownership.acquire(tmp_path / "here", seen=0)
    other = Ownership(tmp_path / "there", owner.owner, is_rank_0=False)
    other.check()
    Ownership(tmp_path / "here", owner.owner, is_rank_0=False).check()
    owner.release()
    Ownership(tmp_path / "here", owner.owner, is_rank_0=False).check()


def test_the_heartbeat_renews_the_record(tmp_path: Path) -> None:
    with mock.patch("cobo_dist.storage.owner.HEARTBEAT_SECONDS", 0.01):
        owner = Ownership.acquire(tmp_path, seen=0)
        record = owner_record.record_path(tmp_path, 1)
        os.utime(record, (1.0, 1.0))
        until = time.monotonic() + 20
        while record.stat().st_mtime < 2 and time.monotonic() < until:
            time.sleep(0.01)
        assert record.stat().st_mtime > 2
        owner.release()
    assert not [one for one in threading.enumerate() if one.name == "heartbeat"]


# -- alive or gone ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "alive"),
    [
        ({}, True),
        ({"age": LATER_SECONDS}, True),  # its process lives: the heartbeat does not matter
        ({"started": 5}, False),  # its pid is another process's now
        ({"pid": 2**22 + 1}, False),
        ({"pid": -1}, False),
        ({"ended": "2026-11-28 16:59:00"}, False),
    ],
)
def test_an_owner_of_this_machine_is_known_by_its_process(
    tmp_path: Path, changes: dict[str, object], alive: bool
) -> None:
    mine(tmp_path, **changes)
    found = latest(tmp_path)
    assert found is not None
    assert is_alive(tmp_path, found) == alive


@pytest.mark.parametrize(("age", "alive"), [(0.0, True), (LATER_SECONDS, False), (-3600.0, False)])
def test_an_owner_elsewhere_is_known_by_its_heartbeat(
    tmp_path: Path, age: float, alive: bool
) -> None:
    leave(tmp_path, age=age)
    found = latest(tmp_path)
    assert found is not None
    assert is_alive(tmp_path, found) == alive


def test_the_age_of_a_heartbeat_is_by_the_clock_of_the_file_system(tmp_path: Path) -> None:
    leave(tmp_path)
    in_use = pytest.raises(ConfigError, match=r"by process 4711 on node7 \(job 99\), since 2026")
    with mock.patch("time.time", return_value=time.time() + 3600), in_use:
        refuse_living(tmp_path)


def test_a_process_that_has_ended_but_was_not_waited_for_is_gone(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as child:
        ticks = owner_record.start_ticks(child.pid)
        assert ticks is not None
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
        mine(tmp_path, pid=child.pid, started=ticks[1])
        refuse_living(tmp_path)


def test_the_verdict_on_an_owner_elsewhere_waits_for_its_next_heartbeat(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    record = owner_record.record_path(tmp_path, 1)
    leave(tmp_path, age=1.0)
    beat = threading.Timer(0.2, os.utime, (record,))
    beat.start()
    with mock.patch.object(owner_record, "HEARTBEAT_SECONDS", 0.05):
        began = time.monotonic()
        assert await_verdict(tmp_path) == 1
    assert time.monotonic() - began < 30
    assert "was in use by process 4711 on node7" in capsys.readouterr().err
    with pytest.raises(ConfigError, match="in use by"):
        refuse_living(tmp_path)
    beat.join()


def test_the_verdict_on_a_silent_owner_elsewhere_is_that_it_is_gone(tmp_path: Path) -> None:
    leave(tmp_path, epoch=3, age=owner_record.STALE_SECONDS - 0.5)
    assert await_verdict(tmp_path) == 3
    refuse_living(tmp_path)
    owner = Ownership.acquire(tmp_path, seen=3)
    assert owner.owner.epoch == 4
    assert os.listdir(tmp_path / "owner") == ["000004.json"]
    owner.release()
    refuse_living(tmp_path)
    assert await_verdict(tmp_path) == 4


# -- what an earlier owner may still do ------------------------------------------------------------------


def test_an_earlier_owner_that_wakes_up_between_check_and_rename_changes_nothing(
    tmp_path: Path,
) -> None:
    """The new owner removes drafts, so the rename of one finds nothing to rename."""
    old = RunDir(tmp_path)
    old.owner = Ownership.acquire(tmp_path, seen=0)
    new = RunDir(tmp_path)

    def take_over(self: Ownership) -> None:
        if self is old.owner and new.owner is None:
            new.owner = Ownership.acquire(tmp_path, seen=1)
            new.create()
            new.write_status(0, "done")

    (tmp_path / "status.json.1.part").write_text("failed")
    with mock.patch.object(Ownership, "check", take_over), pytest.raises(FileNotFoundError):
        old.publish(tmp_path / "status.json.1.part", tmp_path / "status.json")
    with pytest.raises(TakenOver):
        old.write_status(1, "failed")
    assert '"done"' in (tmp_path / "status.json").read_text()
    assert old.owner is not None
    assert new.owner is not None
    old.owner.release()
    new.owner.release()


# -- only regular files of bounded size ------------------------------------------------------------------


def test_a_regular_file_is_read_and_appended_to(tmp_path: Path) -> None:
    with open_file(tmp_path / "new", append=True) as file:
        file.write(b"one")
    with open_file(tmp_path / "new", append=True) as file:
        file.write(b"two")
    assert read_file(tmp_path / "new") == b"onetwo"
    with pytest.raises(FileNotFoundError):
        read_file(tmp_path / "missing")


@pytest.mark.parametrize("append", [False, True])
@pytest.mark.parametrize("kind", ["pipe", "folder", "symbolic link", "device"])
def test_anything_else_is_refused_at_once(tmp_path: Path, kind: str, append: bool) -> None:
    path = tmp_path / "file"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "symbolic link":
        (tmp_path / "target").write_text("kept")
        path.symlink_to(tmp_path / "target")
    else:
        path = Path("/dev/full")
    with pytest.raises(OSError, match=f"it is a {kind}, not a regular file"):
        open_file(path, append)


def test_a_file_that_is_too_large_is_refused(tmp_path: Path) -> None:
    with (tmp_path / "sparse").open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(OSError, match=r"it has 1\.1 TB, and at most 1\.1 GB are read"):
        read_file(tmp_path / "sparse")


def test_a_record_that_cannot_be_read_is_hardly_waited_for(tmp_path: Path) -> None:
    """Nobody writes one; a heartbeat of the last 15 s still counts."""
    record = owner_record.record_path(tmp_path, 3)
    record.parent.mkdir()
    record.write_text("{")
    for age, alive in ((5.0, True), (20.0, False)):
        os.utime(record, (time.time() - age,) * 2)
        found = owner_record.latest(tmp_path)
        assert found is not None
        assert owner_record.is_alive(tmp_path, found) is alive
