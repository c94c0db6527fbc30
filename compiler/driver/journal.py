"""What a compile that trains has done, kept beside its output: after a kill, the same command goes on from there.

    out.prunec-checkpoint/
      README.txt          whose it is, and how to go on or to begin anew
      journal.json        the owner, and every pass that is done: its record, and passes that give the same structure
      values-7.pt         the tensors behind pass 7, the last training that was finished
      training-9.pt       where the training that runs, pass 9, has got to

A later compile of the same plan, model and data runs the passes of the journal for their structure alone: nothing is
scored, decided, trained or verified anew. Then it takes the values, and goes on. There are never more than two files of
tensors; the folder vanishes with the compile's success.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Final, TypeVar

import numpy as np
import torch
from torch import Tensor

from prunec.compiler.cost.model import cost
from prunec.compiler.driver.lock import entry, pass_of, sha256_of
from prunec.compiler.errors import OutputError, PrunecError
from prunec.compiler.ir.modules import with_own_tensors
from prunec.compiler.ir.program import Note, Program
from prunec.compiler.pass_base import Attachment, Context, Keeper, NoKeeper, Pass, PassResult
from prunec.compiler.plan.plan import Plan
from prunec.compiler.report.report import Record
from prunec.compiler.verify.verify import Verification
from prunec.compiler.version import __version__

if sys.platform != "win32":
    import fcntl

SUFFIX: Final = ".prunec-checkpoint"
JOURNAL: Final = "journal.json"
_README: Final = "README.txt"

Made = TypeVar("Made")


def checkpoint_folder(output: Path) -> Path:
    """Where a compile into this folder keeps its checkpoints."""
    target = Path(os.path.realpath(output))
    return target.with_name(target.name + SUFFIX)


@dataclass
class Journal:
    """The passes that are done, in the order in which they ran; and where the one that runs keeps its checkpoints."""

    folder: Path | None = None
    """None where nothing is kept."""
    owner: Mapping[str, str] = field(default_factory=dict)
    every: float = 60.0
    """Seconds between two checkpoints of a training."""
    entries: list[dict[str, Any]] = field(default_factory=list)
    """Those of an earlier compile first, then this one's."""
    writes: bool = True
    """Whether it is this process that writes: of several that train together, the first does."""
    known: int = 0
    """How many entries an earlier compile has left."""
    at: int = 0
    """The number of the next one."""
    _held: int | None = None
    _mine: bool = False
    """Whether the folder was there, and had nothing of another compile in it."""
    _begun: bool = False
    """Whether the folder has a journal of this compile."""

    @staticmethod
    def of(plan: Plan, program: Program, folder: Path | None, *, writes: bool = True) -> Journal:
        """The journal of a plan; with what an earlier compile of it left in the folder.

        Raises `OutputError` where the folder is another plan's, is in use, or is none.
        """
        if folder is None or not _takes_long(plan):
            return Journal()
        seconds = plan.train.checkpoint_seconds if plan.train else 60.0
        journal = Journal(folder, _owner(plan, program), seconds, writes=writes)
        if os.path.lexists(folder) and not folder.is_dir():
            hint = "checkpoints lie beside the output: name another one"
            raise OutputError(f"{folder} is there, and is no folder for checkpoints", hint=hint)
        if folder.exists():
            try:
                journal._take_up()
            except PrunecError:
                journal.release()
                raise
        return journal

    # -- what is done ----------------------------------------------------------------------------------------------

    def replay(self, pass_: Pass, program: Program, context: Context) -> tuple[PassResult, Record] | None:
        """The result and the record of a pass that an earlier compile has done; None for one that has to run."""
        if self.at >= self.known:
            return None
        found = self.entries[self.at]
        self._expect(found, pass_.name)
        self.at += 1
        after = structure(program, (pass_of(each) for each in found["passes"]), context)
        if self.at == self.known:
            after = self._with_values(after)
        details, notes = found["details"], tuple(Note(*each) for each in found["notes"])
        attached = tuple(_from_text(each) for each in found["attachments"])
        result = PassResult(after, notes, details, tuple(found["warnings"]), tuple(found["history"]), attached)
        return result, _record(found, cost(program), result)

    def add(self, pass_: Pass, result: PassResult, record: Record) -> None:
        """Take down a pass that is done; behind a training, and what took as long, write down all."""
        self.at += 1
        if self.folder is None:
            return
        said = record.to_dict()
        self.entries.append(
            {
                "name": pass_.name,
                "passes": [entry(each) for each in pass_.resolved(result)],
                "seconds": [record.seconds, record.verify_seconds],
                "notes": [[note.subject, note.reason] for note in record.notes],
                "warnings": list(record.warnings),
                "round": record.round,
                **{key: said.get(key) for key in ("details", "verification")},
                "history": said.get("history", []),
                "attachments": [_as_text(each) for each in record.attachments],
            }
        )
        if (pass_.trains or (pass_.keeps and record.seconds >= self.every)) and self.writes:
            self._write_values(result.program)

    def recall(self, what: str, make: Callable[[], Made]) -> Made:
        """What `make` gives, a plain JSON value; or what it gave an earlier compile at the same place."""
        if self.at < self.known:
            found = self.entries[self.at]
            self._expect(found, what)
            self.at += 1
            known: Made = found["value"]
            return known
        value = make()
        self.at += 1
        if self.folder is not None:
            self.entries.append({"name": what, "value": value})
        return value

    def _expect(self, found: Mapping[str, Any], name: str) -> None:
        if found["name"] != name:
            raise self._unusable(f"its entry {self.at} is of '{found['name']}', and '{name}' is to be run")

    # -- a training's own checkpoints ------------------------------------------------------------------------------

    def keeper(self) -> Keeper:
        """Where the training that comes next keeps its checkpoints."""
        return NoKeeper() if self.folder is None else _Keeper(self, self.at)

    @property
    def where(self) -> str:
        """How far the checkpoints go, in words; empty where there are none."""
        if self.folder is None or not (self.folder / JOURNAL).exists():
            return ""
        passes = sum("passes" in each for each in self.entries[: self._done()])
        midway = any(self.folder.glob("training-*.pt"))
        return f"{passes} passes done" + (", and the training that was running" if midway else "")

    def _done(self) -> int:
        """How many entries are written down: those up to the last one whose values are."""
        trained = (i for i, each in enumerate(self.entries) if each.get("trained"))
        return max(trained, default=-1) + 1

    def finish(self) -> None:
        """Remove the folder: the compile has succeeded."""
        if self.folder is not None and self.writes and self.folder.exists():
            shutil.rmtree(self.folder, ignore_errors=True)
        self.release()

    def release(self) -> None:
        """Let another compile use the folder."""
        if self._held is not None:
            os.close(self._held)
            self._held = None

    # -- files -----------------------------------------------------------------------------------------------------

    def _take_up(self) -> None:
        """Read what an earlier compile left."""
        assert self.folder is not None
        self._hold()
        path = self.folder / JOURNAL
        if not path.exists():
            if {each.name for each in self.folder.iterdir()} - {_README, _fresh(path).name}:
                hint = "name another output"
                raise OutputError(f"{self.folder} is there, and holds no checkpoints", hint=hint)
            self._mine = True  # made by a compile that was killed at once, or by the user
            return
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
            owner, entries = dict(found["owner"]), list(found["entries"])
        except (ValueError, KeyError, TypeError, OSError) as error:
            raise self._unusable(f"{path} can't be read: {error}") from error
        other = next((what for what, value in self.owner.items() if owner.get(what) != value), None)
        if other is not None:
            message = f"the checkpoints in {self.folder} are of another compile: {_DIFFERS[other]}"
            hint = f"delete {self.folder} to begin anew, or name another output"
            raise OutputError(message, hint=hint)
        self.entries, self.known = entries, len(entries)
        self._begun = True

    def _unusable(self, why: str) -> PrunecError:
        hint = f"delete {self.folder} to begin anew"
        return OutputError(f"the checkpoints in {self.folder} can't be used: {why}", hint=hint)

    def _begin(self) -> Path:
        """The folder, with a README in it, held by this process."""
        assert self.folder is not None
        if self._begun:
            return self.folder
        with _written(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
        self._hold()
        if not self._mine and any(self.folder.iterdir()):
            message = f"another compile has put its checkpoints into {self.folder} meanwhile"
            raise OutputError(message, hint="name another output")
        text = f"Checkpoints of `prunec compile` into {self.folder.name.removesuffix(SUFFIX)}, begun {_now()}.\n"
        how = "The same command goes on from here. Delete this folder to begin anew.\n"
        with _written(self.folder):
            (self.folder / _README).write_text(text + how, encoding="utf-8")
        self._write_journal()
        self._begun = True
        return self.folder

    def _hold(self) -> None:
        """Keep other compiles away from the folder as long as this one runs. Raises `OutputError`."""
        if sys.platform == "win32" or self._held is not None or not self.writes:
            return
        assert self.folder is not None
        self._held = os.open(self.folder, os.O_RDONLY)
        try:
            fcntl.flock(self._held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            self.release()
            message = f"another compile is running that keeps its checkpoints in {self.folder}"
            raise OutputError(message, hint="wait for it, or name another output") from error
        except OSError:  # some network file systems can't lock a folder
            pass

    def _write_journal(self) -> None:
        assert self.folder is not None
        said = {"owner": dict(self.owner), "entries": self.entries[: self._done()]}
        _replace(self.folder / JOURNAL, lambda path: path.write_text(json.dumps(said), encoding="utf-8"))

    def _write_values(self, program: Program) -> None:
        """Write down all entries, and the values behind the last one; earlier values and checkpoints go."""
        folder = self._begin()
        self.entries[-1]["trained"] = True
        values = {
            "tensors": {name: tensor.detach().cpu() for name, tensor in program.tensors.items()},
            "carried": dict(program.carried),
            "facts": {name: plain for name, fact in program.facts.items() if (plain := _plain(fact)) is not None},
        }
        new = folder / f"values-{len(self.entries)}.pt"
        _replace(new, partial(_save, values))
        self._write_journal()
        for old in (*folder.glob("values-*.pt"), *folder.glob("training-*.pt")):
            if old != new:
                old.unlink()

    def _with_values(self, program: Program) -> Program:
        """The program with the values that an earlier compile had behind the journal's last entry."""
        assert self.folder is not None
        path = self.folder / f"values-{self.known}.pt"
        try:
            found = torch.load(path, weights_only=True)
        except Exception as error:  # whatever a damaged file makes torch raise
            raise self._unusable(f"{path} can't be read: {error}") from error
        facts = {name: _arrays(fact) for name, fact in found["facts"].items()}
        made = with_values(program, found["tensors"])
        return made.derive(carried=found["carried"], facts={**facts, **program.facts})


class _Keeper:
    """Where one training keeps its checkpoints: one file, which a new one takes the place of."""

    def __init__(self, journal: Journal, number: int) -> None:
        self._journal, self._number = journal, number
        self._last = time.monotonic()

    @property
    def _path(self) -> Path:
        assert self._journal.folder is not None
        return self._journal.folder / f"training-{self._number}.pt"

    @property
    def place(self) -> str:
        """The folder, where something is in it."""
        return str(self._journal.folder) if self._path.exists() or self._journal.known else ""

    def due(self) -> bool:
        """Whether the last checkpoint was long enough ago."""
        return time.monotonic() - self._last >= self._journal.every

    def save(self, write: Callable[[Path], Any]) -> None:
        """Have `write` make the file."""
        self._journal._begin()
        _replace(self._path, write)
        self._last = time.monotonic()

    def load(self) -> Path | None:
        """The file that was left."""
        return self._path if self._path.exists() else None


def _save(values: Any, path: Path) -> None:
    """`torch.save` that raises the system's own error, which torch's hides."""
    try:
        with path.open("wb") as file:
            torch.save(values, file)
    except RuntimeError as error:
        raise error.__context__ if isinstance(error.__context__, OSError) else error from None


def _fresh(path: Path) -> Path:
    """What a file is called until it is whole."""
    return path.with_name(f".{path.name}.new")


def _replace(path: Path, write: Callable[[Path], Any]) -> None:
    """Have `write` make a file beside `path`, and then give it its name: a kill leaves the old one or the new one."""
    fresh = _fresh(path)
    try:
        with _written(path.parent):
            write(fresh)
            with fresh.open("rb+") as file:
                os.fsync(file.fileno())
            fresh.replace(path)
    finally:
        with suppress(OSError):
            fresh.unlink()


@contextmanager
def _written(folder: Path) -> Iterator[None]:
    """A context in which something is written for the folder. Raises `OutputError` where the system can't."""
    try:
        yield
    except OSError as error:
        hint = "what was written before is still there: the same command goes on from it"
        raise OutputError(f"no checkpoint can be written to '{folder}': {error.strerror}", hint=hint) from error


# -- passes for their structure alone --------------------------------------------------------------------------------


def structure(program: Program, passes: Any, context: Context) -> Program:
    """The program behind passes that decide nothing, as far as structure goes; values come later.

    Nothing is trained and nothing verified.
    """
    context = replace(context, structural=True)
    for each in passes:
        program = untrained(each, program) if each.trains else each.run(program, context).program
    return program


def untrained(pass_: Pass, program: Program) -> Program:
    """What is known of a program behind a training."""
    known = {name: fact for name, fact in program.facts.items() if name not in pass_.drops}
    return replace(program, facts=known)


def with_values(program: Program, tensors: Mapping[str, Tensor]) -> Program:
    """The program with other values, in tensors of its own. Raises `OutputError` where names or shapes differ."""
    for name, tensor in program.tensors.items():
        if name not in tensors or tensors[name].shape != tensor.shape:
            found = list(tensors[name].shape) if name in tensors else "nothing"
            raise OutputError(f"the values for '{name}', {list(tensor.shape)}, are {found}")
    made = program.derive(state=with_own_tensors(program.state), facts=program.facts)
    with torch.no_grad():
        for name, tensor in made.tensors.items():
            tensor.copy_(tensors[name])
    return made


def _record(found: Mapping[str, Any], before: Any, result: PassResult) -> Record:
    """The record of a pass, as it was taken down."""
    seconds, verify_seconds = found["seconds"]
    said = found["verification"]
    verification = None if said is None else Verification(**{**said, "batches": tuple(said["batches"])})
    told = result.notes, result.details, verification, result.warnings, result.history, found["round"]
    return Record(
        found["name"], seconds, verify_seconds, before, cost(result.program), *told, attachments=result.attachments
    )


def _as_text(attachment: Attachment) -> dict[str, str]:
    """An attachment as plain JSON values."""
    return {**asdict(attachment), "content": base64.b64encode(attachment.content).decode("ascii")}


def _from_text(said: Mapping[str, str]) -> Attachment:
    words = {key: value for key, value in said.items() if key != "content"}
    return Attachment(**words, content=base64.b64decode(said["content"]))


def _plain(fact: Any) -> Any:
    """A fact of arrays by group, as tensors; None for any other: those come of the passes themselves."""
    if isinstance(fact, Mapping) and fact and all(isinstance(x, np.ndarray) for x in fact.values()):
        return {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in fact.items()}
    return None


def _arrays(fact: Mapping[str, Tensor]) -> dict[str, Any]:
    return {name: tensor.numpy() for name, tensor in fact.items()}


# -- whose it is -----------------------------------------------------------------------------------------------------

_DIFFERS: Final = {
    "plan": "the plan has changed since",
    "model": "the model's weights are others",
    "prunec": "another version of prunec has written them",
    "torch": "another version of torch has written them",
}


_BESIDE: Final = ("checkpoint_seconds", "tensorboard")
"""What a plan's `train` says that changes no weights."""


def _owner(plan: Plan, program: Program) -> dict[str, str]:
    """What a compile must have in common with the one that left the checkpoints."""
    said = {
        key: value
        for key, value in plan.to_dict().items()
        if key not in ("export", "preprocess", "postprocess", "hashes", "versions")
    }
    if "train" in said:
        said["train"] = {key: value for key, value in said["train"].items() if key not in _BESIDE}
    return {
        "plan": hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest(),
        "model": sha256_of(program.tensors),
        "prunec": __version__,
        "torch": torch.__version__,
    }


def _takes_long(plan: Plan) -> bool:
    """Whether a pass of the plan trains or keeps what it has done, or one that another holds."""

    def long(pass_: Pass) -> bool:
        held: Sequence[Any] = getattr(pass_, "passes", ())
        return pass_.trains or pass_.keeps or any(long(each.pass_) for each in held)

    return any(long(each.pass_) for each in plan.passes)


def _now() -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S")
