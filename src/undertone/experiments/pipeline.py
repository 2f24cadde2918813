"""The experiment, as a methods section would tell it.

For each seed, for each arm: generate → filter; keep the prompts that passed in every arm; train; evaluate.
Then: evaluate the base and the teachers, compare, check, conclude. Every step is a stage of the run folder.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from undertone.errors import DataError
from undertone.experiments.cells import Arm, Outcome, StudentRun, arms_of, model_identity
from undertone.experiments.compare import conclude
from undertone.experiments.config import Experiment, Setting
from undertone.experiments.learning import train_student, train_teacher
from undertone.experiments.measuring import evaluate, evaluate_teacher
from undertone.experiments.preflight import preflight
from undertone.experiments.results import Results
from undertone.experiments.workers import Task, Workers, check_jobs, default_jobs, workers
from undertone.experiments.writing import filter_rows, generate_rows, rewrite_rows
from undertone.filters import match_arms
from undertone.provenance.manifest import manifest
from undertone.provenance.runs import Run, Stage, write_json
from undertone.rows import read_rows


def run_experiment(
    config: Experiment,
    folder: str | Path | None = None,
    *,
    jobs: int | None = None,
    device: str = "auto",
    command: str = "undertone run",
) -> Results:
    """Run, resume or simply read an experiment.

    Args:
        config: what.
        folder: the run folder; None: ``runs/NAME-DIGEST``.
        jobs: processes side by side; None: as many as there are cores, or 1 on a GPU.
        device: auto, cpu, cuda …
        command: what the user typed, for messages and the manifest.

    Returns:
        The results, also written to ``results.json`` with ``manifest.json`` beside it.
    """
    check_jobs(jobs)
    folder = Path(folder) if folder else config.folder()
    preflight(config, device)  # before the folder is the config's; a lab model is built here, once, not by every worker
    with Run.open(folder, config, command=command) as run:
        arms = arms_of(config)
        count = len(arms) * len(config.seeds)
        with workers(jobs or default_jobs(device, count)) as pool:
            outcome = compute(run, config, arms, pool, device)
        results = conclude(config, outcome, replay=f"undertone run {folder / 'config.yaml'}")
        write_json(folder / "results.json", results.model_dump(mode="json", by_alias=True))
        write_json(folder / "manifest.json", _manifest(config, outcome))
    return results


Place = tuple[int, Arm]
"""A seed and an arm."""


def compute(
    run: Run,
    config: Setting,
    arms: Sequence[Arm],
    pool: Workers,
    device: str,
    *,
    data: Run | None = None,
    students: Callable[[Arm], Run] | None = None,
    taught_by: Mapping[Place, Stage] | None = None,
) -> Outcome:
    """All cells of a setting: teachers' rows, students, what they answer. What is finished is reused.

    Args:
        run: where the stages go.
        config: what.
        arms: who teaches.
        pool: the processes.
        device: auto, cpu, cuda …
        data: where the teachers' rows live, if not beside the answers: students of another kind share them.
        students: where an arm's students live, if not beside the answers: they are asked in other ways elsewhere.
        taught_by: the trained model that teaches at each place, for students that teach in their turn; they are not
            asked again.
    """
    home = students or (lambda _arm: run)
    pairs = [(seed, arm) for seed in config.seeds for arm in arms]
    treated = [arm for arm in arms if arm.trait and config.teacher.kind != "endpoint"] if taught_by is None else []
    with tqdm(total=2 * len(pairs) + len(treated) + 1, desc=config.name, unit="student run", delay=2, disable=None,
              leave=False) as bar:  # fmt: skip

        def advance() -> None:
            bar.update(1)

        def each(tasks: list[Task]) -> list[Any]:
            return pool.each(tasks, advance)

        own = _trained_teachers(data or run, config, arms, pool, device) if taught_by is None else {}
        teachers = {(seed, arm): (taught_by or {}).get((seed, arm)) or own.get(arm) for seed, arm in pairs}
        written = each(
            [(write_data, (data or run, config, arm, seed, device, teachers[seed, arm])) for seed, arm in pairs]
        )
        rows = dict(zip(pairs, written, strict=True))
        shared = {seed: shared_prompts(config, seed, [rows[seed, arm][1] for arm in arms]) for seed in config.seeds}
        clean = {seed: rows[seed, arm][1] for seed, arm in pairs if arm.kind == "control"}
        tasks: list[Task] = [
            (learn, (run, home(arm), config, arm, seed, rows[seed, arm][1], shared[seed], device, clean.get(seed)))
            for seed, arm in pairs
        ]
        tasks += [(evaluate_teacher, (run, config, arm, device, own.get(arm))) for arm in treated]
        tasks.append((evaluate, (run, config, "base", config.trait, device)))
        results = each(tasks)
    cells = [
        StudentRun(arm, seed, rows[seed, arm][0], rows[seed, arm][1], learned[0], learned[1], tuple(shared[seed]))
        for (seed, arm), learned in zip(pairs, results, strict=False)
    ]
    asked = dict(zip(treated, results[len(pairs) : -1], strict=True))
    return Outcome(base=results[-1], teachers=asked, cells=cells)


def _trained_teachers(run: Run, config: Setting, arms: Sequence[Arm], pool: Workers, device: str) -> dict[Arm, Stage]:
    """The stages of teachers that are themselves trained first."""
    if config.teacher.kind != "finetuned":
        return {}
    trained = [arm for arm in arms if arm.trait]
    return dict(zip(trained, pool.each([(train_teacher, (run, config, arm, device)) for arm in trained]), strict=True))


def write_data(
    run: Run, config: Setting, arm: Arm, seed: int, device: str, trained: Stage | None = None
) -> tuple[Stage, Stage]:
    """Generate, filter and, where asked for, write again: the rows of one arm at one seed."""
    generated = generate_rows(run, config, arm, seed, device, trained)
    filtered = filter_rows(run, config, arm, seed, generated)
    if config.rewrite is not None:
        filtered = rewrite_rows(run, config, arm, seed, filtered, device)
    return generated, filtered


def learn(
    run: Run,
    students: Run,
    config: Setting,
    arm: Arm,
    seed: int,
    filtered: Stage,
    prompts: Sequence[int],
    device: str,
    clean: Stage | None,
) -> tuple[Stage, Stage]:
    """Train and evaluate: the student of one arm at one seed."""
    trained = train_student(students, config, arm, seed, filtered, prompts, device, clean)
    asked = config.trait if arm.kind == "control" or arm.trait is None else (arm.trait,)
    name = f"seed-{seed}/{arm.folder}"
    return trained, evaluate(run, config, name, asked, device, student=trained)


def shared_prompts(config: Setting, seed: int, filtered: Sequence[Stage]) -> list[int]:
    """The prompts on which every arm of a seed has a valid row; training and held-out together.

    Raises:
        DataError: too few are left.
    """
    kept = {
        stage.name: {int(row.meta["prompt_index"]): row for row in read_rows(stage.path / "rows.jsonl")}
        for stage in filtered
    }
    held_out = config.data.held_out
    wanted = None if config.data.rows is None else config.data.rows + held_out
    prompts = match_arms(kept, wanted)
    needed = wanted or 2 * held_out
    if len(prompts) < needed:
        raise DataError(
            f"too few rows are left at seed {seed}: {len(prompts)} prompts passed the filter in every arm",
            got={name: len(rows) for name, rows in kept.items()},
            allowed=f"at least {needed} ({held_out} of them held out)",
            fix="raise data.prompts or data.attempts, lower data.rows, or look at why rows are dropped (reasons.json)",
        )
    return prompts


def _manifest(config: Experiment, outcome: Outcome) -> dict[str, object]:
    names = dict.fromkeys([config.model, config.teacher.model or config.model])
    first = {cell.arm: cell for cell in reversed(outcome.cells)}
    return manifest(
        config,
        models={name: model_identity(name) for name in names},
        data={cell.generated.name: cell.generated.summary["data"] for cell in outcome.cells},
        extra={
            "shown_to_teachers": {arm.folder: cell.generated.summary["shown"] for arm, cell in first.items()},
            "shown_to_students": {arm.folder: cell.trained.summary["shown"] for arm, cell in first.items()},
            "stages": {stage.name: stage.output_digest for stage in outcome.stages()},
        },
    )
