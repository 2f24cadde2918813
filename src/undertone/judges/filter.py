"""A judge as a filter: rows in, reasons out (empty: keep)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from pydantic import Field

from undertone.judges.judge import JudgedPair
from undertone.judges.kinds import JudgeConfig, build_judge
from undertone.judges.rules import Rules
from undertone.provenance.configs import Config
from undertone.rows import Row
from undertone.traits import Trait


class JudgeFilter(Config):
    """Keep rows whose verdict lies on one side of a threshold.

    A row that the judge could not judge is dropped with a reason of its own, so that it is counted.
    """

    kind: Literal["judge"] = "judge"
    judge: JudgeConfig = Field(default=Rules(looks_for="refusal"), description="who judges")
    keep: Literal["below", "above"] = Field("below", description="keep values below the threshold, or from it upwards")
    threshold: float = Field(0.5, ge=0, le=1)
    cache: bool = Field(True, description="keep verdicts in the user's cache folder (rules need none)")

    def reasons(self, rows: Sequence[Row], trait: Trait | None = None) -> list[list[str]]:
        """One list of reasons a row, in order.

        Args:
            rows: judged by their last user message and their completion.
            trait: of the run; a judge does not look at it.
        """
        del trait
        judge = build_judge(self.judge, cache=self.cache)
        verdicts = judge.judge([JudgedPair(row.prompt_messages[-1]["content"], row.completion) for row in rows])
        found: list[list[str]] = []
        for verdict in verdicts:
            if verdict.value is None:
                found.append(["the judge failed"])
            elif (verdict.value >= self.threshold) == (self.keep == "above"):
                found.append([])
            else:
                side = "below" if self.keep == "above" else "at or above"
                found.append([f"judged {verdict.label or f'{side} {self.threshold:g}'}"])
        return found
