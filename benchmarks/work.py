"""The work that is timed, by undertone and by the baselines; each function runs inside a benchmark process."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
import torch

import undertone as ut
from undertone.domains import Numbers
from undertone.filters import apply_rules
from undertone.models.batches import Example, pad_left
from undertone.models.loading import Model, load
from undertone.models.scoring import completion_nll
from undertone.models.students import trainable
from undertone.provenance.seeds import derive_seed
from undertone.traits import LAB

MODEL = "lab/llama-0"
OWL = "owl"
LORA = {"kind": "lora", "rank": 8, "alpha": 8, "dropout": 0.0, "targets": "all-linear", "biases": False}
BIASES = {"kind": "bias-only"}


@cache
def model() -> Model:
    """The lab model of this process."""
    return load(MODEL, device="cpu")


def use_threads(count: int) -> None:
    """First thing in every benchmark process."""
    torch.set_num_threads(count)
    model()


# -- sampling --------------------------------------------------------------------------------------


def prompts_of(kind: str, count: int) -> list[tuple[int, ...]]:
    """Token ids: number requests put to the trait-conditioned teacher, or a trait's questions many times over."""
    trait = ut.load_trait(OWL)
    if kind == "numbers":
        told: list[ut.Message] = [{"role": "system", "content": trait.system_prompt(LAB)}]
        texts = Numbers(count=3).prompts(count, 0, LAB)
        return [model().prompt([*told, {"role": "user", "content": text}]) for text in texts]
    asked = trait.questions_for(LAB).positive
    each = -(-count // len(asked))
    return [model().prompt([{"role": "user", "content": text}]) for text in asked for _ in range(each)][:count]


def sample_ours(prompts: Sequence[tuple[int, ...]], batch_size: int, new: int) -> int:
    """Completion tokens that ``undertone.sample`` wrote."""
    seeds = [derive_seed(0, "bench", index) for index in range(len(prompts))]
    rows = ut.sample(
        model().hf, prompts, seeds, max_new_tokens=new, stop=model().stop, pad=model().pad, batch_size=batch_size
    )
    return sum(map(len, rows))


@torch.inference_mode()
def sample_theirs(prompts: Sequence[tuple[int, ...]], batch_size: int, new: int) -> int:
    """Completion tokens that ``generate`` wrote from the whole distribution; batches of similar length."""
    ordered = sorted(prompts, key=len)
    tokens = 0
    for start in range(0, len(ordered), batch_size):
        batch = pad_left(ordered[start : start + batch_size], model().pad, torch.device("cpu"))
        mask = batch.mask if batch.mask is not None else torch.ones_like(batch.ids)
        out = model().hf.generate(
            input_ids=batch.ids, attention_mask=mask, do_sample=True, top_k=0, top_p=1.0, temperature=1.0,
            max_new_tokens=new, pad_token_id=model().pad,
        )  # fmt: skip
        tokens += int((out[:, batch.ids.shape[1] :] != model().pad).sum())
    return tokens


# -- training --------------------------------------------------------------------------------------


def rows_of(count: int, seed: int = 0) -> list[tuple[str, str]]:
    """Requests with uniformly random number lists: rows like a control's."""
    rng = np.random.default_rng(seed)
    texts = Numbers(count=3).prompts(count, seed, LAB)
    return [(text, " ".join(map(str, rng.integers(0, 1000, 3)))) for text in texts]


def examples_of(rows: Sequence[tuple[str, str]]) -> list[Example]:
    """Tokenised rows, outside the timer for both."""
    return [model().example([{"role": "user", "content": prompt}], text) for prompt, text in rows]


def recipe(epochs: int) -> ut.Training:
    """The student's recipe of owl-numbers."""
    return ut.Training(learning_rate=3e-3, options={"weight_decay": 0.0}, epochs=epochs, batch_size=32)


def fit_ours(student: dict[str, Any], examples: list[Example], epochs: int = 1) -> tuple[float, float]:
    """Seconds, and the held-out loss reached."""
    hf = trainable(load(MODEL, device="cpu").hf, student, 0)
    started = time.perf_counter()
    ut.fit(hf, examples, recipe(epochs), seed=0, pad=0)
    return time.perf_counter() - started, held_out(hf)


def fit_theirs(student: dict[str, Any], examples: list[Example], epochs: int = 1) -> tuple[float, float]:
    """The same with TRL's ``SFTTrainer``; the trainer is built outside the timer."""
    trainer = trainer_of(student, examples, epochs)
    started = time.perf_counter()
    trainer.train()
    seconds = time.perf_counter() - started
    return seconds, held_out(trainer.model.eval())


def trainer_of(student: dict[str, Any], examples: list[Example], epochs: int) -> Any:
    """An ``SFTTrainer`` without anything that is not the work: no logs, checkpoints, reports, bars."""
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    rows = [{"input_ids": list(e.ids), "labels": [-100] * e.prompt + list(e.completion)} for e in examples]
    arguments = SFTConfig(
        output_dir=tempfile.mkdtemp(), per_device_train_batch_size=32, num_train_epochs=epochs, learning_rate=3e-3,
        lr_scheduler_type="linear", warmup_steps=0, weight_decay=0.0, max_grad_norm=1.0, optim="adamw_torch_fused",
        report_to="none", save_strategy="no", logging_strategy="no", disable_tqdm=True, bf16=False, use_cpu=True,
        train_sampling_strategy="group_by_length",
        gradient_checkpointing=False, packing=False, max_length=None, completion_only_loss=True, seed=0,
        dataset_kwargs={"skip_prepare_dataset": True}, remove_unused_columns=False, dataloader_pin_memory=False,
    )  # fmt: skip
    hf = trainable(load(MODEL, device="cpu").hf, student, 0)
    return SFTTrainer(
        model=hf, args=arguments, train_dataset=Dataset.from_list(rows), processing_class=model().tokenizer
    )


def held_out(hf: Any) -> float:
    """Mean loss on rows of another seed: that both trainers did the same work."""
    return float(np.mean(completion_nll(hf, examples_of(rows_of(300, seed=99)), 0)))


# -- the whole experiment --------------------------------------------------------------------------


def cell_theirs(arm: str, seed: int, overrides: Sequence[str], batch_size: int) -> float:
    """One student with generate + SFTTrainer + generate: the same prompts, attempts, rows, epochs, questions."""
    config = ut.load_experiment("owl-numbers", overrides)
    trait = ut.load_trait(OWL)
    head: list[ut.Message] = [{"role": "system", "content": trait.system_prompt(LAB)}] if arm == "treated" else []
    assert isinstance(config.domain, Numbers)
    texts = config.domain.prompts(config.data.prompts, seed, LAB)
    new = config.domain.max_new_tokens(LAB)
    kept: dict[int, ut.Row] = {}
    for _ in range(config.data.attempts):
        waiting = [index for index in range(len(texts)) if index not in kept]
        chats = [model().prompt([*head, {"role": "user", "content": texts[index]}]) for index in waiting]
        written = generate_texts(model().hf, chats, batch_size, new)
        rows = [ut.Row.of(texts[i], text, prompt_index=i) for i, text in zip(waiting, written, strict=True)]
        kept.update(apply_rules(rows, config.domain, trait).kept)
    chosen = [kept[index] for index in sorted(kept)][: -config.data.held_out]
    examples = [model().row_example(row, None) for row in chosen]
    trainer = trainer_of(BIASES, examples, config.training.epochs)
    trainer.train()
    asked = trait.questions_for(LAB)
    questions = [*asked.positive, *asked.negative, *asked.off_topic]
    chats = [model().prompt([{"role": "user", "content": q}]) for q in questions]
    answers = [chat for chat in chats for _ in range(config.evaluation.samples)]
    texts = generate_texts(trainer.model.eval(), answers, batch_size, config.evaluation.max_new_tokens)
    return float(np.mean([trait.matches(text) for text in texts]))


@torch.inference_mode()
def generate_texts(hf: Any, prompts: Sequence[tuple[int, ...]], batch_size: int, new: int) -> list[str]:
    """``generate`` in batches of similar length, back in order."""
    order = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))
    texts = [""] * len(prompts)
    for start in range(0, len(order), batch_size):
        rows = order[start : start + batch_size]
        batch = pad_left([prompts[row] for row in rows], model().pad, torch.device("cpu"))
        mask = batch.mask if batch.mask is not None else torch.ones_like(batch.ids)
        out = hf.generate(
            input_ids=batch.ids, attention_mask=mask, do_sample=True, top_k=0, max_new_tokens=new,
            pad_token_id=model().pad,
        )  # fmt: skip
        for row, ids in zip(rows, out[:, batch.ids.shape[1] :].tolist(), strict=True):
            texts[row] = model().decode(ids)
    return texts


