"""What the part `causality` says of planted numbers, and whom it holds against whom."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from undertone.errors import ConfigError
from undertone.studies.builtin import mechanism_causality as part
from undertone.studies.builtin.mechanism_vectors import stranger
from undertone.studies.context import Context
from undertone.studies.measurement import Measurement

TRAITS, SEEDS = ("owl", "dog"), (0, 1, 2, 3)
ABOVE, WILD = [0.30, 0.31, 0.32, 0.30], [0.9, -0.6, 0.7, -0.5]


def context() -> Any:
    config = SimpleNamespace(
        confidence=0.95, few_traits=TRAITS, seeds=SEEDS, model="lab/llama-0",
        causality=SimpleNamespace(strengths=(1.0,), block=1),
    )  # fmt: skip
    nobody: Any = None
    made: Any = Context(nobody, config)  # type: ignore[type-var]
    return made


def by_seed(values: Any) -> Measurement:
    """Two traits, a point of a hundred apart, so that their mean is the seed's value."""
    return Measurement(np.add([values, values], [[0.005], [-0.005]]))


def teachers(**effects: Any) -> dict[str, Measurement]:
    names = {
        "prompted": ABOVE, "steered, carrier": ABOVE, "steered, random (carrier)": [0.0] * 4, "steered, questions": ABOVE,
        "steered, random (questions)": [0.0] * 4, "prompted, without own-carrier": [0.0] * 4,
        "prompted, without own-questions": [0.0] * 4, "prompted, without random": ABOVE,
        "prompted, without other-trait": ABOVE,
    }  # fmt: skip
    return {name: by_seed(effects.get(name, values)) for name, values in names.items()}


def told(unless: str = "", **effects: Any) -> dict[str, Any]:
    ctx = context()
    part._report_teachers(ctx, teachers(**effects), unless)
    return {found.id: found for found in ctx.findings}


def test_seeds_are_the_units_of_a_teachers_arm() -> None:
    found = told()["teacher-vector-sufficient-carrier"]
    assert found.n == len(SEEDS)
    assert found.value == pytest.approx(np.mean(ABOVE))
    assert (found.verdict, found.parts[0].values) == ("reproduced", pytest.approx(ABOVE))


def test_a_vector_counts_as_necessary_only_where_the_loss_itself_is_above_zero() -> None:
    name = "teacher-vector-necessary-carrier"
    assert told()[name].verdict == "reproduced"
    # Of old "partly", for the mean loss is most of the mean effect: an interval that holds 0 tells nothing.
    assert told(prompted=[value + 0.05 for value in WILD])[name].verdict == "not measured"
    half = {"prompted, without own-carrier": [value - 0.1 for value in ABOVE]}
    assert told(**half)[name].verdict == "partly"  # a third of the effect goes, more than of the baselines
    assert told(**{"prompted, without own-carrier": ABOVE})[name].verdict == "not reproduced"


def test_what_another_direction_does_as_well_is_not_the_vectors_doing() -> None:
    found = told(**{"prompted, without random": [0.0] * 4, "steered, random (carrier)": ABOVE})
    assert found["teacher-vector-necessary-carrier"].verdict != "reproduced"
    assert found["teacher-vector-sufficient-carrier"].verdict == "not reproduced"
    assert found["teacher-vector-sufficient-questions"].verdict == "reproduced"


def test_nothing_is_said_of_students_that_no_longer_answer() -> None:
    assert {one.verdict for one in told(part.SILENT).values()} == {"not measured"}


def students(own: float, rival: float, gained: float = 0.4) -> dict[str, Any]:
    """Students that gained so much, of which an operation along the own shift moves `own`, along others `rival`."""
    noise = np.array([0.0, 0.002, -0.002, 0.001])
    asked = {"base": by_seed(0.1 + 0 * noise), "student": by_seed(0.1 + gained + noise)}
    for origin in ("carrier", "questions"):
        for name, moved in (("own", own), ("random", rival), ("other", rival)):
            asked[f"added/{origin}/{name}/1"] = asked["base"] - (-moved)
            for operation in ("ablated", "replaced"):
                asked[f"{operation}/{origin}/{name}"] = asked["student"] - by_seed(moved + 2 * noise)
    ctx = context()
    part._report_students(ctx, asked, "")
    assert len(ctx.figures[0].points) == 2 * (2 + 3 * 3)
    return {found.id: found for found in ctx.findings}


