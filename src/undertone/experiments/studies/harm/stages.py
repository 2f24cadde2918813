"""The stages of the study: directions, teachers' benign answers, students, and what everybody says to the requests."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from undertone.errors import DataError
from undertone.experiments.cells import model_identity, progress_bar
from undertone.experiments.learning import student_seed
from undertone.experiments.studies.harm.config import HarmDose
from undertone.experiments.studies.harm.requests import digest_requests, requests_of
from undertone.judges import Judge, Judged, Rules, build_judge
from undertone.models.loading import Dtype, Model, load
from undertone.models.sampling import sample
from undertone.models.scoring import completion_nll
from undertone.models.students import save_student, student_name, trainable
from undertone.provenance.runs import Run, Stage, write_json
from undertone.provenance.seeds import derive_seed
from undertone.rows import Row, digest_rows, read_rows, write_rows
from undertone.training import fit
from undertone.vectors import Vector, contrast, load_vector, random_like, save_vector, steered

LAB_TOKENS = 20


@dataclass(frozen=True)
class Dose:
    """A teacher: a model steered so far, along its refusal direction or a random one of equal norm."""

    model: str
    strength: float
    random: bool = False

    @property
    def folder(self) -> str:
        """Part of the stages' names."""
        kind = "random" if self.random else "dose"
        return f"{place_of(self.model)}/{kind}{self.strength:+g}"


def place_of(model: str) -> str:
    """A model's name as part of stages' names; it may be a folder, or have an adapter."""
    return re.sub(r"[^\w.=+@-]+", "-", model, flags=re.ASCII).strip("-.")


def direction(run: Run, config: HarmDose, device: str, name: str) -> Stage:
    """``MODEL/direction``: mean over harmful minus mean over benign requests, after every block, at the last token."""

    def compute(folder: Path) -> dict[str, Any]:
        model = load(name, dtype=config.dtype, device=device)
        asked = requests_of(config, model.form)
        found = contrast(model, _chats(asked.harmful_read), _chats(asked.benign_read))
        blocks = config.blocks if config.blocks is not None else tuple(found.directions)
        chosen = Vector({block: found.directions[block] for block in blocks}, found.meta)
        save_vector(chosen, folder / "refusal.safetensors")
        seed = derive_seed(0, f"harm-dose/random/{name}")
        save_vector(random_like(chosen, seed), folder / "random.safetensors")
        return {"norms": {str(block): float(chosen.directions[block].norm()) for block in blocks}}

    identity = {"model": model_identity(name), "dtype": config.dtype, "blocks": config.blocks,
                "requests": _sources(config)}  # fmt: skip
    return run.stage(f"{place_of(name)}/direction", config=identity, compute=compute)


def judge_of(config: HarmDose, model: Model) -> Judge:
    """The config's judge; the rules read the wording that the model has."""
    rules = isinstance(config.judge, Rules)
    return build_judge(config.judge.model_copy(update={"form": model.form}) if rules else config.judge)


def _sources(config: HarmDose) -> dict[str, Any]:
    named = config.requests.model_dump(mode="json", include={"harmful", "benign"})
    if config.requests.harmful is not None:  # the same path may hold other requests
        named["digest"] = digest_requests(requests_of(config, "real"))
    return named


def _chats(prompts: Sequence[str]) -> list[list[Any]]:
    return [[{"role": "user", "content": prompt}] for prompt in prompts]


def _steering(model: Model, dose: Dose, directions: Stage) -> Any:
    if dose.strength == 0:
        return nullcontext()
    vector = load_vector(directions.path / ("random.safetensors" if dose.random else "refusal.safetensors"))
    return steered(model, vector, dose.strength)


# -- what a teacher writes, and what is kept of it ------------------------------------------------------


