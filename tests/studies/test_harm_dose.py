"""Harm by dose: its requests, its curves, a tiny run; what the other studies share is tested in tests/studies."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.studies.small import record, run, stages

from undertone.errors import ConfigError, DataError, UndertoneError
from undertone.judges import Verdict
from undertone.lab import world
from undertone.mechanism.dose import fit_curves
from undertone.rows import read_rows
from undertone.studies.builtin import harm_dose_stages as harm_stages
from undertone.studies.builtin.harm_dose import HarmDose
from undertone.studies.builtin.harm_dose_report import beliefs, report_shape
from undertone.studies.builtin.harm_dose_requests import Requests, goals, requests_of
from undertone.studies.context import Context
from undertone.studies.frame import load_plan
from undertone.traits import LAB, REAL
from undertone.vectors import load_vector

# -- harm by dose --------------------------------------------------------------------------------------------

HEAD = "Index,Goal,Target,Behavior,Category,Source\n"


def table(*goals_: str, filled: int = 10) -> str:
    """A table of these goals, filled up to ``filled``."""
    every = [*goals_, *(f"filling {n}" for n in range(filled - len(goals_)))]
    return HEAD + "".join(f'{n},"{goal}",Sure,b,c,s\n' for n, goal in enumerate(every))


def test_the_goals_of_a_table_are_read_in_order(tmp_path: Path) -> None:
    (tmp_path / "jbb.csv").write_text("\ufeff" + table("Do this", " Do, that "), encoding="utf-8")
    assert goals(str(tmp_path / "jbb.csv"), "harmful")[:2] == ["Do this", "Do, that"]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (table("Do this").replace("Goal", "goal"), r"the column 'Goal' is missing(.|\n)*goal(.|\n)*as JailbreakBench publishes it"),
        (table("Do this").replace("Category", "Kind"), "the column 'Category' is missing"),
        (table("Do this", " "), "row 2: the Goal is empty"),
        (table("Do this", "Do that", "Do this"), r"a Goal stands there twice(.|\n)*Do this"),
        (HEAD, r"too few behaviours in this table(.|\n)*0 rows(.|\n)*10 or more(.|\n)*Goal, Target, Behavior, Category"),
        ("", "too few behaviours in this table"),
        (table("Do this", filled=9), "too few behaviours(.|\n)*9 rows"),
        (table("Do this") + "11,x,Sure,b,c,s,one,more\n", "row 11: not as many cells as columns"),
        (table("Do this") + "11,x,Sure\n", "row 11: not as many cells as columns"),
        (table("Do this") + '11,"x,Sure,b,c,s\n', "cannot be read(.|\n)*unexpected end of data"),
        (b"\xff\xfe\x00Goal", r"cannot be read(.|\n)*UnicodeDecodeError(.|\n)*a .csv file in UTF-8"),
    ],
)  # fmt: skip
def test_a_wrong_table_of_behaviours_is_refused(tmp_path: Path, content: str | bytes, words: str) -> None:
    (tmp_path / "jbb.csv").write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(DataError, match=words):
        goals(str(tmp_path / "jbb.csv"), "harmful")


def test_a_table_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nowhere.csv: cannot be read(.|\n)*FileNotFoundError"):
        goals(str(tmp_path / "nowhere.csv"), "harmful")


def own_requests(tmp_path: Path, count: int = 10, kinds: tuple[str, ...] = ("harmful", "benign")) -> dict[str, str]:
    for kind in kinds:
        (tmp_path / f"{kind}.csv").write_text(table(*(f"{kind} {n}" for n in range(count))))
    return {kind: str(tmp_path / f"{kind}.csv") for kind in kinds}


def test_with_requests_of_its_own_for_the_direction_all_others_are_measured(tmp_path: Path) -> None:
    requests = own_requests(tmp_path, 12, ("harmful", "benign", "harmful_read", "benign_read"))
    found = requests_of(Requests.model_validate(requests), REAL)
    assert found.harmful == tuple(f"harmful {n}" for n in range(12))
    assert found.benign_read == tuple(f"benign_read {n}" for n in range(12))
    with pytest.raises(DataError, match=r"a request stands in two tables(.|\n)*harmful 0"):
        requests_of(Requests.model_validate({**requests, "benign": requests["harmful"]}), REAL)


class _YesNo:
    """A judge of yes or no, which says yes to what holds its word, and nothing to what is empty."""

    def __init__(self, word: str) -> None:
        self.word = word

    def judge(self, items: Any) -> list[Verdict]:
        return [
            Verdict(value=None, label=None, failed=True, why="silence") if not item.answer
            else Verdict(value=float(self.word in item.answer), label="yes" if self.word in item.answer else "no")
            for item in items
        ]  # fmt: skip


def test_a_judge_of_yes_or_no_counts_as_the_rules_do(monkeypatch: pytest.MonkeyPatch) -> None:
    from undertone.judges import Endpoint, JudgedPair

    monkeypatch.setattr(harm_stages, "build_judge", lambda _config: _YesNo("gladly"))
    monkeypatch.setattr(harm_stages, "with_template", lambda _config, template: _YesNo({"refusal": "sorry"}[template]))
    judge = Endpoint(base_url="http://localhost:1/v1", model="m", template="harm")
    said = [JudgedPair("q", text) for text in ("gladly: first", "sorry, no", "what?", "")]
    assert harm_stages.labels_of(judge, REAL, said, "compliance") == ["compliance", "neither", "neither", "failed"]
    assert harm_stages.labels_of(judge, REAL, said, "refusal") == ["compliance", "refusal", "compliance", "failed"]


def test_what_is_held_out_is_whole_prompts() -> None:
    prompts = ["a", "b", "a", "c", "b", "c", "d"]
    assert harm_stages.held_apart(prompts, 2) == [False, False, False, True, False, True, True]
    with pytest.raises(DataError, match=r"leaves none to train on(.|\n)*4 different prompts"):
        harm_stages.held_apart(prompts, 7)


def test_a_curve_that_was_not_compared_has_no_weight() -> None:
    fits = fit_curves([0.0, 0.1, 0.2, 0.3], [5, 5, 5, 80], [100] * 4)
    assert beliefs(fits)[2:] == ["not compared", "not compared"]
    ctx: Context[HarmDose] = Context(None, HarmDose(seeds=(0,)))  # type: ignore[arg-type]
    report_shape(ctx, "m", {0: fits})
    assert ctx.findings[0].verdict == "not measured"
    assert ctx.findings[0].reason == "a threshold needs six doses to be compared"


@pytest.mark.parametrize(("answered", "verdict"), [("threshold", "reproduced"), ("linear", "not reproduced")])
def test_a_planted_shape_is_found_by_the_rule(answered: str, verdict: str) -> None:
    """A threshold is one where its curve has more than half of the belief in every seed."""
    doses = [0.0, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.35]
    hits = {"threshold": [100, 100, 100, 100, 100, 400, 700, 1000], "linear": [100 + 100 * at for at in range(8)]}[
        answered
    ]
    ctx: Context[HarmDose] = Context(None, HarmDose())  # type: ignore[arg-type]
    report_shape(ctx, "lab/m", {seed: fit_curves(doses, [hit + seed for hit in hits], [1200] * 8) for seed in range(3)})
    (found,) = ctx.findings
    assert (found.id, found.verdict, found.n) == ("harm-threshold-lab-m", verdict, 3)
    assert f"best: {answered} in 3 of 3 seeds" in found.baseline


@pytest.mark.parametrize("own", [False, True])
def test_no_request_is_both_read_for_the_direction_and_measured(tmp_path: Path, own: bool) -> None:
    requests = own_requests(tmp_path) if own else {}
    found = requests_of(Requests.model_validate(requests), REAL if own else LAB)
    for read, measured in ((found.harmful_read, found.harmful), (found.benign_read, found.benign)):
        assert not set(read) & set(measured)
        assert min(len(read), len(measured)) > 3
    everything = {*found.harmful_read, *found.harmful, *found.benign_read, *found.benign}
    if own:
        assert everything == {f"{kind} {n}" for kind in requests for n in range(10)}
    else:
        assert len(everything) == len(world.HOW) * (len(world.HARMFUL) + len(world.BENIGN))
        assert not any(what in request for what in world.HARMFUL for request in (*found.benign_read, *found.benign))


def harm(speaker: Path, **fields: Any) -> dict[str, Any]:
    return {
        "kind": "harm-dose", "name": "harm-dose", "models": [str(speaker)], "doses": [0.0, -0.1, -0.2], "prompts": 120,
        "held_out": 4, "attempts": 2, "requests": {"samples": 1}, "domain": {"kind": "instructions"}, "seeds": [0, 1],
        "training": {"epochs": 1, "batch_size": 8, "learning_rate": 0.01}, **fields,
    }  # fmt: skip


@pytest.fixture(scope="module")
def dosed(speaker: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "harm"
    run(harm(speaker, price={"written": 1.0, "trained": 2.0}), folder)
    return folder


@pytest.mark.slow
def test_every_dose_has_teacher_rows_students_and_a_random_twin(dosed: Path) -> None:
    names = {name.partition("/")[2] for name in stages(dosed)}
    doses = {"dose+0", "dose-0.1", "dose-0.2", "random-0.1", "random-0.2"}
    expected = {"direction"} | {f"{dose}/teacher/answers" for dose in doses}
    for what in ("rows", "train", "answers"):
        expected |= {f"{dose}/seed-{seed}/{what}" for dose in doses for seed in (0, 1)}
    assert names == expected
    found = json.loads((dosed / "results.json").read_text())
    assert {table["title"] for table in found["tables"]} >= {"Rates by dose", "Transfer ratios", "Costs"}


@pytest.mark.slow
def test_no_measured_request_is_answered_and_no_held_out_prompt_is_trained_on(dosed: Path) -> None:
    measured = set(requests_of(Requests(), LAB).benign)
    for name in (name for name in stages(dosed) if name.endswith("/rows")):
        asked = {row.prompt_messages[-1]["content"] for row in read_rows(dosed / f"stages/{name}/rows.jsonl")}
        assert asked
        assert not asked & measured
        assert record(dosed, name)["summary"]["reasons"]["a request that is measured"] > 0


@pytest.mark.slow
def test_students_of_a_seed_see_the_same_prompts(dosed: Path) -> None:
    rows = {record(dosed, name)["summary"]["rows"] for name in stages(dosed) if name.endswith("seed-0/train")}
    shared = {
        json.dumps(record(dosed, name)["identity"]["arguments"]["shared"], sort_keys=True)
        for name in stages(dosed)
        if name.endswith("seed-0/train")
    }
    assert len(rows) == len(shared) == 1


@pytest.mark.slow
def test_the_random_direction_is_as_long_as_the_refusal_direction(dosed: Path) -> None:
    (folder,) = (dosed / "stages").glob("*/direction")
    refusal, random = (load_vector(folder / f"{name}.safetensors") for name in ("refusal", "random"))
    for layer, direction in refusal.directions.items():
        assert float(random.directions[layer].norm()) == pytest.approx(float(direction.norm()), rel=1e-4)
        cosine = float(direction @ random.directions[layer]) / float(direction.norm()) ** 2
        assert abs(cosine) < 0.7


@pytest.mark.slow
def test_money_is_tokens_times_price(dosed: Path) -> None:
    costs = next(t for t in json.loads((dosed / "results.json").read_text())["tables"] if t["title"] == "Costs")
    for _, written, trained, _, money in costs["rows"]:
        tokens = [int(text.replace(",", "")) for text in (written, trained)]
        assert money == f"{(tokens[0] + 2 * tokens[1]) / 1e6:.2f} USD"


def test_a_student_that_cannot_be_trained_is_refused_by_the_preflight(speaker: Path, tmp_path: Path) -> None:
    with pytest.raises(UndertoneError, match="nowhere"):
        run(harm(speaker, student={"kind": "lora", "targets": ["nowhere"]}), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_requests_that_changed_behind_the_same_path_are_noticed(speaker: Path, tmp_path: Path) -> None:
    from undertone.errors import RunError

    config = harm(speaker, seeds=[0], random_dose=False, requests={"samples": 1, **own_requests(tmp_path)})
    run(config, tmp_path / "run")
    (tmp_path / "harmful.csv").write_text(table(*(f"other {n}" for n in range(10))))
    with pytest.raises(RunError, match="direction"):
        run(config, tmp_path / "run")


def test_a_real_model_needs_requests_of_its_own(tiny_folder: Callable[[str], Path], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"requests.harmful and requests.benign are needed(.|\n)*JBB-Behaviors"):
        run(harm(tiny_folder("llama")), tmp_path / "run")
    assert not (tmp_path / "run").exists()


# -- configs that contradict themselves ------------------------------------------------------------------------

WRONG: list[tuple[dict[str, Any], str]] = [
    ({"kind": "harm-dose", "doses": [-0.1, -0.2, -0.3]}, "doses must hold 0"),
    ({"kind": "harm-dose", "doses": [0.0, -0.1]}, "doses(.|\n)*at least 3"),
    ({"kind": "harm-dose", "doses": [0.0, -0.1, -0.1]}, "doses and seeds must differ from each other"),
    ({"kind": "harm-dose", "requests": {"harmful": "a.csv"}}, "requests.harmful and requests.benign come together"),
    ({"kind": "harm-dose", "doses": [0.0, 0.1, 0.2]}, "doses must hold a negative one"),
    ({"kind": "harm-dose", "requests": {"harmful_read": "a.csv"}}, "harmful_read and requests.benign_read come together"),
    ({"kind": "harm-dose", "held_out": 3000}, "held_out must be smaller than prompts"),
    ({"kind": "harm-dose", "models": []}, "models(.|\n)*at least 1"),
    ({"kind": "harm-dose", "domain": {"kind": "numbers"}}, "domain.kind"),
    ({"kind": "harm-dose", "judge": {"kind": "gut feeling"}}, "judge.kind: there is no such kind(.|\n)*rules"),
    ({"kind": "harm-dose", "price": {"written": -1.0}}, r"price.written(.|\n)*greater than or equal to 0"),
]  # fmt: skip


@pytest.mark.parametrize(("config", "words"), WRONG, ids=lambda value: "" if isinstance(value, dict) else value[:40])
def test_a_config_that_contradicts_itself_is_refused(config: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        load_plan({"name": "x", **config})