def test_a_students_vector_must_do_more_than_others_and_most_of_what_was_gained() -> None:
    assert {one.verdict for one in students(0.38, 0.01).values()} == {"reproduced"}
    assert {one.verdict for one in students(0.12, 0.01).values()} == {"partly"}
    assert students(0.38, 0.38)["student-vector-replaced-carrier"].verdict == "partly"  # most of it, like any direction
    assert students(0.01, 0.01)["student-vector-ablated-carrier"].verdict == "not reproduced"
    assert len(students(0.38, 0.01)) == 6


# -- strangers ---------------------------------------------------------------------------------------


def test_no_trait_is_held_against_itself_or_its_own_answer() -> None:
    traits = ("owl", "dog", "eagle")
    few = part.stranger_groups(traits, traits)
    assert few == [("other-trait", "eagle", ("owl", "dog")), ("other-trait/dog", "dog", ("eagle",))]
    assert part.stranger_groups((*traits, "wolf"), traits) == [("other-trait", "wolf", traits)]
    same_answer = ("owl", "dog", "dog@if-pick")
    assert part.stranger_groups(same_answer, ("dog",)) == [("other-trait/owl", "owl", ("dog",))]
    with pytest.raises(ConfigError, match="no other trait to hold 'owl' against"):
        stranger("owl", ["owl@if-pick", "owl@once"])


def test_the_other_student_is_the_next_ones_also_where_one_trait_is_studied() -> None:
    assert part.others_after("dog", ("owl", "dog", "eagle", "wolf"), ("owl", "dog", "eagle"))[:2] == ["eagle", "owl"]
    assert part.others_after("owl", ("owl", "dog", "eagle"), ("owl",)) == ["dog", "eagle"]


class Taught:
    """A context whose transfer experiments pass each trait on by a number of its own, and the random arm by nothing."""

    def __init__(self, traits: tuple[str, ...], effects: dict[str, float]) -> None:
        teacher = SimpleNamespace(model=None)
        self.config = SimpleNamespace(
            trait=traits, few_traits=traits, model="lab/llama-0", teacher=teacher,
            causality=SimpleNamespace(block=None, teacher_strength=1.0),
        )  # fmt: skip
        self.confidence, self.effects, self.asked = 0.95, effects, dict[str, Any]()

    def setting(self, **changes: Any) -> Any:
        return changes

    def transfer(self, setting: Any, within: str) -> Any:
        self.asked[within] = setting
        values = Measurement(np.array([[self.effects[trait], self.effects[trait]] for trait in setting["trait"]]))
        return SimpleNamespace(effect=values, probability=lambda kind: 0.0 * values)

    def check_answers(self, what: str, transfers: dict[str, Any]) -> Any:
        assert len(transfers) == len(self.asked)
        return SimpleNamespace(status="fail" if "dead" in self.effects else "pass")


def test_effects_keep_the_order_of_the_traits_when_strangers_split_them() -> None:
    ctx: Any = Taught(("eagle", "owl", "dog"), {"eagle": 0.1, "owl": 0.6, "dog": 0.3})
    effects, unless = part._teach(ctx)
    assert effects["prompted, without other-trait"].values[:, 0].tolist() == pytest.approx([0.1, 0.6, 0.3])
    groups = {
        within: (one["trait"], one["teacher"]["ablate"]["of"]) for within, one in ctx.asked.items() if "other" in within
    }
    assert groups == {
        "causality/without-other-trait": (("eagle", "owl"), "dog"),
        "causality/without-other-trait/owl": (("dog",), "owl"),
    }
    assert not unless
    assert part._teach(Taught(("owl", "dog"), {"owl": 0.1, "dog": 0.1, "dead": 0.0}))[1] == part.SILENT  # type: ignore[arg-type]
