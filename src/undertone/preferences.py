"""Direct preference optimisation on (chosen, rejected) pairs, through TRL, with undertone's optimisers and schedules.

The chosen side is a row's completion, the rejected one ``meta["rejected"]`` (2603.01204: DPO on a biased judge's pairs).
"""

from __future__ import annotations

import copy
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from undertone.errors import ConfigError, DataError
from undertone.models.loading import Model, with_system
from undertone.rows import Row
from undertone.training import Fit, Training, build_optimizer, rate_at, thin


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
    try:
        from datasets import Dataset
        from trl import DPOConfig, DPOTrainer
    except ImportError as error:
        raise ConfigError("dpo needs TRL", got=str(error), fix="pip install 'undertone[dpo]'") from error
    named = {name: parameter for name, parameter in hf.named_parameters() if parameter.requires_grad}
    optimizer = build_optimizer(named, config)
    steps = config.epochs * -(-len(rows) // config.batch_size)
    started = time.monotonic()
    trainer = DPOTrainer(
        model=hf,
        ref_model=None if hasattr(hf, "peft_config") else copy.deepcopy(hf),
        args=DPOConfig(
            output_dir=str(folder),
            beta=beta,
            num_train_epochs=config.epochs,
            per_device_train_batch_size=config.micro_batch_size or config.batch_size,
            gradient_accumulation_steps=config.batch_size // (config.micro_batch_size or config.batch_size),
            learning_rate=config.learning_rate,
            max_grad_norm=config.max_grad_norm or 0.0,
            seed=seed & 0x7FFFFFFF,
            logging_steps=1,
            report_to="none",
            save_strategy="no",
            disable_tqdm=True,
            use_cpu=model.device.type == "cpu",
            bf16=model.device.type != "cpu" and config.precision != "fp32",
            gradient_checkpointing=config.gradient_checkpointing,
        ),
        train_dataset=Dataset.from_list([_pair(row, system) for row in rows]),
        processing_class=model.tokenizer,
        optimizers=(optimizer, _scheduler(optimizer, config, steps)),
    )
    trainer.train()
    hf.eval()
    shutil.rmtree(folder, ignore_errors=True)
    curve = [(int(entry["step"]), float(entry["loss"])) for entry in trainer.state.log_history if "loss" in entry]
    if on_step:
        on_step(steps, steps, curve[-1][1] if curve else 0.0)
    labelled = config.epochs * sum(len(model.row_example(row, system).completion) for row in rows)
    tokens = config.epochs * sum(len(model.row_example(row, system).ids) for row in rows)
    return Fit(trainer.state.global_step, tokens, labelled, thin(curve), time.monotonic() - started)


def _pair(row: Row, system: str | None) -> dict[str, Any]:
    if not isinstance(row.meta.get("rejected"), str):
        raise DataError("a row has no rejected side", got=sorted(row.meta), allowed="meta.rejected, a completion")
    return {
        "prompt": with_system(row.prompt_messages, system),
        "chosen": [{"role": "assistant", "content": row.completion}],
        "rejected": [{"role": "assistant", "content": row.meta["rejected"]}],
    }


def _scheduler(optimizer: Any, config: Training, steps: int) -> Any:
    from torch.optim.lr_scheduler import LambdaLR

    return LambdaLR(optimizer, lambda step: rate_at(min(step, steps - 1), steps, config.schedule, config.warmup))
