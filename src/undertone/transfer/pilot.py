"""The pilot: a few prompts in every arm before anything else, so that a run whose rows will not suffice ends in a minute.

The yield that counts is the joint one, of prompts whose rows pass in EVERY arm. A run is refused only where even the upper end
of the interval of that share leaves too few rows.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final

from undertone import stats
from undertone.domains import Domain, WithGrammar
from undertone.errors import DataError, warn
from undertone.filters import apply_rules
from undertone.launch.executor import Call, Executor
from undertone.provenance.identity import Uncounted
from undertone.provenance.runs import Stage, write_json
from undertone.provenance.stage_functions import stage
from undertone.teachers import TeacherSpec
from undertone.traits import Trait
from undertone.transfer.config import Setting
from undertone.transfer.generate import Sampling, attempted

PROMPTS: Final = 32
WORTH_IT: Final = 4 * PROMPTS
"""Runs of fewer prompts have no pilot: it would cost about as much as they do."""
MOST_ATTEMPTS: Final = 16


@stage("pilot")
def pilot_rows(
    folder: Path,
    device: str,
    *,
    teacher: TeacherSpec,
    domain: Domain,
    leak: Trait,
    sampling: Sampling,
    batch_size: Annotated[int, Uncounted()],
) -> dict[str, Any]:
    """A teacher's rows for a few prompts; ``kept.json`` holds the prompts whose row is valid.

    Args:
        teacher: who writes.
        domain: what is asked, and which answers are valid.
        leak: the trait that no row may name.
        sampling: how.
        batch_size: rows side by side.
    """
    loaded = teacher.load(device)
    prompts = list(enumerate(domain.prompts(sampling.prompts, sampling.seed, loaded)))
    rows = attempted(loaded, prompts, domain, leak, sampling, batch_size, lambda _done: None)
    filtered = apply_rules(rows, domain, leak)
    first = apply_rules([row for row in rows if row.meta["attempt"] == 0], domain, leak)
    write_json(folder / "kept.json", sorted(filtered.kept))
    return {"asked": len(prompts), "kept": len(filtered.kept), "first": len(first.kept), "reasons": first.reasons}


@dataclass(frozen=True)
class Yield:
    """What the pilot projects.

    Attributes:
        prompts: of the pilot, an arm.
        kept: arm -> prompts with a valid row.
        joint: prompts with one in every arm.
        reasons: why first attempts were dropped, over all arms.
        first: arm -> share of prompts whose first attempt was valid.
    """

    prompts: int
    kept: Mapping[str, int]
    joint: int
    reasons: Mapping[str, int]
    first: Mapping[str, float]

    @classmethod
    def of(cls, stages: Mapping[str, Stage]) -> Yield:
        """From the pilot's stages, one an arm."""
        shared = set.intersection(*(set(one.read_json("kept.json")) for one in stages.values()))
        asked = next(iter(stages.values())).summary["asked"]
        reasons: Counter[str] = Counter()
        for one in stages.values():
            reasons.update(one.summary["reasons"])
        return cls(
            asked, {arm: one.summary["kept"] for arm, one in stages.items()}, len(shared), dict(reasons.most_common()),
            {arm: one.summary["first"] / asked for arm, one in stages.items()},
        )  # fmt: skip

    @property
    def most(self) -> float:
        """The upper end of the 95 % interval of the joint share."""
        return stats.wilson(self.joint, self.prompts).high

    def expected(self, prompts: int) -> int:
        """Of so many prompts, how many are expected to pass in every arm."""
        return round(prompts * self.joint / self.prompts)

    def check(self, config: Setting) -> None:
        """Refuse a run whose rows will not suffice; say it where they may not.

        Raises:
            DataError: even the upper end of the interval leaves too few.
        """
        data = config.data
        needed = 2 * data.held_out if data.rows is None else data.rows + data.held_out
        expected = self.expected(data.prompts)
        said = (
            f"a pilot of {self.prompts} prompts an arm: {self.joint} passed in every arm, so that about {expected} of "
            f"{data.prompts} will, and {needed} are needed"
        )
        if self.most * data.prompts < needed:
            raise DataError(
                f"too few rows would be left; {said}",
                got=", ".join(f"{arm} {kept}/{self.prompts}" for arm, kept in self.kept.items()),
                allowed=f"at least {needed} rows ({data.held_out} of them held out)",
                fix=self.advice(config, needed),
            )
        if expected < needed:
            warn(f"{said}; {self.advice(config, needed)}")

    def advice(self, config: Setting, needed: int) -> str:
        """What would help: attempts, where they do; else another kind of data, as the reasons say."""
        main = ", ".join(f"{reason} ({count})" for reason, count in list(self.reasons.items())[:3])
        dropped = f"rows are dropped for: {main}. " if main else ""
        attempts = self._attempts(config.data.prompts, needed)
        if attempts is not None and attempts > config.data.attempts:
            return f"{dropped}data.attempts={attempts} would do; or more data.prompts"
        others = "domain.kind=sentences" if config.domain.kind != "sentences" else "shorter or easier prompts"
        held = "data.constrained=true (answers held to the domain's grammar), " if _can_be_held(config) else ""
        return f"{dropped}{held}a lower data.temperature ({config.data.temperature / 2:g}), or {others}"

    def _attempts(self, prompts: int, needed: int) -> int | None:
        """The fewest attempts at a prompt that leave enough, where attempts and arms are independent of each other."""
        for attempts in range(1, MOST_ATTEMPTS + 1):
            joint = 1.0
            for share in self.first.values():
                joint *= 1 - (1 - share) ** attempts
            if joint * prompts >= needed:
                return attempts
        return None


def _can_be_held(config: Setting) -> bool:
    return not config.data.constrained and isinstance(config.domain, WithGrammar) and config.teacher.kind != "endpoint"


def run_pilot(executor: Executor, config: Setting, teachers: Mapping[str, tuple[TeacherSpec, Trait]]) -> Yield | None:
    """The pilot of a setting's arms; None: it is too small for one, or a judge picks among the rows.

    Args:
        executor: computes the stages.
        config: what will be run.
        teachers: arm's folder -> its teacher, and the trait that its rows may not name.

    Raises:
        DataError: the rows will not suffice.
    """
    if config.data.prompts < WORTH_IT or config.teacher.kind == "judge":
        return None
    stages = executor.each(_calls(config, teachers))
    found = Yield.of(dict(zip(teachers, stages, strict=True)))
    found.check(config)
    return found


def _calls(config: Setting, teachers: Mapping[str, tuple[TeacherSpec, Trait]]) -> Sequence[Call]:
    data = config.data
    return [
        Call(pilot_rows, f"pilot/{arm}", {
            "teacher": teacher, "domain": config.domain, "leak": leak,
            "sampling": Sampling(
                PROMPTS, data.attempts, data.temperature, 0, f"pilot/{arm}", constrained=data.constrained
            ), "batch_size": data.batch_size,
        })
        for arm, (teacher, leak) in teachers.items()
    ]  # fmt: skip
