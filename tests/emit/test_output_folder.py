"""The output folder: whole or not at all, whenever the process dies, and never over a user's files."""

from __future__ import annotations

import ctypes
import errno
import json
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from prunec.compiler.emit import output_folder as artifacts
from prunec.compiler.emit.output_folder import MANIFEST, check_writable, write_atomically
from prunec.compiler.errors import OutputError


def writer(version: str):
    def write(folder: Path) -> None:
        (folder / "plan.lock.json").write_text(version)
        (folder / "model.py").write_text(version)

    return write


def contents(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in folder.iterdir() if path.name != MANIFEST}


def whole(version: str) -> dict[str, str]:
    return {"plan.lock.json": version, "model.py": version}


class Failing:
    """A C library whose call that swaps two names fails with this error."""

    def __init__(self, error: int) -> None:
        self.error = error

    def renameat2(self, *args: object) -> int:
        ctypes.set_errno(self.error)
        return -1


SYSTEMS = {"swap": None, "no such call": object(), "no such call on this disk": Failing(errno.EINVAL)}


@pytest.fixture(params=SYSTEMS)
def system(request, monkeypatch):
    """Systems that can and can't swap two names in one step."""
    library = SYSTEMS[request.param]
    if library is not None:
        monkeypatch.setattr(ctypes, "CDLL", lambda *args, **kwargs: library)


@pytest.mark.usefixtures("system")
def test_writes_a_new_folder_and_replaces_an_earlier_output(tmp_path):
    out = tmp_path / "out"
    write_atomically(out, writer("one"))
    assert contents(out) == whole("one")
    (out / "__pycache__").mkdir()
    (out / "__pycache__" / "model.cpython-311.pyc").write_bytes(b"\xa7\r\r\n" + bytes(12))
    write_atomically(out, writer("two"))
    assert contents(out) == whole("two")
    assert os.listdir(tmp_path) == ["out"]


def test_a_swap_that_fails_is_told_and_leaves_the_earlier_output(tmp_path, monkeypatch):
    out = tmp_path / "out"
    write_atomically(out, writer("one"))
    monkeypatch.setattr(ctypes, "CDLL", lambda *args, **kwargs: Failing(errno.EIO))
    monkeypatch.setattr(sys, "platform", "linux")
    with pytest.raises(OutputError, match=r"can't write to '.*out': .*Input/output error"):
        write_atomically(out, writer("two"))
    assert contents(out) == whole("one")
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
    "of an earlier version": (
        lambda root: _folder(root / "out", "model.py", "plan.lock.json"),
        "it holds 'model.py', and no manifest says that a compile wrote it",
    ),
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


# -- what a user keeps in an earlier output --------------------------------------------------------------------------


def _edit(out: Path, name: str = "model.py") -> None:
    with (out / name).open("a") as file:
        file.write("# my note\n")


def _replace(out: Path, make) -> None:
    (out / "model.py").unlink()
    make(out / "model.py")


def _cache(out: Path, name: str, data: bytes) -> None:
    (out / "__pycache__").mkdir()
    (out / "__pycache__" / name).write_bytes(data)


