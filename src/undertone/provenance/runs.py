"""A run folder and its stages: the only door to the files of a run.

A stage is computed in ``stages/<name>.part/`` and renamed to ``stages/<name>/`` when its files and
their hashes are on disk, so what looks finished is finished. Its identity is its name, version,
config and the outputs of the stages it reads. TraitAnswers for again: finished and equal is verified, file
by file, and reused; finished and different is refused with a diff; a ``.part`` of the same identity
is handed to `compute` again, which may go on from a checkpoint that it left there. So a killed run
is continued by the same command.

What `compute` leaves in its folder must depend on the identity alone; it removes its checkpoints
itself. Files whose names end in ``.part`` are half-written and do not survive an interruption.
"""

from __future__ import annotations

import difflib
import errno
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from undertone.errors import ConfigError, RunError
from undertone.provenance.configs import Config
from undertone.provenance.plain_data import plain, read_yaml, to_yaml
from undertone.provenance.renamed import with_current_names
from undertone.provenance.stages import (
    RECORD,
    Stage,
    is_complete,
    now,
    peek,
    prepare,
    record_of,
    reuse,
    seal,
    stage_of,
    sync,
    write_json,
)
from undertone.rows import atomic_file

__all__ = ["Run", "Stage", "write_json"]

_STAGE_WAIT_SECONDS = 600.0  # for a worker that outlived its killed run and still computes
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._=+@-]*(?<!\.part)")
_FULL = (errno.ENOSPC, errno.EDQUOT)
_CLOSED = (errno.EACCES, errno.EPERM, errno.EROFS)


@dataclass(frozen=True)
class Run:
    """An open run folder. Plain data: it may be pickled and sent to worker processes."""

    folder: Path
    command: str = ""
    prefix: str = ""
    """Put before every stage's name: see `within`."""

    def within(self, name: str) -> Run:
        """The same run, its stages below ``NAME/``: one pipeline used several times, with one thing changed."""
        return replace(self, prefix=f"{self.prefix}{name}/")

    @classmethod
    @contextmanager
    def open(cls, folder: str | Path, config: Config | Mapping[str, Any], *, command: str) -> Iterator[Run]:
        """Create or continue the run in `folder`, alone in it until the block ends.

        Raises:
            RunError: another process has it open, it holds a run of another config, or it cannot
                be written.
        """
        run = cls(Path(folder).absolute(), command)
        try:
            (run.folder / "stages").mkdir(parents=True, exist_ok=True)
            lock = FileLock(run.folder / ".lock")
            lock.acquire(timeout=0)
        except Timeout as error:
            raise RunError(
                f"the run folder {run.folder} is in use by another process",
                got=_holder(run.folder),
                fix="wait for it to end, stop it, or choose another folder",
            ) from error
        except (OSError, NotImplementedError) as error:
            raise RunError(
                f"the run folder {run.folder} cannot be written",
                got=f"{type(error).__name__}: {error}",
                allowed="a folder that this user may create and write, on a disk with room",
                fix="choose another folder",
            ) from error
        try:
            with _readable_failures(f"the run folder {run.folder}", run.folder, command):
                run._adopt(config)
            yield run
        finally:
            lock.release()

    @classmethod
    def attach(cls, folder: str | Path, *, command: str = "") -> Run:
        """The run as seen by a worker process; the lock stays with the process that opened it."""
        return cls(Path(folder).absolute(), command)

    def stage(
        self,
        name: str,
        *,
        config: Mapping[str, Any],
        inputs: Sequence[Stage] = (),
        version: int = 1,
        compute: Callable[[Path], Mapping[str, Any] | None],
    ) -> Stage:
        """Reuse the finished stage, or compute it.

        Args:
            name: where it lives under ``stages/``; ``/`` makes folder levels.
            config: all that its output depends on, beside the inputs.
            inputs: the stages it reads.
            version: raised by the programmer when the meaning of the output changes.
            compute: writes files into the folder given and returns a small summary.

        Raises:
            RunError: the stage is corrupt, was computed from something else, or cannot be written.
        """
        name = self.prefix + name
        final = self._located(name)
        identity = {
            "name": name,
            "version": version,
            "config": plain(config),
            "inputs": {stage.name: stage.output_digest for stage in inputs},
        }
        with (
            _readable_failures(f"the stage {name!r}", self.folder, self.command),
            self._stage_lock(name),
        ):
            if _is_level(final):
                raise RunError(
                    f"the stage {name!r} would have other stages inside it",
                    got=str(final),
                    fix="give the stage a name of its own",
                )
            if final.exists():
                return reuse(final, identity)
            part = final.with_name(final.name + ".part")
            if not is_complete(part, identity):
                prepare(part, identity)
                started = time.perf_counter()
                summary = compute(part)
                seal(part, identity, time.perf_counter() - started, summary)
            part.rename(final)
            sync(final.parent)
            return stage_of(final, record_of(final), reused=False)

    def _adopt(self, config: Config | Mapping[str, Any]) -> None:
        """Write ``config.yaml``, or check that the one there says the same."""
        data = config.model_dump(mode="json", round_trip=True) if isinstance(config, Config) else plain(config)
        text, path = to_yaml(data), self.folder / "config.yaml"
        owner = {"pid": os.getpid(), "command": self.command, "since": now()}
        write_json(self.folder / ".owner.json", owner)
        if not path.exists():
            with atomic_file(path) as file:
                file.write(text.encode("utf-8"))
            return
        try:
            stored = read_yaml(path.read_text(encoding="utf-8"), str(path))
        except (ConfigError, UnicodeDecodeError) as error:
            raise RunError(
                f"{path} cannot be read", got=str(error), fix=f"restore it, or delete {self.folder}"
            ) from error
        if isinstance(config, Config) and isinstance(stored, dict):
            stored = with_current_names([type(config)], stored)
        if stored == data:
            return
        before = to_yaml(stored) if isinstance(stored, dict) else str(stored)
        diff = difflib.unified_diff(before.splitlines(), text.splitlines(), str(path), "asked for", lineterm="", n=1)
        raise RunError(
            f"the run folder {self.folder} holds a run of another config",
            got="\n".join(diff),
            fix="choose another folder, or delete this one to start over",
        )

    def _located(self, name: str) -> Path:
        parts = name.split("/")
        if not all(_NAME.fullmatch(part) for part in parts):
            raise RunError(
                f"{name!r} cannot be the name of a stage",
                got=name,
                allowed="parts of letters, digits and . _ = + @ -, joined by /; none ends in .part",
            )
        final = self.folder / "stages" / name
        for depth in range(1, len(parts)):
            above = self.folder.joinpath("stages", *parts[:depth])
            if (above / RECORD).exists():
                raise RunError(f"the stage {name!r} would lie inside another stage", got=str(above))
        return final

    @contextmanager
    def _stage_lock(self, name: str) -> Iterator[None]:
        """Alone at the stage: workers of a killed run may still be at work on it."""
        path = self.folder / ".locks" / (name.replace("/", "%") + ".lock")
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with FileLock(path, timeout=_STAGE_WAIT_SECONDS):
                yield
        except Timeout as error:
            raise RunError(
                f"the stage {name!r} is being computed by another process",
                got=f"{path} locked for {_STAGE_WAIT_SECONDS:.0f} seconds",
                fix="stop that process (a worker of a killed run?), then run the command again",
            ) from error


