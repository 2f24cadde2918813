"""The stages of the digits study: teachers, learning rates, students, first steps.

Every student of a seed has the same teacher and the same noise; arms differ in one thing each. Learning rates are tuned
on seeds that are not reported, by held-out imitation loss, without a look at any accuracy.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from tqdm import tqdm

from undertone.errors import RunError
from undertone.experiments.conduct import Outcome, Study
from undertone.experiments.studies.digits import findings
from undertone.experiments.studies.digits.config import DigitsStudy, OptimizerArm
from undertone.experiments.workers import Workers
from undertone.mechanism import digits, theory
from undertone.mechanism.digits import Images, Lesson, Stack, Trace
from undertone.models.loading import target_device
from undertone.provenance.runs import Run, Stage, write_json
from undertone.provenance.seeds import derive_seed
from undertone.training import Training

SHOWN = ("uniform noise", "normal noise", "digits", "digits, pixels permuted")
"""What students are shown in the check of the theorem."""


def read(config: DigitsStudy) -> Images:
    """The images that the config names."""
    return digits.bundled_images() if config.data is None else digits.read_images(config.data)


def study(run: Run, config: DigitsStudy, pool: Workers, device: str) -> Outcome:
    """Teachers; then, side by side, the optimisers (tuned, then reported) and the theorem."""
    teachers = teach(run, config, device)
    tasks: list[Any] = [(learn, (run, config, arm.name, teachers, device)) for arm in config.optimizers]
    tasks.append((one_step, (run, config)))
    with tqdm(total=len(tasks), desc=config.name, unit="student run", delay=2, disable=None, leave=False) as bar:

        def advance() -> None:
            bar.update(1)

        *learned, stepped = pool.each(tasks, advance)
    stages = [teachers, *(stage for cell in learned for stage in cell), stepped]
    by_name = dict(zip((arm.name for arm in config.optimizers), learned, strict=True))
    told = findings.tell(config, teachers, by_name, stepped)
    return Outcome(stages=stages, data={"images": _image_digest(config)}, **told)


# -- stages ----------------------------------------------------------------------------------------


def teach(run: Run, config: DigitsStudy, device: str) -> Stage:
    """``teachers``: one network a seed, reported and tuning seeds alike, in ``teachers.safetensors``."""
    seeds = (*config.seeds, *config.tuning_seeds)
    identity = {**_shape(config), "teacher": config.teacher.model_dump(mode="json"), "seeds": seeds}

    def compute(folder: Path) -> dict[str, Any]:
        images = read(config).to(_place(device))
        start = _to(digits.initial(seeds, _sizes(config, images)), device)
        stack = digits.teach(start, images, seeds, config.teacher)
        save_file({str(at): part.cpu().contiguous() for at, part in enumerate(stack)}, folder / "teachers.safetensors")
        return {
            "accuracy": digits.accuracy(stack, images),
            "untrained": digits.accuracy(start, images),
            "images": [len(images.train_x), len(images.test_x)],
            "data": images.name,
            "sizes": _sizes(config, images),
            "majority": float(torch.bincount(images.test_y).max()) / len(images.test_y),
        }

    return run.stage("teachers", config=identity, compute=compute)


def learn(run: Run, config: DigitsStudy, name: str, teachers: Stage, device: str) -> list[Stage]:
    """An optimiser's cell: its rate on the tuning seeds, then its students on the reported ones."""
    tuned = tune(run, config, name, teachers, device)
    if name != config.optimizers[0].name:
        return [tuned, students(run, config, name, ("same", "other"), teachers, tuned, device)]
    arms: tuple[tuple[str, ...], ...] = (("same", "other", "permuted"), ("shape",))
    return [tuned, *(students(run, config, name, kinds, teachers, tuned, device) for kinds in arms)]