KEPT = {
    "a name like ours": (lambda out: _file(out / "model.my_only_copy.pth"), "'model.my_only_copy.pth', which no"),
    "another name like ours": (lambda out: _file(out / "model_finetuned.pth"), "'model_finetuned.pth', which no"),
    "a folder": (lambda out: _folder(out / "model_zoo", "a.pth"), "'model_zoo', which no compile wrote"),
    "an empty folder": (lambda out: _folder(out / "model_zoo"), "'model_zoo', which no compile wrote"),
    "a hidden file": (lambda out: _file(out / ".env"), "it holds '.env'"),
    "an edited model": (_edit, "'model.py' was changed since the compile wrote it"),
    "an edited lock": (lambda out: _edit(out, "plan.lock.json"), r"'plan\.lock\.json' was changed"),
    "an edit of the same length": (lambda out: (out / "model.py").write_text("two"), "'model.py' was changed"),
    "a link in a file's place": (lambda out: _replace(out, lambda path: path.symlink_to("plan.lock.json")), "changed"),
    "a dead link": (lambda out: (out / "latest").symlink_to("nowhere"), "it holds 'latest'"),
    "a folder in a file's place": (lambda out: _replace(out, lambda path: _folder(path, "mine")), "'model.py' was"),
    "an empty folder in a file's place": (lambda out: _replace(out, _folder), "'model.py' was changed"),
    "a pipe in a file's place": (lambda out: _replace(out, os.mkfifo), "'model.py' was changed"),
    "another case": (lambda out: (out / "model.py").rename(out / "Model.py"), "'Model.py', which no compile wrote"),
    "files of Python's cache": (lambda out: _cache(out, "model.my_only_copy.pth", b""), "'__pycache__/model.my_only"),
    "bytecode of another file": (lambda out: _cache(out, "train.cpython-311.pyc", b"\xa7\r\r\n"), "'__pycache__/train"),
    "no bytecode": (lambda out: _cache(out, "model.cpython-311.pyc", b"my notes"), "'__pycache__/model"),
    "a linked cache": (lambda out: (out / "__pycache__").symlink_to("."), "it holds '__pycache__'"),
    "no manifest": (lambda out: (out / MANIFEST).unlink(), "no manifest says"),
    "a linked manifest": (
        lambda out: (out / MANIFEST).rename(out / "m") and (out / MANIFEST).symlink_to("m"),
        "no man",
    ),
    "a broken manifest": (lambda out: (out / MANIFEST).write_text("{"), "manifest.json can't be read"),
    "a list for a manifest": (lambda out: (out / MANIFEST).write_text("[1]"), "manifest.json can't be read"),
    "a deep manifest": (lambda out: (out / MANIFEST).write_text("[" * 100_000), "manifest.json can't be read"),
}


def everything(root: Path) -> dict[str, tuple[int, str]]:
    """All entries below a folder: kind, and what is in it."""
    return {
        str(path): (path.lstat().st_mode, os.readlink(path) if path.is_symlink() else _text(path))
        for path in root.rglob("*")
    }


def _text(path: Path) -> str:
    return path.read_bytes().decode("latin-1") if path.is_file() else ""


@pytest.mark.usefixtures("system")
@pytest.mark.parametrize(("change", "message"), KEPT.values(), ids=KEPT)
def test_what_a_user_left_in_an_earlier_output_stops_the_next(tmp_path, change, message):
    out = tmp_path / "out"
    write_atomically(out, writer("one"))
    change(out)
    before = everything(tmp_path)
    with pytest.raises(OutputError, match=message):
        check_writable(out)
    with pytest.raises(OutputError, match=message):
        write_atomically(out, lambda folder: pytest.fail("the work was begun"))
    assert everything(tmp_path) == before


@pytest.mark.usefixtures("system")
@pytest.mark.parametrize("change", [row[0] for row in KEPT.values()], ids=KEPT)
def test_what_a_user_leaves_there_while_the_next_is_written_stops_it(tmp_path, change):
    out = tmp_path / "out"
    write_atomically(out, writer("one"))
    before = {}

    def write(folder: Path) -> None:
        writer("two")(folder)
        change(out)
        before.update(everything(out))

    with pytest.raises(OutputError, match="won't replace"):
        write_atomically(out, write)
    assert everything(out) == before
    assert os.listdir(tmp_path) == ["out"]


@pytest.mark.usefixtures("system")
def test_what_comes_at_the_last_moment_brings_the_old_folder_back(tmp_path, monkeypatch):
    out = tmp_path / "out"
    write_atomically(out, writer("one"))
    exchange = artifacts._exchange

    def late(new: Path, directory: Path, old: Path) -> None:
        (directory / "mine.txt").write_text("mine")
        monkeypatch.undo()
        exchange(new, directory, old)

    monkeypatch.setattr(artifacts, "_exchange", late)
    with pytest.raises(OutputError, match=r"it holds 'mine\.txt'"):
        write_atomically(out, writer("two"))
    assert contents(out) == {**whole("one"), "mine.txt": "mine"}
    assert os.listdir(tmp_path) == ["out"]


