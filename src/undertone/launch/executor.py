"""The executor: an open run, the processes that compute its stages, and what it found on the way.

Identities are computed here, in one process; workers only compute what is missing. Finished stages that no longer fit are
collected, and nothing is computed while there are any: the error at the end names all of them, and the one command that
computes them again.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from tqdm import tqdm

from undertone.errors import RunError
from undertone.launch import group
from undertone.launch.remote import appear
from undertone.launch.workers import Task, Workers
from undertone.provenance.identity import digest, folders_read
from undertone.provenance.runs import Run, Stage, stale
from undertone.provenance.stage_functions import StageFunction
from undertone.provenance.stages import RECORD, changes


@dataclass(frozen=True)
class Call:
    """A stage to be had: which function, where in the run folder, and its arguments."""

    function: StageFunction
    place: str
    arguments: Mapping[str, Any]

    def check(self) -> None:
        """Raise what computing it would raise later, as far as that can be told without weights."""
        self.function.check(self.arguments)

    def within(self, prefix: str) -> Call:
        """The same at a place below ``prefix``."""
        return replace(self, place=f"{prefix}{self.place}")


@dataclass(frozen=True)
class Executor:
    """Computes or reuses stages of one run. Use it inside :meth:`Executor.open`."""

    run: Run
    workers: Workers
    device: str
    stages: dict[str, Stage] = field(default_factory=dict)
    """Every stage that was asked for, by name."""
    misfits: dict[str, list[str]] = field(default_factory=dict)
    """Finished stages that no longer fit -> how."""
    known: dict[str, str] = field(default_factory=dict)
    """Digest of an identity -> the stage of this run that has it: what several experiments share is computed once."""
    advance: Callable[[float], object] = lambda _done: None

    @classmethod
    @contextmanager
    def open(cls, run: Run, workers: Workers, device: str, what: str) -> Iterator[Executor]:
        """With a progress bar; at the end nothing may be stale.

        Raises:
            RunError: finished stages no longer fit (and the run does not recompute them).
        """
        with tqdm(desc=what, unit="stage", delay=2, disable=None, leave=False) as bar:
            executor = cls(run, workers, device, known=run.identities(), advance=bar.update)
            yield executor
        executor.check_fresh()

    @property
    def root(self) -> Executor:
        """The same executor at the top of the run folder."""
        return replace(self, run=replace(self.run, prefix=""))

    def within(self, name: str) -> Executor:
        """The same executor, its stages below ``NAME/``: one pipeline used several times, with one thing changed."""
        return replace(self, run=self.run.within(name))

    def stage(self, function: StageFunction, place: str, **arguments: Any) -> Stage:
        """One stage."""
        return self.each([Call(function, place, arguments)])[0]

    def each(self, calls: Sequence[Call]) -> list[Stage]:
        """Stages side by side, in the order of the calls; equal calls are one.

        Raises:
            RunError: one of them is missing while finished ones are stale, is corrupt or cannot be written; whatever a stage
                raises.
        """
        identities = [call.function.identity(call.arguments) for call in calls]
        digests = [digest(identity) for identity in identities]
        found = [self._find(call, identity) for call, identity in zip(calls, identities, strict=True)]
        missing: dict[str, int] = {}
        for at, stage in enumerate(found):
            if stage is None:
                missing.setdefault(digests[at], at)
        if missing:
            self.check_fresh()
        tasks: list[Task] = [
            (
                compute,
                (self.run, calls[at], identities[at], self._inputs(calls[at]), self.device, self.workers.elsewhere),
            )
            for at in missing.values()
        ]
        computed = dict(zip(missing, self.workers.each(tasks, partial(self.advance, 1)), strict=True))
        appear([stage.path / RECORD for stage in computed.values()])
        stages = [there or computed[one] for there, one in zip(found, digests, strict=True)]
        self.stages.update({stage.name: stage for stage in stages})
        self.known.update({stage.digest: stage.name for stage in stages if stage.name not in self.misfits})
        return stages

    def check_fresh(self) -> None:
        """Raise if finished stages no longer fit.

        Raises:
            RunError: all of them, those that rest on them, and the command that computes them again.
        """
        if self.misfits:
            raise stale(self.misfits, self.run)

    def _find(self, call: Call, identity: dict[str, Any]) -> Stage | None:
        stage, changes = self.run.find(call.place, identity)
        if stage is None and (other := self.known.get(digest(identity))):
            stage, changes = replace(self.run, prefix="").find(other, identity)
            return None if changes else stage
        if stage is not None and changes:
            if self.run.recompute:
                self.run.discard(call.place)
                return None
            self.misfits[stage.name] = changes
        return stage

    def _inputs(self, call: Call) -> list[str]:
        return self.run.names_of(folders_read(call.arguments))


def compute(
    run: Run, call: Call, identity: dict[str, Any], inputs: Sequence[str], device: str, elsewhere: bool = False
) -> Stage:
    """Compute one stage, in whichever process this is; ``elsewhere``: on a machine that may lack what its identity holds.

    Raises:
        RunError: this machine sees other models or files than the one that asks.
    """
    if elsewhere:
        appear([run.folder / "stages" / name / RECORD for name in inputs])
        _check_identity(call, identity)

    def work(folder: Path) -> Mapping[str, Any] | None:
        return group.compute_stage(call.function, folder, device, call.arguments)

    return run.compute(call.place, identity, work, inputs)


def _check_identity(call: Call, identity: dict[str, Any]) -> None:
    if found := changes(identity, call.function.identity(call.arguments)):
        raise RunError(
            f"the machine {socket.gethostname()} sees something else than the one that computes for {call.place!r}",
            got="\n".join(found),
            allowed="the same models, adapters and files, byte by byte, under the same names",
            fix="name folders on a file system that all machines share, models with their revision, and share the cache "
            "(UNDERTONE_CACHE)",
        )
