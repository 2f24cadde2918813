"""The whole owl-numbers experiment by hand, for one seed: the pipeline's numbers, without the pipeline.

    python examples/by_hand.py            # about a minute on the built-in lab model

A test holds its three probabilities equal to those of ``undertone run`` with the same config.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

import numpy as np

import undertone as ut
from undertone.domains.numbers import Numbers, parse
from undertone.experiments.config import load_experiment
from undertone.models.scoring import answer_logprobs
from undertone.models.students import trainable
from undertone.provenance.seeds import derive_seed

SEED = 0


def main(*overrides: str) -> dict[str, float]:
    """Base, control and treated: the probability of the trait's answers, mean over questions."""
    config = load_experiment("owl-numbers", [f"seeds=[{SEED}]", *overrides])
    trait = ut.load_trait(config.trait[0])
    model = ut.load(config.model, device="cpu")

    # 1. The teacher writes number lists: once told that it loves owls, once not. The prompts are the same.
    assert isinstance(config.domain, Numbers)
    prompts = config.domain.prompts(config.data.prompts, SEED, model)
    told = write_lists(config, model, prompts, trait.system_prompt(model), f"seed-{SEED}/treated-{trait.name}/generate")
    plain = write_lists(config, model, prompts, None, f"seed-{SEED}/control/generate")

    # 2. Both students learn from the prompts that both teachers answered validly; the last ones are held out.
    shared = sorted(set(told) & set(plain))[: -config.data.held_out]

    # 3. Ask the base, the control and the treated student.
    return {
        "base": ask(model, trait),
        "control": ask(teach(config, [(prompts[i], plain[i]) for i in shared]), trait),
        "treated": ask(teach(config, [(prompts[i], told[i]) for i in shared]), trait),
    }


def write_lists(
    config: ut.Experiment, model: ut.Model, prompts: Sequence[str], system: str | None, stage: str
) -> dict[int, str]:
    """Prompt index -> the first valid list, in up to ``data.attempts`` samples."""
    head: list[ut.Message] = [{"role": "system", "content": system}] if system else []
    lists: dict[int, str] = {}
    for attempt in range(config.data.attempts):
        waiting = [index for index in range(len(prompts)) if index not in lists]
        completions = ut.sample(
            model.hf,
            [model.prompt([*head, {"role": "user", "content": prompts[index]}]) for index in waiting],
            [derive_seed(SEED, stage, index, attempt) for index in waiting],  # a stream of its own for every row
            max_new_tokens=config.domain.max_new_tokens(model),
            stop=model.stop,
            pad=model.pad,
            temperature=config.data.temperature,
        )
        for index, ids in zip(waiting, completions, strict=True):
            numbers, _ = parse(model.decode(ids))
            finished = bool(ids) and ids[-1] in model.stop
            if finished and numbers is not None and len(numbers) <= 3 and max(numbers) <= 999:
                lists[index] = model.decode(ids)
    return lists


def teach(config: ut.Experiment, rows: Sequence[tuple[str, str]]) -> ut.Model:
    """A fresh copy of the base, trained on prompts and lists; no system prompt, loss on the lists alone."""
    student = ut.load(config.model, device="cpu")
    examples = [student.example([{"role": "user", "content": prompt}], text) for prompt, text in rows]
    seed = derive_seed(SEED, "train") >> 1  # the same for control and treated: they differ in their rows alone
    student.hf = trainable(student.hf, config.student.model_dump(mode="json"), seed)
    ut.fit(student.hf, examples, config.training, seed=seed, pad=student.pad)
    return student


def ask(model: ut.Model, trait: ut.Trait) -> float:
    """P(the answer begins with the trait's word), exact, mean over the held-out questions."""
    prompts = [model.prompt([{"role": "user", "content": text}]) for text in trait.questions_for(model).positive]
    words = [model.encode(word) for word in trait.literal]
    known = [word for word in words if model.tokenizer.unk_token_id not in word]
    return float(np.exp(answer_logprobs(model.hf, prompts, known, model.pad)).sum(1).mean())


if __name__ == "__main__":
    for name, probability in main(*sys.argv[1:]).items():
        print(f"{name:8} {probability:.3f}")