def tune(run: Run, config: DigitsStudy, name: str, teachers: Stage, device: str) -> Stage:
    """``NAME/tune``: held-out imitation loss of every rate on the tuning seeds; accuracies are not looked at."""
    arm = _arm(config, name)

    def compute(folder: Path) -> dict[str, Any]:
        rates = [rate for rate in arm.rates for _ in config.tuning_seeds]
        kinds = ["same"] * len(arm.rates)
        trace = _distilled(config, arm, rates, kinds, teachers, config.tuning_seeds, device, checkpoints=1)
        size = len(config.tuning_seeds)
        means = [sum(trace.loss[-1][at : at + size]) / size for at in range(0, len(rates), size)]
        fit = {rate: mean for rate, mean in zip(arm.rates, means, strict=True) if math.isfinite(mean)}
        if not fit:
            raise RunError(
                f"no learning rate of {name} trains a student: every loss is not finite",
                got=list(arm.rates),
                fix="give this arm of optimizers lower rates",
            )
        losses = {f"{rate:g}": fit.get(rate) for rate in arm.rates}
        return {"losses": losses, "rate": min(fit, key=lambda rate: fit[rate])}

    identity = {**_distilling(config, arm), "rates": arm.rates, "seeds": config.tuning_seeds}
    return run.stage(f"{name}/tune", config=identity, inputs=[teachers], compute=compute)


def students(
    run: Run, config: DigitsStudy, name: str, kinds: Sequence[str], teachers: Stage, tuned: Stage, device: str
) -> Stage:
    """``NAME/KINDS``: the students of arms that are computed side by side; ``traces.json`` says how they went."""
    arm = _arm(config, name)

    def compute(folder: Path) -> dict[str, Any]:
        rates = [tuned.summary["rate"]] * len(kinds) * len(config.seeds)
        trace = _distilled(config, arm, rates, kinds, teachers, config.seeds, device)
        size = len(config.seeds)
        write_json(
            folder / "traces.json",
            {
                kind: {
                    "steps": trace.steps,
                    "loss": [_plain(row[at * size : (at + 1) * size]) for row in trace.loss],
                    "accuracy": [row[at * size : (at + 1) * size] for row in trace.accuracy],
                }
                for at, kind in enumerate(kinds)
            },
        )
        return {"kinds": list(kinds), "accuracy": trace.accuracy[-1], "loss": _plain(trace.loss[-1])}

    identity = {**_distilling(config, arm), "kinds": kinds, "seeds": config.seeds}
    if "shape" in kinds:
        identity["other_hidden"] = config.other_hidden
    return run.stage(f"{name}/{'-'.join(kinds)}", config=identity, inputs=[teachers, tuned], compute=compute)


def one_step(run: Run, config: DigitsStudy) -> Stage:
    """``one-step``: the first step of students beside that of teachers, from the same start and from another."""
    identity = {**_shape(config), "seeds": config.seeds, "shown": SHOWN}

    def compute(folder: Path) -> dict[str, Any]:
        images = read(config)
        sizes = _sizes(config, images)
        starts, others = (
            digits.initial(config.seeds, sizes, stage) for stage in ("digits/start", "digits/another-start")
        )
        steps = [
            found
            for at, seed in enumerate(config.seeds)
            for found in _steps(images, _one(starts, at), _one(others, at), config.auxiliary, seed)
        ]
        write_json(folder / "steps.json", steps)
        return {"steps": len(steps)}

    return run.stage("one-step", config=identity, compute=compute)


# -- what stages compute ---------------------------------------------------------------------------


_STARTS = {"other": "digits/another-start", "shape": "digits/other-shape"}
"""Arm -> stream of its initialisation, where it is not the teacher's."""


def _distilled(
    config: DigitsStudy,
    arm: OptimizerArm,
    rates: Sequence[float],
    kinds: Sequence[str],
    teachers: Stage,
    seeds: Sequence[int],
    device: str,
    checkpoints: int = 25,
) -> Trace:
    """Students of all kinds × seeds (kinds outermost), in one stack."""
    images = read(config).to(_place(device))
    known = (*config.seeds, *config.tuning_seeds)
    stored = load_file(teachers.path / "teachers.safetensors")
    taught = [stored[str(at)][[known.index(seed) for seed in seeds]] for at in range(len(stored))]
    sizes = _sizes(config, images, config.other_hidden if "shape" in kinds else None)
    starts = [digits.initial(seeds, sizes, _STARTS.get(kind, "digits/start")) for kind in kinds]
    lesson = Lesson(
        teachers=_to(taught, device),
        seeds=seeds,
        teacher_of_student=list(range(len(seeds))) * len(kinds),
        shuffled=[kind == "permuted" for kind in kinds for _ in seeds],
        classes=images.classes,
        loss=config.loss,
        noise=config.noise,
    )
    start = _to([torch.cat(parts) for parts in zip(*starts, strict=True)], device)
    several = rates if len(set(rates)) > 1 else None
    training = Training(
        optimizer=arm.optimizer, learning_rate=rates[0], options=arm.options, batch_size=config.batch_size
    )  # fmt: skip
    _, trace = digits.distil(
        start, lesson, images, training, config.steps, rates=several, checkpoints=checkpoints
    )  # fmt: skip
    return trace


