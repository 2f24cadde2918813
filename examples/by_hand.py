"""The whole owl-numbers experiment by hand, for one seed: the pipeline's numbers, without the pipeline.

    python examples/by_hand.py            # about a minute on the built-in lab model

A test holds its three probabilities equal to those of ``undertone run`` with the same config.
"""

from __future__ import annotations

import sys

import undertone as ut
from undertone.domains.numbers import parse
from undertone.provenance.seeds import derive_seed

SEED = 0


def main(*overrides: str) -> dict[str, float]:
    """Base, control and treated: the probability of the trait's answers, mean over questions."""
    config = ut.load_experiment("owl-numbers", [f"seeds=[{SEED}]", *overrides])
    owl, base = ut.load_trait(config.trait[0]), ut.load(config.model, device="cpu")

    # 1. The teacher writes number lists: once told by a system prompt that it loves owls, once not.
    treated = write_lists(config, base, owl.told(base.form), f"seed-{SEED}/treated-{owl.name}/generate")
    control = write_lists(config, base, None, f"seed-{SEED}/control/generate")

    # 2. Both students learn from the prompts that both teachers answered validly; the last ones are held out.
    shared = sorted(set(treated) & set(control))[: -config.data.held_out]
    seed = derive_seed(SEED, "train") >> 1  # the same for both: they differ in their rows alone
    students = {
        arm: base.train([lists[at] for at in shared], config.student, config.training, seed=seed)
        for arm, lists in (("control", control), ("treated", treated))
    }

    # 3. Ask the base, the control and the treated student.
    return {
        name: ut.measure(model, owl, ut.Evaluation(samples=0)).measure.positive.probability.mean
        for name, model in {"base": base, **students}.items()
    }


def write_lists(config: ut.Experiment, model: ut.LanguageModel, system: str | None, stream: str) -> dict[int, ut.Row]:
    """Prompt index -> a row with the first valid list, in up to ``data.attempts`` samples."""
    head = [ut.Message(role="system", content=system)] if system else []
    prompts = [str(prompt) for prompt in config.domain.prompts(config.data.prompts, SEED, model.form)]
    rows: dict[int, ut.Row] = {}
    for attempt in range(config.data.attempts):
        waiting = [at for at in range(len(prompts)) if at not in rows]
        answers = model.sample(
            [[*head, ut.Message(role="user", content=prompts[at])] for at in waiting],
            seeds=[derive_seed(SEED, stream, at, attempt) for at in waiting],  # a stream of its own for every row
            max_new_tokens=config.domain.max_new_tokens(model.form),
        )
        for at, answer in zip(waiting, answers, strict=True):
            numbers, _ = parse(answer.text)
            if answer.finished and numbers and len(numbers) <= 3 and max(numbers) <= 999:
                rows[at] = ut.Row.of(prompts[at], answer.text)
    return rows


if __name__ == "__main__":
    for name, probability in main(*sys.argv[1:]).items():
        print(f"{name:8} {probability:.3f}")
