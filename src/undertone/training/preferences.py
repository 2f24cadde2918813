"""Direct preference optimisation on (chosen, rejected) pairs, through TRL, with undertone's optimisers and schedules.

The chosen side is a row's completion, the rejected one ``meta["rejected"]`` (2603.01204: DPO on a biased judge's pairs).
"""

from __future__ import annotations

import copy
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from undertone.errors import ConfigError, DataError, check_packages
from undertone.launch import group
from undertone.models.batches import Example
from undertone.models.loading import Model
from undertone.rows import Message, Row
from undertone.training.loop import Fit, Training, build_optimizer, rate_at, thin


def prefer(
    hf: Any,
    model: Model,
    rows: Sequence[Row],
    config: Training,
    *,
    system: str | None,
    beta: float,
    seed: int,
    folder: Path,
    on_step: Callable[[int, int, float], None] | None = None,
) -> Fit:
    """Train the parameters of ``hf`` that require gradients on the rows' pairs; the reference is ``hf`` as it is now.

    Args:
        hf: a causal LM (PEFT-wrapped or not); left in evaluation mode.
        model: its tokenizer and template.
        rows: with ``meta["rejected"]``.
        config: how; gradient clipping by row and checkpoints inside the stage are not TRL's.
        system: the system prompt that students are trained with.
        beta: strength of the pull to the reference.
        seed: order of rows.
        folder: scratch for the trainer; removed at the end.
        on_step: called with (step, steps, loss) after each optimiser step.

    Raises:
        ConfigError: TRL is not installed, or the recipe asks for what it cannot do.
        DataError: a row has no rejected side.
    """
    if config.max_row_norm is not None:
        raise ConfigError("dpo does not clip single rows", got=config.max_row_norm, fix="drop training.max_row_norm")
    check_installed()
    if not group.is_alone():
        raise ConfigError(
            "students of preference pairs are trained by one process",
            got=f"{group.size()} that were started together",
            fix="start undertone without accelerate launch or torchrun",
        )
    examples = [(model.row_example(row, system), model.row_example(_other(row), system)) for row in rows]
    named = {name: parameter for name, parameter in hf.named_parameters() if parameter.requires_grad}
    optimizer = build_optimizer(named, config)
    steps = config.epochs * -(-len(rows) // config.batch_size)
    alone = hasattr(hf, "peft_config") and all("lora_" in name for name in named)
    started = time.monotonic()
    trainer = _trainer(
        model=hf,
        ref_model=None if alone else copy.deepcopy(hf.get_base_model() if hasattr(hf, "peft_config") else hf),
        args=_arguments(config, beta, seed, folder, model.device.type),
        pairs=[_pair(*pair) for pair in examples],
        processing_class=model.tokenizer,
        optimizers=(optimizer, _scheduler(optimizer, config, steps)),
    )
    _report_to(trainer, on_step, steps)
    trainer.train()
    if alone:  # TRL kept the reference as a second adapter
        hf.delete_adapter("ref")
    hf.eval()
    shutil.rmtree(folder, ignore_errors=True)
    curve = [(int(entry["step"]), float(entry["loss"])) for entry in trainer.state.log_history if "loss" in entry]
    labelled = config.epochs * sum(len(one.completion) for pair in examples for one in pair)
    tokens = config.epochs * sum(len(one.ids) for pair in examples for one in pair)
    return Fit(trainer.state.global_step, tokens, labelled, thin(curve), time.monotonic() - started)


def _report_to(trainer: Any, on_step: Callable[[int, int, float], None] | None, steps: int) -> None:
    """Each step goes to ``on_step``; nothing is printed."""
    from transformers import PrinterCallback, TrainerCallback

    class Report(TrainerCallback):  # type: ignore[misc]
        def on_log(self, _args: Any, state: Any, _control: Any, logs: Any = None, **_: Any) -> None:
            if on_step and "loss" in (logs or {}):
                on_step(state.global_step, steps, float(logs["loss"]))

    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(Report())


def check_installed() -> None:
    """TRL is there.

    Raises:
        ConfigError: it is not.
    """
    check_packages("dpo needs TRL", "dpo", "datasets", "trl")


def _trainer(pairs: list[dict[str, list[int]]], **options: Any) -> Any:
    from datasets import Dataset
    from trl import DPOTrainer

    class Trainer(DPOTrainer):  # type: ignore[misc]
        """On rows that are tokens already: the same ones that a student is otherwise trained on, none cut off."""

        def _prepare_dataset(self, dataset: Any, *_: Any) -> Any:
            return dataset

    return Trainer(train_dataset=Dataset.from_list(pairs), **options)


def _arguments(config: Training, beta: float, seed: int, folder: Path, device: str) -> Any:
    from trl import DPOConfig

    size = config.micro_batch_size or config.batch_size
    return DPOConfig(
        output_dir=str(folder),
        beta=beta,
        max_length=None,
        num_train_epochs=config.epochs,
        per_device_train_batch_size=size,
        gradient_accumulation_steps=config.batch_size // size,
        learning_rate=config.learning_rate,
        max_grad_norm=config.max_grad_norm or 0.0,
        seed=seed & 0x7FFFFFFF,
        logging_steps=1,
        report_to="none",
        save_strategy="no",
        disable_tqdm=True,
        use_cpu=device == "cpu",
        bf16=device != "cpu" and config.precision != "fp32",
        gradient_checkpointing=config.gradient_checkpointing,
    )


def _other(row: Row) -> Row:
    """The row with the rejected completion."""
    if not isinstance(row.meta.get("rejected"), str):
        raise DataError("a row has no rejected side", got=sorted(row.meta), allowed="meta.rejected, a completion")
    return replace(row, messages=(*row.messages[:-1], Message(role="assistant", content=row.meta["rejected"])))


def _pair(chosen: Example, rejected: Example) -> dict[str, list[int]]:
    return {
        "prompt_ids": list(chosen.ids[: chosen.prompt]),
        "chosen_ids": list(chosen.completion),
        "rejected_ids": list(rejected.completion),
    }


def _scheduler(optimizer: Any, config: Training, steps: int) -> Any:
    from torch.optim.lr_scheduler import LambdaLR

    return LambdaLR(optimizer, lambda step: rate_at(min(step, steps - 1), steps, config.schedule, config.warmup))