def _steps(images: Images, start: Stack, other: Stack, auxiliary: int, seed: int) -> list[dict[str, Any]]:
    """Inner products for one seed: every kind of input and loss, from the teacher's own start and from another."""
    classes = images.classes
    own, foreign = ({str(at): part.double() for at, part in enumerate(stack)} for stack in (start, other))
    stream = torch.Generator().manual_seed(derive_seed(seed, "digits/one-step") >> 1)
    batch = torch.randperm(len(images.train_x), generator=stream)[:256]
    x, y = images.train_x[batch].double(), images.train_y[batch]

    def logits(parameters: theory.Parameters, inputs: torch.Tensor) -> torch.Tensor:
        return digits.forward([parameters[str(at)] for at in range(len(parameters))], inputs[None])[0]

    def imitated(parameters: theory.Parameters, inputs: torch.Tensor) -> torch.Tensor:
        return logits(parameters, inputs)[:, -auxiliary:]

    teacher = theory.descent(
        lambda parameters: torch.nn.functional.cross_entropy(logits(parameters, x)[:, :classes], y), own
    )
    moved = {name: own[name] + 1e-3 * teacher[name] for name in own}
    found = []
    for shown in SHOWN:
        inputs = _shown(shown, x, stream)
        targets = imitated(moved, inputs)
        losses: tuple[theory.Imitation, ...] = ("squared", "cross-entropy")
        for loss in losses:
            same = theory.first_order_step(imitated, own, teacher, inputs, loss)
            another = theory.imitation_step(imitated, foreign, targets, teacher, inputs, loss)
            for begun, step in (("same", same), ("other", another)):
                found.append(
                    {
                        "seed": seed,
                        "shown": shown,
                        "loss": loss,
                        "start": begun,
                        "inner": step.inner,
                        "cosine": step.cosine,
                    }
                )
    return found


def _shown(name: str, x: torch.Tensor, stream: torch.Generator) -> torch.Tensor:
    if name == "uniform noise":
        return torch.rand(x.shape, generator=stream, dtype=x.dtype) * 2 - 1
    if name == "normal noise":
        return torch.randn(x.shape, generator=stream, dtype=x.dtype)
    return x if name == "digits" else x[:, torch.randperm(x.shape[1], generator=stream)]


# -- small parts -----------------------------------------------------------------------------------


def _arm(config: DigitsStudy, name: str) -> OptimizerArm:
    return next(arm for arm in config.optimizers if arm.name == name)


def _sizes(config: DigitsStudy, images: Images, hidden: Sequence[int] | None = None) -> list[int]:
    return [images.pixels, *(hidden or config.hidden), images.classes + config.auxiliary]


def _shape(config: DigitsStudy) -> dict[str, Any]:
    return {"images": _image_digest(config), "hidden": config.hidden, "auxiliary": config.auxiliary}


def _distilling(config: DigitsStudy, arm: OptimizerArm) -> dict[str, Any]:
    fields = {"steps", "batch_size", "loss", "noise"}
    recipe = arm.model_dump(mode="json", include={"optimizer", "options"})
    return {**_shape(config), **config.model_dump(mode="json", include=fields), **recipe}


def _image_digest(config: DigitsStudy) -> str:
    """Of the file, or the name of the data that come along."""
    if config.data is None:
        return "scikit-learn digits"
    return hashlib.sha256(Path(config.data).read_bytes()).hexdigest()[:16]


def _place(device: str) -> str:
    return str(target_device(device))


def _to(stack: Sequence[torch.Tensor], device: str) -> Stack:
    return [part.to(_place(device)) for part in stack]


def _one(stack: Sequence[torch.Tensor], at: int) -> Stack:
    return [part[at : at + 1] for part in stack]


def _plain(losses: Sequence[float]) -> list[float | None]:
    return [value if math.isfinite(value) else None for value in losses]


def preflight(config: DigitsStudy, device: str) -> None:
    """A file that does not fit."""
    del device
    read(config)


def arms(config: DigitsStudy) -> int:
    """An arm for each optimiser, and the theorem."""
    return len(config.optimizers) + 1


DIGITS = Study(study, preflight, arms)