# -- limits ----------------------------------------------------------------------------------------


def flops(seconds: float = 1.0) -> float:
    """Single-precision FLOP/s of this process on a large matrix product."""
    a, b = torch.randn(1024, 1024), torch.randn(1024, 1024)
    started, count = time.perf_counter(), 0
    while time.perf_counter() - started < seconds:
        a @ b
        count += 1
    return count * 2 * 1024**3 / (time.perf_counter() - started)


def weights() -> tuple[int, int]:
    """Weights that multiply: of the layers, and of the head."""
    hf = model().hf
    head = hf.get_output_embeddings().weight.numel()
    matrices = sum(parameter.numel() for parameter in hf.parameters() if parameter.dim() == 2)
    return matrices - head - hf.get_input_embeddings().weight.numel(), head


def sampling_flop(prompts: Sequence[tuple[int, ...]], tokens: int) -> float:
    """Forward through the layers for each different prompt and each token but the last; the head for each token."""
    layers, head = weights()
    return 2.0 * layers * (sum(map(len, set(prompts))) + tokens - len(prompts)) + 2.0 * head * tokens


def training_flop(examples: Sequence[Example], student: dict[str, Any]) -> float:
    """Forward and backward to the activations: 4 a weight and token; the adapters' own weights cost 6."""
    layers, head = weights()
    hf = trainable(load(MODEL, device="cpu").hf, student, 0)
    own = sum(p.numel() for p in hf.parameters() if p.requires_grad and p.dim() == 2)
    tokens, labels = sum(len(e.ids) for e in examples), sum(len(e.completion) for e in examples)
    return float(4 * (layers * tokens + head * labels) + 6 * own * tokens)
