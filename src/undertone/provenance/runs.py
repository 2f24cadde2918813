"""A run folder and its stages: the only door to the files of a run.

A stage is computed in ``stages/<name>~<process>.part/`` (``parts``) and renamed to ``stages/<name>/`` when its files
and their hashes are on disk, so what looks finished is finished. Its identity is computed from its
arguments (``stage_functions``). Asked for again: finished and equal is verified, file by file, and
reused; finished and different is stale (:func:`stale`), and computed again only where the user says
so or the config has grown; a ``.part`` of the same identity is handed to `compute` again, which may
go on from a checkpoint that it left there. So a killed run is continued by the same command.

What `compute` leaves in its folder must depend on the identity alone; it removes its checkpoints
itself. Files whose names end in ``.part`` are half-written and do not survive an interruption.
"""

from __future__ import annotations

import difflib
import errno
import os
import re
import shutil
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from undertone.errors import ConfigError, RunError
from undertone.provenance.configs import Config, has_grown, load
from undertone.provenance.parts import claim, finish, signs_of_life
from undertone.provenance.plain_data import plain, read_yaml, to_yaml
from undertone.provenance.stages import (
    INTENT,
    RECORD,
    Clock,
    Stage,
    differences,
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

__all__ = ["OWNER", "Run", "Stage", "stale", "write_json"]

OWNER = ".owner.json"  # which process has the folder open
_SHOWN_CHANGES = 6
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
    recompute: bool = False
    """Whether finished stages that no longer fit are computed again: the user said so, or the config has grown."""
    config_text: str = ""

    def within(self, name: str) -> Run:
        """The same run, its stages below ``NAME/``: one pipeline used several times, with one thing changed."""
        return replace(self, prefix=f"{self.prefix}{name}/")

    @classmethod
    @contextmanager
    def open(
        cls, folder: str | Path, config: Config | Mapping[str, Any], *, command: str, recompute: bool = False
    ) -> Iterator[Run]:
        """Create, continue or extend the run in `folder`, alone in it until the block ends.

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
                adopted = run._adopt(config, recompute)
            yield adopted
        finally:
            lock.release()

    @classmethod
    def attach(cls, folder: str | Path, *, command: str = "") -> Run:
        """The run as seen by a worker process; the lock stays with the process that opened it."""
        return cls(Path(folder).absolute(), command)

    def find(self, name: str, identity: dict[str, Any]) -> tuple[Stage | None, list[str]]:
        """The finished stage of a name, verified, and in what it differs from what is asked for (nothing: it is that).

        Raises:
            RunError: its files are not those that were written.
        """
        name = self.prefix + name
        final = self._located(name)
        with _readable_failures(f"the stage {name!r}", self.folder, self.command):
            if not final.exists() or _is_level(final):
                return None, []
            return reuse(final, name), differences(final, identity)

    def compute(
        self, name: str, identity: dict[str, Any], compute: Callable[[Path], Mapping[str, Any] | None],
        inputs: Sequence[str] = (),
    ) -> Stage:  # fmt: skip
        """Compute a stage that is not there, or take it as another process has just left it.

        Args:
            name: where it lives under ``stages/``; ``/`` makes folder levels.
            identity: all that its output depends on.
            compute: writes files into the folder given and returns a small summary.
            inputs: names of the stages that it reads.

        Raises:
            RunError: the stage is corrupt, was computed from something else meanwhile, or cannot be written.
        """
        name = self.prefix + name
        final = self._located(name)
        with (
            _readable_failures(f"the stage {name!r}", self.folder, self.command),
            self._stage_lock(name) as lock,
        ):
            if _is_level(final):
                raise RunError(
                    f"the stage {name!r} would have other stages inside it",
                    got=str(final),
                    fix="give the stage a name of its own",
                )
            if final.exists():
                if changes := differences(final, identity):
                    raise stale({name: changes}, self)
                return reuse(final, name)
            part = claim(final, lock, _STAGE_WAIT_SECONDS)
            if part is not None and not is_complete(part, identity):
                prepare(part, identity)
                clock = Clock()
                with signs_of_life(part / INTENT), _still_ours(part, name):
                    summary = compute(part)
                    seal(part, identity, clock.read(), summary, inputs)
            first = part is not None and finish(part, final)
            if not first and (changes := differences(final, identity)):
                raise stale({name: changes}, self)
            sync(final.parent)
            return stage_of(final, record_of(final), name, reused=False) if first else reuse(final, name)

    def discard(self, name: str) -> None:
        """Remove a finished stage, so that it is computed again."""
        final = self._located(self.prefix + name)
        if (final / RECORD).exists():
            doomed = final.with_name(final.name + ".part")
            shutil.rmtree(doomed, ignore_errors=True)
            final.rename(doomed)
            shutil.rmtree(doomed)

    def dependents(self, names: Collection[str]) -> list[str]:
        """Finished stages that read some of these, directly or through others."""
        reads = {}
        for path in sorted((self.folder / "stages").rglob(RECORD)):
            if not path.parent.name.endswith(".part"):
                name = path.parent.relative_to(self.folder / "stages").as_posix()
                reads[name] = set(record_of(path.parent).get("inputs", ()))
        found: set[str] = set(names)
        while more := {name for name, inputs in reads.items() if inputs & found} - found:
            found |= more
        return sorted(found - set(names))

    def identities(self) -> dict[str, str]:
        """Digest of an identity -> the name of the finished stage that has it."""
        root = self.folder / "stages"
        return {
            str(record["digest"]): path.parent.relative_to(root).as_posix()
            for path in sorted(root.rglob(RECORD))
            if not path.parent.name.endswith(".part") and isinstance(record := peek(path), dict) and "digest" in record
        }

    def names_of(self, folders: Collection[Path]) -> list[str]:
        """The stages of this run that hold some of these folders."""
        root = self.folder / "stages"
        found = set()
        for folder in folders:
            here = folder
            while here != root and root in here.parents:
                if (here / RECORD).exists():
                    found.add(here.relative_to(root).as_posix())
                    break
                here = here.parent
        return sorted(found)

    def keep_config(self) -> None:
        """Write the config of a run that has grown; before its results are."""
        with atomic_file(self.folder / "config.yaml") as file:
            file.write(self.config_text.encode("utf-8"))

    def _adopt(self, config: Config | Mapping[str, Any], recompute: bool) -> Run:
        """Write ``config.yaml``, or see whether the one there says the same, or less of the same."""
        data = config.model_dump(mode="json", round_trip=True) if isinstance(config, Config) else plain(config)
        text, path = to_yaml(data), self.folder / "config.yaml"
        owner = {"pid": os.getpid(), "command": self.command, "since": now()}
        write_json(self.folder / OWNER, owner)
        adopted = replace(self, config_text=text, recompute=recompute)
        if not path.exists():
            adopted.keep_config()
            return adopted
        stored = self._stored_config(path, config)
        if stored == data or recompute:
            return adopted
        if isinstance(config, Config) and has_grown(type(config), stored, data):
            return replace(adopted, recompute=True)
        before = to_yaml(stored) if isinstance(stored, dict) else str(stored)
        diff = difflib.unified_diff(before.splitlines(), text.splitlines(), str(path), "asked for", lineterm="", n=1)
        raise RunError(
            f"the run folder {self.folder} holds a run of another config",
            got="\n".join(diff),
            allowed="the same config, or one with more seeds, traits, arms or samples",
            fix="choose another folder, or add --recompute: stages that still fit are kept, the others computed again",
        )

    def _stored_config(self, path: Path, config: Config | Mapping[str, Any]) -> Any:
        """What ``config.yaml`` says, with defaults of fields that are newer than it."""
        try:
            stored = read_yaml(path.read_text(encoding="utf-8"), str(path))
        except (ConfigError, UnicodeDecodeError) as error:
            raise RunError(
                f"{path} cannot be read", got=str(error), fix=f"restore it, or delete {self.folder}"
            ) from error
        if isinstance(config, Config) and isinstance(stored, dict):
            with suppress(ConfigError):  # a config of another kind, or of an older version: the diff tells
                return load(type(config), stored).model_dump(mode="json", round_trip=True)
        return stored

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
    def _stage_lock(self, name: str) -> Iterator[Path]:
        """Alone at the stage: workers of a killed run may still be at work on it. Yields the file of the lock."""
        path = self.folder / ".locks" / (name.replace("/", "%") + ".lock")
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with FileLock(path, timeout=_STAGE_WAIT_SECONDS):
                yield path
        except Timeout as error:
            raise RunError(
                f"the stage {name!r} is being computed by another process",
                got=f"{path} locked for {_STAGE_WAIT_SECONDS:.0f} seconds",
                fix="stop that process (a worker of a killed run?), then run the command again",
            ) from error


@contextmanager
def _still_ours(part: Path, name: str) -> Iterator[None]:
    """Say so if the folder is gone: another machine took this process for dead and goes on in its place."""
    try:
        yield
    except OSError as error:
        if part.exists():
            raise
        raise RunError(
            f"the stage {name!r} was taken over by another process while it was computed",
            got=f"{part} is not there any more",
            fix="this process was out of touch for too long; run the same command again, on one machine at a time",
        ) from error


def stale(found: Mapping[str, Sequence[str]], run: Run) -> RunError:
    """The error of a run whose inputs have changed: every stage that no longer fits, why, and what to do.

    Args:
        found: stage -> what it was computed from and what it would be now.
        run: whose stages.
    """
    lines = []
    for name, changes in sorted(found.items()):
        lines += [name, *(f"    {change}" for change in changes[:_SHOWN_CHANGES])]
        lines += [f"    … and {len(changes) - _SHOWN_CHANGES} more"] if len(changes) > _SHOWN_CHANGES else []
    later = run.dependents(found)
    lines += [f"{name}\n    rests on those" for name in later]
    count = len(found) + len(later)
    again = f"{run.command} --recompute" if run.command else "the same command with --recompute"
    return RunError(
        f"{count} finished stage{'s' if count > 1 else ''} in {run.folder} {'were' if count > 1 else 'was'} computed from "
        "something else than what is there now",
        got="\n".join(lines),
        fix=f"{again} computes these again and keeps the others; or choose another run folder",
    )


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
    owner = peek(folder / OWNER)
    if not isinstance(owner, dict):
        return None
    return f"process {owner.get('pid')}, since {owner.get('since')}: {owner.get('command')}"