def _is_level(folder: Path) -> bool:
    """Whether a folder below ``stages/`` is a level of names rather than a stage."""
    return not (folder / RECORD).exists() and next(folder.rglob(RECORD), None) is not None


@contextmanager
def _readable_failures(what: str, folder: Path, command: str) -> Iterator[None]:
    """Turn "disk full" and "not writable" into a RunError; let everything else through."""
    try:
        yield
    except RunError:
        raise
    except Exception as error:
        fault = _disk_fault(error, folder)
        if fault is None:
            raise
        again = f"run the same command again: {command}" if command else "run the same command again"
        cure = "free some space" if fault == "the disk is full" else "make the folder writable"
        raise RunError(
            f"{what} could not be written: {fault}",
            got=f"{type(error).__name__}: {error}",
            fix=f"{cure}, then {again}; finished stages are kept",
        ) from error


def _disk_fault(error: BaseException | None, folder: Path) -> str | None:
    """What the disk refused, also where a library wrapped it into an error of its own."""
    while error is not None:
        number = error.errno if isinstance(error, OSError) else None
        # safetensors and torch pass on the system's words, but not its number.
        if number in _FULL or "No space left on device" in str(error):
            return "the disk is full"
        if number in _CLOSED and _is_within(error, folder):
            return "this user may not write there"
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    return None


def _is_within(error: BaseException, folder: Path) -> bool:
    """Whether the file that an OSError speaks of is ours; an unnamed one is taken to be."""
    name = getattr(error, "filename", None)
    return not isinstance(name, str | Path) or Path(name).absolute().is_relative_to(folder)


def _holder(folder: Path) -> str | None:
    owner = peek(folder / ".owner.json")
    if not isinstance(owner, dict):
        return None
    return f"process {owner.get('pid')}, since {owner.get('since')}: {owner.get('command')}"