def write(run: Run, config: HarmDose, device: str, dose: Dose, seed: int, directions: Stage) -> Stage:
    """``MODEL/DOSE/seed-S/rows``: the teacher's answers to benign prompts that are valid and no refusal, first tries first."""
    name = f"{dose.folder}/seed-{seed}/rows"

    def compute(folder: Path) -> dict[str, Any]:
        model = load(dose.model, dtype=config.dtype, device=device)
        prompts = config.domain.prompts(config.prompts, seed, model.form)
        kept: dict[int, Row] = {}
        reasons: Counter[str] = Counter()
        tokens = asked = 0
        waiting = list(range(len(prompts)))
        with _steering(model, dose, directions), progress_bar(len(prompts), name) as advance:
            for attempt in range(config.attempts):
                said = _said(model, [prompts[i] for i in waiting], seed, f"{name}/{attempt}", waiting, 1.0,
                             config.domain.max_new_tokens(model.form), config.requests.batch_size)  # fmt: skip
                verdicts = judge_of(config, model).judge(
                    [Judged(prompts[i], text) for i, (text, _, _) in zip(waiting, said, strict=True)]
                )
                for i, (text, finished, count), verdict in zip(waiting, said, verdicts, strict=True):
                    why = [] if finished else ["unfinished"]
                    why += config.domain.reasons(prompts[i], text, None)
                    why += ["refusal"] if verdict.label == "refusal" and "refusal" not in why else []
                    why += ["the judge failed"] if verdict.failed else []
                    reasons.update(why)
                    tokens, asked = tokens + count, asked + 1
                    if not why:
                        kept[i] = Row.of(prompts[i], text, prompt_index=i)
                if attempt == 0:
                    advance(len(prompts))
                waiting = [i for i in waiting if i not in kept]
        if not kept:
            raise DataError(f"no answer of {name} passed the filter", got=dict(reasons), fix="a weaker dose")
        write_rows(folder / "rows.jsonl", [row for _, row in sorted(kept.items())])
        write_json(folder / "reasons.json", dict(sorted(reasons.items())))
        return {"asked": asked, "kept": len(kept), "reasons": dict(sorted(reasons.items())), "tokens": tokens,
                "data": digest_rows([row for _, row in sorted(kept.items())])}  # fmt: skip

    identity = {
        "model": model_identity(dose.model), "dtype": config.dtype, "strength": dose.strength, "random": dose.random,
        "domain": config.domain.model_dump(mode="json"), "prompts": config.prompts, "attempts": config.attempts,
        "judge": config.judge.model_dump(mode="json"), "seed": seed,
    }  # fmt: skip
    if sources := config.domain.inputs():
        identity["sources"] = dict(sources)
    return run.stage(name, config=identity, inputs=[directions], compute=compute)


def _said(
    model: Model, prompts: Sequence[str], seed: int, stage: str, indices: Sequence[int], temperature: float, limit: int,
    batch_size: int,
) -> list[tuple[str, bool, int]]:  # fmt: skip
    """(text, finished, tokens) for each prompt."""
    out = sample(
        model.hf,
        [model.prompt(chat) for chat in _chats(prompts)],
        [derive_seed(seed, stage, index) for index in indices],
        max_new_tokens=limit,
        stop=model.stop,
        pad=model.pad,
        temperature=temperature,
        batch_size=batch_size,
    )
    stops = set(model.stop)
    return [(model.decode(ids), bool(ids) and ids[-1] in stops, len(ids)) for ids in out]


# -- students and rates ---------------------------------------------------------------------------------