def test_what_comes_while_the_old_folder_is_removed_is_kept(tmp_path, monkeypatch):
    out = tmp_path / "out"
    write_atomically(out, writer("one"))
    remove = artifacts._remove

    def late(folder: Path, files: list[str]) -> None:
        (folder / "mine.txt").write_text("mine")
        remove(folder, files)

    monkeypatch.setattr(artifacts, "_remove", late)
    with pytest.raises(OutputError, match=r"'.*out' is written, but of the earlier one this is left: '.*-old'"):
        write_atomically(out, writer("two"))
    assert contents(out) == whole("two")
    monkeypatch.setattr(artifacts, "_is_alive", lambda pid: False)
    check_writable(out)
    (left,) = (path for path in tmp_path.iterdir() if path != out)
    assert contents(left) == {"mine.txt": "mine"}


@pytest.mark.usefixtures("system")
def test_what_is_left_of_an_earlier_output_is_not_in_the_way_of_the_next(tmp_path, monkeypatch):
    out = tmp_path / "out"
    write_atomically(out, writer("one"))
    remove = artifacts._remove

    def late(folder: Path, files: list[str]) -> None:
        monkeypatch.setattr(artifacts, "_remove", remove)
        (folder / "mine.txt").write_text("mine")
        remove(folder, files)

    monkeypatch.setattr(artifacts, "_remove", late)
    with pytest.raises(OutputError, match="of the earlier one this is left"):
        write_atomically(out, writer("two"))
    write_atomically(out, writer("three"))
    assert contents(out) == whole("three")
    (left,) = (path for path in tmp_path.iterdir() if path != out)
    assert contents(left) == {"mine.txt": "mine"}


def test_a_file_that_the_user_removed_is_not_missed(tmp_path):
    write_atomically(tmp_path / "out", writer("one"))
    (tmp_path / "out" / "model.py").unlink()
    write_atomically(tmp_path / "out", writer("two"))
    assert contents(tmp_path / "out") == whole("two")


def test_another_name_of_a_file_keeps_what_was_in_it(tmp_path):
    write_atomically(tmp_path / "out", writer("one"))
    os.link(tmp_path / "out" / "model.py", tmp_path / "mine.py")
    write_atomically(tmp_path / "out", writer("two"))
    assert (tmp_path / "mine.py").read_text() == "one"


def test_the_output_of_another_command_is_not_replaced(tmp_path):
    write_atomically(tmp_path / "out", writer("one"), "sensitivity")
    with pytest.raises(OutputError, match="it is what `prunec sensitivity` wrote, not `prunec compile`"):
        check_writable(tmp_path / "out")


def test_folders_in_an_output_are_replaced_with_it(tmp_path):
    def write(folder: Path) -> None:
        (folder / "model.mlpackage" / "data").mkdir(parents=True)
        (folder / "model.mlpackage" / "data" / "weights").write_text("one")

    write_atomically(tmp_path / "out", write)
    write_atomically(tmp_path / "out", writer("two"))
    assert contents(tmp_path / "out") == whole("two")
    write_atomically(tmp_path / "out", write)
    (tmp_path / "out" / "model.mlpackage" / "data" / "mine").write_text("mine")
    with pytest.raises(OutputError, match=r"it holds 'model\.mlpackage/data/mine'"):
        check_writable(tmp_path / "out")


def test_the_manifest_names_what_was_written(tmp_path):
    write_atomically(tmp_path / "out", writer("one"))
    manifest = json.loads((tmp_path / "out" / MANIFEST).read_text())
    digest = "7692c3ad3540bb803c020b3aee66cd8887123234ea0c6e7143c0add73ff431ed"  # of "one"
    assert manifest["writer"] == "compile"
    assert manifest["files"] == {"model.py": digest, "plan.lock.json": digest}


