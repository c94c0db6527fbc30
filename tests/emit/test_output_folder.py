"""The output folder: whole or not at all, whenever the process dies, and never over a user's files."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from prunec.compiler.emit import output_folder as artifacts
from prunec.compiler.emit.output_folder import check_writable, write_atomically
from prunec.compiler.errors import OutputError


def writer(version: str):
    def write(folder: Path) -> None:
        (folder / "plan.lock.json").write_text(version)
        (folder / "model.py").write_text(version)

    return write


def contents(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in folder.iterdir()}


def whole(version: str) -> dict[str, str]:
    return {"plan.lock.json": version, "model.py": version}


@pytest.fixture(params=["swap", "two renames"])
def system(request, monkeypatch):
    """Systems that can and can't swap two names in one step."""
    if request.param == "two renames":
        monkeypatch.setattr(artifacts, "_swap", lambda one, other: False)


@pytest.mark.usefixtures("system")
def test_writes_a_new_folder_and_replaces_an_earlier_output(tmp_path):
    out = tmp_path / "out"
    write_atomically(out, writer("one"))
    assert contents(out) == whole("one")
    (out / "report.json").write_text("of the first compile alone")
    (out / "__pycache__").mkdir()
    write_atomically(out, writer("two"))
    assert contents(out) == whole("two")
    assert os.listdir(tmp_path) == ["out"]


def test_what_was_found_while_writing_is_given_back(tmp_path):
    assert write_atomically(tmp_path / "out", lambda folder: (folder / "model.py").write_text("four")) == 4


@pytest.mark.usefixtures("system")
@pytest.mark.parametrize("exists", [False, True])
def test_an_error_while_writing_leaves_everything_as_it_was(tmp_path, exists):
    out = tmp_path / "out"
    if exists:
        write_atomically(out, writer("one"))

    def fail(folder: Path) -> None:
        writer("two")(folder)
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        write_atomically(out, fail)
    assert os.listdir(tmp_path) == (["out"] if exists else [])
    assert not exists or contents(out) == whole("one")


def test_the_disk_that_fills_up_is_named(tmp_path):
    def fail(folder: Path) -> None:
        raise OSError(28, "No space left on device")

    with pytest.raises(OutputError, match=r"can't write to '.*out'.*No space left"):
        write_atomically(tmp_path / "out", fail)
    assert not list(tmp_path.iterdir())


def test_an_empty_folder_and_a_link_to_a_folder_are_taken(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    write_atomically(tmp_path / "link", writer("one"))
    assert (tmp_path / "link").is_symlink()
    assert contents(tmp_path / "real") == whole("one")


def _file(path: Path) -> Path:
    path.write_text("mine")
    return path


def _folder(path: Path, *names: str) -> Path:
    path.mkdir()
    for name in names:
        (path / name).write_text("mine")
    return path


REFUSED = {
    "a file": (lambda root: _file(root / "out"), "it is a file"),
    "below a file": (lambda root: _file(root / "file") / "out", "file' is no folder"),
    "no parent": (lambda root: root / "missing" / "out", "missing' doesn't exist"),
    "user's folder": (lambda root: _folder(root / "out", "thesis.tex"), "it holds 'thesis.tex'"),
    "looks like ours": (lambda root: _folder(root / "out", "model.py"), r"no 'plan\.lock\.json'"),
    "ours and more": (lambda root: _folder(root / "out", "plan.lock.json", "notes.txt"), "it holds 'notes.txt'"),
}


@pytest.mark.parametrize(("make", "message"), REFUSED.values(), ids=REFUSED)
def test_refuses_before_any_work(tmp_path, make, message):
    target = make(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(OutputError, match=message) as caught:
        check_writable(target)
    assert caught.value.exit_code == 1
    with pytest.raises(OutputError, match=message):
        write_atomically(target, lambda folder: pytest.fail("the work was begun"))
    assert sorted(tmp_path.rglob("*")) == before


def test_refuses_a_read_only_parent(tmp_path, monkeypatch):
    def refuse(self: Path, *args: object) -> None:
        raise OSError(30, "Read-only file system", str(self))

    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(OutputError, match="Read-only file system"):
        check_writable(tmp_path / "out")


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs a folder where even root can't write")
def test_refuses_a_parent_where_nobody_writes():
    with pytest.raises(OutputError, match="can't write to '/proc/prunec-out'"):
        check_writable(Path("/proc/prunec-out"))


def test_check_writable_leaves_nothing_behind(tmp_path):
    check_writable(tmp_path / "out")
    assert not list(tmp_path.iterdir())


KILLED = """
    import pathlib, sys, time
    from prunec.compiler.emit import output_folder as artifacts

    def stop():
        print("now", flush=True)
        time.sleep(60)

    def write(folder):
        (folder / "plan.lock.json").write_text("two")
        if sys.argv[2] == "writing":
            stop()
        (folder / "model.py").write_text("two")

    if sys.argv[2] == "between renames":
        artifacts._swap = lambda one, other: False
        rename = pathlib.Path.rename
        def slow(path, target):
            result = rename(path, target)
            stop()
            return result
        pathlib.Path.rename = slow
    if sys.argv[2] == "after the swap":
        artifacts.shutil.rmtree = lambda *args, **kwargs: stop()
    artifacts.write_atomically(pathlib.Path(sys.argv[1]), write)
"""


def kill_while(out: Path, stage: str) -> None:
    command = [sys.executable, "-c", textwrap.dedent(KILLED), str(out), stage]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "now\n"
        process.send_signal(signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL


@pytest.mark.parametrize(
    ("stage", "old", "left"),
    [
        ("writing", None, None),
        ("writing", "one", "one"),
        ("after the swap", "one", "two"),
        ("between renames", "one", None),
    ],
)
def test_kill_9_leaves_the_old_folder_or_the_new_one(tmp_path, stage, old, left):
    out = tmp_path / "out"
    if old:
        write_atomically(out, writer(old))
    kill_while(out, stage)
    assert (contents(out) if out.exists() else None) == (whole(left) if left else None)
    assert len(list(tmp_path.iterdir())) > out.exists()  # the dead process's folder
    check_writable(out)
    assert os.listdir(tmp_path) == (["out"] if old else [])
    assert not old or contents(out) == whole(left or old)


def test_leaves_the_folders_of_running_compiles_alone(tmp_path):
    def write(folder: Path) -> None:
        check_writable(tmp_path / "out")
        writer("one")(folder)

    write_atomically(tmp_path / "out", write)
    assert contents(tmp_path / "out") == whole("one")