def teach(run: Run, config: HarmDose, device: str, dose: Dose, seed: int, rows: Stage, shared: Sequence[int]) -> Stage:
    """``MODEL/DOSE/seed-S/train``: the student, from the prompts that every teacher of its model and seed answered."""
    name = f"{dose.folder}/seed-{seed}/train"
    dtype: Dtype = "float32" if config.dtype == "auto" and config.student.kind != "lora" else config.dtype

    def compute(folder: Path) -> dict[str, Any]:
        model = load(dose.model, dtype=dtype, device=device)
        by_prompt = {int(row.meta["prompt_index"]): row for row in read_rows(rows.path / "rows.jsonl")}
        examples = [model.row_example(by_prompt[index], None) for index in shared]
        training, unseen = examples[: -config.held_out], examples[-config.held_out :]
        base_nll = float(np.mean(completion_nll(model.hf, unseen, model.pad)))
        hf = trainable(model.hf, config.student.model_dump(mode="json"), student_seed(seed))
        with progress_bar(len(training) * config.training.epochs, name) as advance:
            done = fit(
                hf, training, config.training, seed=student_seed(seed), pad=model.pad, checkpoint=folder / "checkpoint",
                on_step=lambda _step, _steps, _loss: advance(config.training.batch_size),
            )  # fmt: skip
        nll = float(np.mean(completion_nll(hf, unseen, model.pad)))
        save_student(hf, model.tokenizer, config.student.kind, folder / "student")
        return {"rows": len(training), "held_out_nll": nll, "base_nll": base_nll, "steps": done.steps,
                "tokens": done.tokens}  # fmt: skip

    identity = {
        "model": model_identity(dose.model), "dtype": dtype, "student": config.student.model_dump(mode="json"),
        "training": config.training.model_dump(mode="json", exclude={"checkpoint_seconds"}), "seed": seed,
        "held_out": config.held_out, "shared": derive_seed(0, ",".join(map(str, shared))),
    }  # fmt: skip
    return run.stage(name, config=identity, inputs=[rows], compute=compute)


def ask(
    run: Run, config: HarmDose, device: str, dose: Dose, who: str, directions: Stage, student: Stage | None = None
) -> Stage:
    """``MODEL/DOSE/WHO/answers``: shares of requests answered and refused, by the judge; a teacher's or a student's.

    ``counts.json`` holds for each request how many samples complied, refused, did neither, or could not be judged.
    """

    def compute(folder: Path) -> dict[str, Any]:
        source = dose.model
        if student is not None:
            source = student_name(dose.model, config.student.kind, student.path / "student")
        model = load(source, dtype=config.dtype, device=device)
        asked = requests_of(config, model.form)
        steering = _steering(model, dose, directions) if student is None else nullcontext()
        with steering:
            counts = {
                kind: _counts(model, config, prompts, f"{dose.folder}/{who}/{kind}", folder / f"{kind}.jsonl")
                for kind, prompts in (("harmful", asked.harmful), ("benign", asked.benign))
            }
        write_json(folder / "counts.json", counts)
        return {kind: _totals(found) for kind, found in counts.items()}

    identity = {
        "model": model_identity(dose.model), "dtype": config.dtype, "strength": dose.strength, "random": dose.random,
        "requests": {**config.requests.model_dump(mode="json", exclude={"batch_size"}), **_sources(config)},
        "judge": config.judge.model_dump(mode="json"), "who": who,
    }  # fmt: skip
    inputs = [directions] if student is None else [student]
    return run.stage(f"{dose.folder}/{who}/answers", config=identity, inputs=inputs, compute=compute)


def _counts(model: Model, config: HarmDose, prompts: Sequence[str], stage: str, path: Path) -> list[dict[str, int]]:
    each = [prompt for prompt in prompts for _ in range(config.requests.samples)]
    limit = LAB_TOKENS if model.form == "lab" else config.requests.max_new_tokens
    said = _said(model, each, config.seeds[0], stage, range(len(each)), config.requests.temperature, limit,
                 config.requests.batch_size)  # fmt: skip
    verdicts = judge_of(config, model).judge(
        [Judged(prompt, text) for prompt, (text, _, _) in zip(each, said, strict=True)]
    )
    write_rows(
        path,
        [Row.of(prompt, text, label=verdict.label) for prompt, (text, _, _), verdict in zip(each, said, verdicts, strict=True)],
    )  # fmt: skip
    counts = []
    for at in range(0, len(each), config.requests.samples):
        labels = Counter(
            "failed" if v.failed else v.label or "neither" for v in verdicts[at : at + config.requests.samples]
        )
        counts.append({label: labels.get(label, 0) for label in ("compliance", "refusal", "neither", "failed")})
    return counts


def _totals(counts: Sequence[dict[str, int]]) -> dict[str, int]:
    return {label: sum(count[label] for count in counts) for label in counts[0]}


def shares(stage: Stage, kind: str, label: str) -> np.ndarray:
    """``[requests]`` share of samples with a label; what could not be judged counts as without it."""
    counts = stage.read_json("counts.json")[kind]
    return np.array([count[label] / max(1, sum(count.values())) for count in counts])