def test_the_folder_keeps_its_permissions(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out").chmod(0o700)
    for version in ("one", "two"):
        write_atomically(tmp_path / "out", writer(version))
        assert (tmp_path / "out").stat().st_mode & 0o777 == 0o700


# -- places ----------------------------------------------------------------------------------------------------------


PLACES = {
    "the root": (Path("/"), r"can't write to '/'|won't replace '/'"),
    "a name that is too long": (Path("x" * 300), "File name too long"),
    "a link to itself": (Path("circle"), "Symlink loop|leads to itself"),
    "below a link to itself": (Path("circle/out"), "Symlink loop|doesn't exist|Too many levels"),
}


@pytest.mark.parametrize(("place", "message"), PLACES.values(), ids=PLACES)
def test_places_that_cannot_be_replaced(tmp_path, monkeypatch, place, message):
    monkeypatch.chdir(tmp_path)
    Path("circle").symlink_to("circle")
    with pytest.raises(OutputError, match=message):
        check_writable(place)
    assert os.listdir() == ["circle"]


def test_the_current_folder_is_not_taken_away(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(OutputError, match="it is the current folder, which can't be replaced as a whole"):
        check_writable(Path())


def test_a_mount_point_is_refused_before_the_work(tmp_path, monkeypatch):
    (tmp_path / "out").mkdir()
    monkeypatch.setattr(os.path, "ismount", lambda path: path == tmp_path / "out")
    with pytest.raises(OutputError, match=r"it is a mount point, which can't be replaced as a whole"):
        check_writable(tmp_path / "out")


@pytest.mark.usefixtures("system")
def test_the_longest_name_is_taken(tmp_path):
    out = tmp_path / ("ä" * 127)
    for version in ("one", "two"):
        write_atomically(out, writer(version))
    assert contents(out) == whole("two")
    assert os.listdir(tmp_path) == [out.name]


def test_a_folder_that_may_not_be_written_is_left_alone(tmp_path, monkeypatch):
    write_atomically(tmp_path / "out", writer("one"))
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # root may write everywhere
    with pytest.raises(OutputError, match="it is protected from writing"):
        check_writable(tmp_path / "out")


def test_a_folder_of_somebody_elses_files_is_refused_without_a_walk_over_them(tmp_path, monkeypatch):
    _folder(tmp_path / "home", "thesis.tex")
    monkeypatch.setattr(os, "walk", lambda *args, **kwargs: pytest.fail("the folder is walked"))
    with pytest.raises(OutputError, match=r"it holds 'thesis\.tex'"):
        check_writable(tmp_path / "home")


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
        artifacts._remove = lambda *args, **kwargs: stop()
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


RACE = """
    import pathlib, sys
    from prunec.compiler.emit import output_folder as artifacts

    if sys.argv[2] == "two renames":
        artifacts._swap = lambda one, other: False
    for number in range(15):
        def write(folder):
            (folder / "plan.lock.json").write_text(f"{sys.argv[3]}{number}")
            (folder / "model.py").write_text(f"{sys.argv[3]}{number}")
        artifacts.write_atomically(pathlib.Path(sys.argv[1]), write)
"""


@pytest.mark.parametrize("way", ["swap", "two renames"])
def test_runs_into_one_folder_at_once_take_turns(tmp_path, way):
    out = tmp_path / "out"
    command = [sys.executable, "-c", textwrap.dedent(RACE), str(out), way]
    runs = [subprocess.Popen([*command, name]) for name in ("one", "two", "three")]
    assert [run.wait() for run in runs] == [0, 0, 0]
    assert os.listdir(tmp_path) == ["out"]
    assert contents(out) in [whole(f"{name}14") for name in ("one", "two", "three")]
    check_writable(out)


def test_leaves_the_folders_of_running_compiles_alone(tmp_path):
    def write(folder: Path) -> None:
        check_writable(tmp_path / "out")
        writer("one")(folder)

    write_atomically(tmp_path / "out", write)
    assert contents(tmp_path / "out") == whole("one")


def test_leaves_the_folders_of_another_users_compile_alone(tmp_path, monkeypatch):
    theirs = _folder(artifacts._sibling(tmp_path / "out"), "model.py")

    def refuse(pid: int, number: int) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "kill", refuse)
    check_writable(tmp_path / "out")
    assert contents(theirs) == {"model.py": "mine"}


@pytest.mark.parametrize("first", [999_999_998, 999_999_999])
def test_of_several_folders_that_dead_compiles_left_the_whole_one_is_put_back(tmp_path, first):
    """One of them holds a file of the user's, so it stays; the other was to be replaced when its compile was killed."""
    stem = artifacts._stem(tmp_path / "out")
    left = {pid: tmp_path / f"{stem}{pid}-0-old" for pid in (999_999_998, 999_999_999)}  # no system counts so far
    for pid, folder in left.items():
        write_atomically(tmp_path / "made", writer("one" if pid == first else "two"))
        (tmp_path / "made").rename(folder)
    _file(left[first] / "mine.txt")
    check_writable(tmp_path / "out")
    assert contents(tmp_path / "out") == whole("two")
    assert contents(left[first]) == {**whole("one"), "mine.txt": "mine"}
