"""`init`: configs and job scripts are laid out; nothing is overwritten without --force."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from cobo_dist.cli.init import main
from cobo_dist.project_files import project_files, project_folder

ROOT = Path(__file__).resolve().parents[2]


def content(folder: Path) -> dict[str, bytes]:
    return {
        str(file.relative_to(folder)): file.read_bytes()
        for file in folder.rglob("*")
        if file.is_file()
    }


def refusal(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """Return the only line of a refusal."""
    assert main(arguments) == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line


def test_the_files_are_those_of_the_repository(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert project_folder() == ROOT
    assert main([str(tmp_path / "a" / "b")]) == 0
    expected = {str(file): (ROOT / file).read_bytes() for file in project_files(ROOT)}
    assert content(tmp_path / "a" / "b") == expected
    assert {"configs/quickstart.yaml", "launch/mpirun.sh", "slurm/sweep.sbatch"} <= set(expected)
    assert f"{len(expected)} files written" in capsys.readouterr().out


def test_a_second_time_adds_what_is_missing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main([str(tmp_path)])
    (tmp_path / "configs" / "quickstart.yaml").unlink()
    (tmp_path / "mine.yaml").write_text("run: {rounds: 3}\n")
    capsys.readouterr()
    assert main([str(tmp_path)]) == 0
    assert "1 files written" in capsys.readouterr().out
    assert (tmp_path / "configs" / "quickstart.yaml").exists()


@pytest.mark.parametrize("kind", ["file", "link", "dangling link"])
def test_other_content_stays_unless_forced(
    kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nothing at all is written then. A link is replaced, and what it leads to stays."""
    lab, elsewhere = tmp_path / "lab", tmp_path / "elsewhere"
    target = lab / "configs" / "quickstart.yaml"
    target.parent.mkdir(parents=True)
    if kind == "file":
        target.write_text("mine")
    else:
        target.symlink_to(elsewhere)
        if kind == "link":
            elsewhere.write_text("mine")
    line = refusal(capsys, str(lab))
    assert line == (
        f"error: {target} has other content; nothing was written: give another folder, or --force to "
        "overwrite"
    )
    assert not (lab / "slurm").exists()
    assert main([str(lab), "--force"]) == 0
    assert target.read_bytes() == (ROOT / "configs" / "quickstart.yaml").read_bytes()
    assert not target.is_symlink()
    assert not elsewhere.exists() or elsewhere.read_text() == "mine"


def test_a_folder_in_the_place_of_a_file_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "configs" / "quickstart.yaml").mkdir(parents=True)
    for more in ([], ["--force"]):
        assert "quickstart.yaml" in refusal(capsys, str(tmp_path), *more)


def test_a_place_that_is_no_folder_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    line = refusal(capsys, str(tmp_path / "file"))
    assert line.startswith(f"error: {tmp_path / 'file'}")
    assert line.endswith("give a folder that can be written")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_cannot_be_written_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tmp_path.chmod(0o500)
    assert "Permission denied" in refusal(capsys, str(tmp_path / "lab"))


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        ([], "give one folder, not none"),
        (["a", "b"], "give one folder, not a b"),
        (["--froce", "a"], "--froce is no option"),
    ],
)
def test_one_folder_is_taken(
    arguments: list[str], why: str, capsys: pytest.CaptureFixture[str]
) -> None:
    line = refusal(capsys, *arguments)
    assert line.startswith(f"error: arguments: {why}; usage: ")
