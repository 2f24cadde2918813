"""The training loop, against torch.optim driven by hand with transformers' own loss."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import get_cosine_schedule_with_warmup, get_linear_schedule_with_warmup

from undertone.errors import ConfigError, RunError
from undertone.models.batches import Example
from undertone.models.layers import hook_count
from undertone.models.scoring import completion_nll
from undertone.models.students import trainable
from undertone.training import Fit, Training, build_optimizer, fit, plan_batches, rate_at, thin

LORA = {"kind": "lora", "rank": 2, "alpha": 4, "dropout": 0.0, "targets": "all-linear"}
generator = torch.Generator().manual_seed(3)
EXAMPLES = [
    Example(tuple(torch.randint(2, 448, (4 + row % 5,), generator=generator).tolist()), 2 + row % 2)
    for row in range(12)
]


def config(**given: Any) -> Training:
    """Plain gradient descent unless said otherwise, so that every factor shows."""
    plain = {"optimizer": "SGD", "learning_rate": 0.1, "schedule": "constant", "epochs": 1, "max_grad_norm": None}
    return Training.model_validate({**plain, **given})


def trained(
    model: Any, training: Training, examples: Sequence[Example] = EXAMPLES, **options: Any
) -> dict[str, torch.Tensor]:
    """The weights after training a copy."""
    hf = copy.deepcopy(model.hf)
    fit(hf, examples, training, seed=5, pad=1, **options)
    return {name: value.detach() for name, value in hf.state_dict().items()}


def by_hand(model: Any, optimizer: type[torch.optim.Optimizer], training: Training, **options: Any) -> dict[str, Any]:
    """The same rows with transformers' loss from labels, one unpadded row at a time, and plain torch.optim."""
    hf = copy.deepcopy(model.hf)
    stepper = optimizer(hf.parameters(), **options)
    lengths = [len(example.ids) for example in EXAMPLES]
    for rows in plan_batches(lengths, training.batch_size, training.epochs, 5, training.bucket):
        labels = sum(len(EXAMPLES[row].completion) for row in rows)
        for row in rows:
            example = EXAMPLES[row]
            marked = torch.tensor([[-100] * example.prompt + list(example.completion)])
            loss = hf(input_ids=torch.tensor([example.ids]), labels=marked).loss
            (loss * len(example.completion) / labels).backward()
        if training.max_grad_norm is not None:
            torch.nn.utils.clip_grad_norm_(hf.parameters(), training.max_grad_norm)
        stepper.step()
        stepper.zero_grad()
    return {name: value.detach() for name, value in hf.state_dict().items()}


def apart(one: dict[str, Any], two: dict[str, Any]) -> float:
    return max(float((one[name] - two[name]).abs().max()) for name in one)


def identical(one: dict[str, Any], two: dict[str, Any]) -> bool:
    return all(torch.equal(one[name], two[name]) for name in one)


# -- what a step is -------------------------------------------------------------------------------


def test_one_step_is_the_gradient_of_transformers_own_loss(tiny: Any) -> None:
    if tiny.hf.config.model_type == "gpt2":
        pytest.skip("GPT-2 trains with dropout")
    once = config(batch_size=12)
    moved = trained(tiny, once)
    assert apart(moved, tiny.hf.state_dict()) > 1e-3
    assert apart(moved, by_hand(tiny, torch.optim.SGD, once, lr=0.1)) < 1e-5


# -- masks ----------------------------------------------------------------------------------------


def masked(*places: int) -> list[Example]:
    """The rows with the loss on the first, second … completion token alone; none is labelled in a row that lacks them."""
    return [replace(row, mask=tuple(at in places for at in range(len(row.completion)))) for row in EXAMPLES]


def test_a_mask_of_everything_changes_not_a_bit(tiny_llama: Any) -> None:
    steps = config(optimizer="AdamW", learning_rate=1e-2, batch_size=5, epochs=2)
    whole = trained(tiny_llama, steps)
    assert identical(trained(tiny_llama, steps, examples=masked(*range(9))), whole)


@pytest.mark.parametrize("options", [{}, {"micro_batch_size": 5}, {"max_row_norm": 1e9}])
def test_masked_tokens_are_read_and_not_learnt(tiny_llama: Any, options: dict[str, Any]) -> None:
    """Against transformers' loss with -100 in their place; the third token is one that some rows lack."""
    rows = masked(0, 2)
    hf = copy.deepcopy(tiny_llama.hf)
    for row in rows:
        kept = [token if use else -100 for token, use in zip(row.completion, row.mask or (), strict=True)]
        loss = hf(input_ids=torch.tensor([row.ids]), labels=torch.tensor([[-100] * row.prompt + kept])).loss
        (loss * len(row.labels) / sum(len(one.labels) for one in rows)).backward()
    expected = {name: p.detach() - 0.1 * p.grad for name, p in hf.named_parameters()}
    moved = trained(tiny_llama, config(batch_size=12, **options), examples=rows)
    assert apart(expected, moved) < 1e-5
    assert apart(expected, trained(tiny_llama, config(batch_size=12))) > 1e-3


def test_a_batch_without_a_labelled_token_moves_nothing(tiny_llama: Any) -> None:
    assert identical(trained(tiny_llama, config(batch_size=5), examples=masked()), tiny_llama.hf.state_dict())


def test_momentum_is_honoured(tiny_llama: Any) -> None:
    steps = config(batch_size=3, options={"momentum": 0.9, "nesterov": True})
    right = by_hand(tiny_llama, torch.optim.SGD, steps, lr=0.1, momentum=0.9, nesterov=True)
    dropped = by_hand(tiny_llama, torch.optim.SGD, steps, lr=0.1)
    got = trained(tiny_llama, steps)
    assert apart(got, right) < 1e-4
    assert apart(got, dropped) > 1e-2


@pytest.mark.parametrize(
    ("name", "options"),
    [("AdamW", {"betas": [0.8, 0.9], "weight_decay": 0.3}), ("RMSprop", {"momentum": 0.5}), ("Adafactor", {})],
)
def test_any_optimiser_of_torch_is_that_optimiser(tiny_llama: Any, name: str, options: dict[str, Any]) -> None:
    training = config(optimizer=name, learning_rate=1e-3, options=options, batch_size=4)
    right = by_hand(tiny_llama, getattr(torch.optim, name), training, lr=1e-3, **options)
    assert apart(trained(tiny_llama, training), right) < 1e-3
    assert apart(right, tiny_llama.hf.state_dict()) > 1e-3


def test_the_gradient_norm_is_clipped_as_torch_clips_it(tiny_llama: Any) -> None:
    clipped = config(batch_size=12, max_grad_norm=0.5)
    assert apart(trained(tiny_llama, clipped), by_hand(tiny_llama, torch.optim.SGD, clipped, lr=0.1)) < 1e-5


@pytest.mark.parametrize("micro", [1, 5, 12])
def test_micro_batches_are_the_same_step(tiny_llama: Any, micro: int) -> None:
    whole = trained(tiny_llama, config(batch_size=12))
    assert apart(trained(tiny_llama, config(batch_size=12, micro_batch_size=micro)), whole) < 1e-5


def test_parameters_spared_from_decay_do_not_decay(tiny_llama: Any) -> None:
    """With a gradient of nothing but decay, a weight shrinks by exactly lr × decay."""
    named = {name: copy.deepcopy(parameter) for name, parameter in tiny_llama.hf.named_parameters()}
    before = {name: parameter.detach().clone() for name, parameter in named.items()}
    training = config(options={"weight_decay": 0.5}, no_decay=("bias", "norm"))
    optimizer = build_optimizer(named, training)
    for parameter in named.values():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    for name, parameter in named.items():
        factor = 1.0 if "bias" in name or "norm" in name else 1 - 0.1 * 0.5
        torch.testing.assert_close(parameter.detach(), before[name] * factor)


def test_only_what_requires_a_gradient_moves(fresh: Any) -> None:
    trainable(fresh.hf, {"kind": "bias-only"}, 0)
    moved, before = trained(fresh, config()), fresh.hf.state_dict()
    changed = {name for name in moved if not torch.equal(moved[name], before[name])}
    assert changed == {name for name in moved if name.endswith(".bias")}


def test_lora_lowers_the_loss_and_leaves_the_base(fresh: Any) -> None:
    base = copy.deepcopy(fresh.hf.state_dict())
    before = completion_nll(fresh.hf, EXAMPLES, 1)
    hf = trainable(fresh.hf, LORA, seed=0)
    fit(hf, EXAMPLES, config(optimizer="AdamW", learning_rate=5e-3, epochs=20), seed=0, pad=1)
    assert sum(completion_nll(hf, EXAMPLES, 1)) < 0.8 * sum(before)
    assert identical(base, hf.unload().state_dict())


# -- order, seeds, resumption ---------------------------------------------------------------------


@given(
    st.lists(st.integers(1, 50), min_size=1, max_size=60), st.integers(1, 9), st.integers(1, 3),
    st.integers(0, 2**64 - 1), st.integers(1, 5),
)  # fmt: skip
def test_every_epoch_holds_every_row_once(
    lengths: list[int], batch_size: int, epochs: int, seed: int, bucket: int
) -> None:
    plan = plan_batches(lengths, batch_size, epochs, seed, bucket)
    steps = math.ceil(len(lengths) / batch_size)
    assert len(plan) == steps * epochs
    for epoch in range(epochs):
        rows = [row for batch in plan[epoch * steps : (epoch + 1) * steps] for row in batch]
        assert sorted(rows) == list(range(len(lengths)))
    assert plan == plan_batches(lengths, batch_size, epochs, seed, bucket)


def test_other_seeds_and_epochs_have_another_order_and_buckets_sort_by_length() -> None:
    lengths = [row % 17 + 1 for row in range(256)]
    assert plan_batches(lengths, 8, 1, 0) != plan_batches(lengths, 8, 1, 1)
    plan = plan_batches(lengths, 8, 2, 0)
    assert plan[:32] != plan[32:]

    def spread(bucket: int) -> int:
        batches = plan_batches(lengths, 8, 1, 0, bucket)
        return sum(max(lengths[r] for r in rows) - min(lengths[r] for r in rows) for rows in batches)

    assert spread(32) < spread(1) / 5


class Killed(Exception):  # noqa: N818
    pass


def interrupted(hf: Any, training: Training, checkpoint: Path, at: int) -> None:
    def on_step(step: int, steps: int, loss: float) -> None:
        if step == at:
            raise Killed

    with pytest.raises(Killed):
        fit(hf, EXAMPLES, training, seed=5, pad=1, checkpoint=checkpoint, on_step=on_step)


@pytest.mark.parametrize(
    ("optimizer", "options"),
    [("AdamW", {}), ("SGD", {"momentum": 0.9}), ("NAdam", {})],
)
def test_a_resumed_run_ends_in_the_same_bits(
    tiny_gpt2: Any, tmp_path: Path, optimizer: str, options: dict[str, Any]
) -> None:
    """GPT-2 trains with dropout: its random stream has to survive, too."""
    training = config(
        optimizer=optimizer, options=options, learning_rate=1e-2, schedule="cosine", warmup=3, batch_size=4, epochs=3,
        checkpoint_seconds=1e-9,
    )  # fmt: skip
    straight = copy.deepcopy(tiny_gpt2.hf)
    whole = fit(straight, EXAMPLES, training, seed=5, pad=1)
    interrupted(copy.deepcopy(tiny_gpt2.hf), training, tmp_path / "check", at=5)
    interrupted(copy.deepcopy(tiny_gpt2.hf), training, tmp_path / "check", at=8)
    resumed = copy.deepcopy(tiny_gpt2.hf)
    seen: list[int] = []
    rest = fit(
        resumed, EXAMPLES, training, seed=5, pad=1, checkpoint=tmp_path / "check",
        on_step=lambda step, steps, loss: seen.append(step),
    )  # fmt: skip
    assert seen == [8, 9]  # the step that was killed is done again
    assert identical(straight.state_dict(), resumed.state_dict())
    assert (rest.curve, rest.steps, rest.tokens, rest.labelled_tokens) == (
        whole.curve, whole.steps, whole.tokens, whole.labelled_tokens,
    )  # fmt: skip


@pytest.mark.parametrize("when", ["between the renames", "while writing"])
def test_a_save_that_was_killed_leaves_the_checkpoint_before_it(tiny_llama: Any, tmp_path: Path, when: str) -> None:
    training, check = config(batch_size=3, checkpoint_seconds=1e-9), tmp_path / "check"
    interrupted(copy.deepcopy(tiny_llama.hf), training, check, at=3)
    if when == "between the renames":
        check.rename(tmp_path / "check.old")
        (tmp_path / "check.new").mkdir()
    else:
        (tmp_path / "check.new").mkdir()
        (tmp_path / "check.new" / "weights.safetensors").write_bytes(b"half")
    resumed = trained(tiny_llama, training, checkpoint=check)
    assert identical(resumed, trained(tiny_llama, training))


# -- schedules ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("schedule", "peer"), [("linear", get_linear_schedule_with_warmup), ("cosine", get_cosine_schedule_with_warmup)]
)
def test_after_warm_up_the_schedule_is_that_of_transformers(schedule: Any, peer: Any) -> None:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = peer(optimizer, num_warmup_steps=4, num_training_steps=20)
    rates = []
    for _ in range(20):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    assert [rate_at(step, 20, schedule, 4) for step in range(4, 20)] == pytest.approx(rates[4:])


def test_warm_up_rises_in_equal_steps_from_above_zero() -> None:
    assert [rate_at(step, 20, "constant", 4) for step in range(6)] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1, 1])
    assert rate_at(1, 20, "constant", 0.2) == rate_at(1, 20, "constant", 4)  # a share of the steps


@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine", "hold-linear"])
@pytest.mark.parametrize("total", [1, 2, 50])
def test_no_step_is_without_effect_and_none_is_above_the_rate(schedule: Any, total: int) -> None:
    rates = [rate_at(step, total, schedule, 0.0) for step in range(total)]
    assert all(0 < rate <= 1 for rate in rates)
    assert rates[0] == 1
    assert rates == sorted(rates, reverse=True)


def test_the_schedule_moves_the_weights_as_it_says(tiny_llama: Any) -> None:
    """Two steps, linear: the second at half the rate, by hand."""
    training = config(batch_size=6, schedule="linear")
    half = copy.deepcopy(tiny_llama)
    plan = plan_batches([len(e.ids) for e in EXAMPLES], 6, 1, 5)
    for rows, rate in zip(plan, (0.1, 0.05), strict=True):
        fit(half.hf, [EXAMPLES[row] for row in rows], config(batch_size=6, learning_rate=rate), seed=0, pad=1)
    assert apart(trained(tiny_llama, training), half.hf.state_dict()) < 1e-5


# -- what it reports ------------------------------------------------------------------------------


def test_it_counts_steps_and_tokens_and_reports_the_loss_before_each_step(tiny_llama: Any) -> None:
    seen: list[tuple[int, int, float]] = []
    hf = copy.deepcopy(tiny_llama.hf)
    done: Fit = fit(hf, EXAMPLES, config(batch_size=12, epochs=2), seed=0, pad=1, on_step=lambda *a: seen.append(a))
    assert done.steps == 2
    assert done.tokens == 2 * sum(len(example.ids) for example in EXAMPLES)
    assert done.labelled_tokens == 2 * sum(len(example.completion) for example in EXAMPLES)
    nll = completion_nll(tiny_llama.hf, EXAMPLES, 1)
    sizes = [len(example.completion) for example in EXAMPLES]
    first = sum(n * size for n, size in zip(nll, sizes, strict=True)) / sum(sizes)
    assert seen[0][:2] == (1, 2)
    assert seen[0][2] == pytest.approx(first, rel=1e-5)
    assert done.curve[0][1] == pytest.approx(first, abs=1e-5)
    assert not hf.training


@given(st.lists(st.floats(0, 10), min_size=1, max_size=300))
def test_a_thinned_curve_keeps_its_ends_and_its_mean(losses: list[float]) -> None:
    curve = [(step + 1, loss) for step, loss in enumerate(losses)]
    thinned = thin(curve, points=7)
    assert len(thinned) == min(7, len(curve))
    assert thinned[-1][0] == len(curve)
    ends = [0, *(step for step, _ in thinned)]
    total = sum(loss * (b - a) for (_, loss), a, b in zip(thinned, ends, ends[1:], strict=False))
    assert total == pytest.approx(sum(losses), abs=1e-3)
    assert thin([]) == []


# -- precision and memory -------------------------------------------------------------------------


def test_bf16_and_then_fp32_in_one_process_leave_the_model_as_it_was_wrapped(tiny_llama: Any) -> None:
    hf = copy.deepcopy(tiny_llama.hf)
    straight = trained(tiny_llama, config())
    fit(hf, EXAMPLES, config(precision="bf16"), seed=5, pad=1)
    assert {parameter.dtype for parameter in hf.parameters()} == {torch.float32}
    assert 1e-6 < apart(hf.state_dict(), straight) < 0.1
    assert "forward" not in vars(hf)  # no autocast stays around later measurements
    assert identical(trained(tiny_llama, config()), straight)


def test_gradient_checkpointing_gives_the_same_weights_and_leaves_no_hook(tiny_llama: Any) -> None:
    hf = copy.deepcopy(tiny_llama.hf)
    fit(hf, EXAMPLES, config(gradient_checkpointing=True), seed=5, pad=1)
    assert apart(hf.state_dict(), trained(tiny_llama, config())) < 1e-6
    assert hook_count(hf) == 0
    assert not hf.is_gradient_checkpointing


def test_gradient_checkpointing_trains_lora_as_well(fresh: Any) -> None:
    plain, checked = trainable(copy.deepcopy(fresh.hf), LORA, 0), trainable(fresh.hf, LORA, 0)
    fit(plain, EXAMPLES, config(), seed=5, pad=1)
    fit(checked, EXAMPLES, config(gradient_checkpointing=True), seed=5, pad=1)
    assert apart(plain.state_dict(), checked.state_dict()) < 1e-6
    assert hook_count(checked) == 0


# -- refusals -------------------------------------------------------------------------------------


def test_an_optimiser_that_torch_has_not_is_refused_with_those_it_has(fresh: Any) -> None:
    with pytest.raises(ConfigError, match=r"unknown optimiser(.|\n)*got: Adamm\n  allowed: (.|\n)*AdamW, (.|\n)*SGD"):
        fit(fresh.hf, EXAMPLES, config(optimizer="Adamm"), seed=0, pad=1)


@pytest.mark.parametrize(
    ("optimizer", "options"), [("SGD", {"momentun": 0.9}), ("AdamW", {"momentum": 0.9}), ("SGD", {"momentum": -1})]
)
def test_an_option_that_the_optimiser_refuses_is_never_dropped(
    fresh: Any, optimizer: str, options: dict[str, Any]
) -> None:
    with pytest.raises(ConfigError, match=rf"torch.optim.{optimizer} refuses these options: (.|\n)*momentu"):
        fit(fresh.hf, EXAMPLES, config(optimizer=optimizer, options=options), seed=0, pad=1)


def test_muon_trains_matrices_and_refuses_biases(fresh: Any) -> None:
    with pytest.raises(ConfigError, match=r"torch.optim.Muon refuses these (.|\n)*2D"):
        fit(fresh.hf, EXAMPLES, config(optimizer="Muon"), seed=0, pad=1)
    hf = trainable(fresh.hf, LORA, 0)
    before = sum(completion_nll(hf, EXAMPLES, 1))
    fit(hf, EXAMPLES, config(optimizer="Muon", learning_rate=0.01, epochs=10), seed=0, pad=1)
    assert sum(completion_nll(hf, EXAMPLES, 1)) < before


@pytest.mark.parametrize("optimizer", ["LBFGS", "SparseAdam"])
def test_optimisers_that_need_another_loop_are_not_offered(fresh: Any, optimizer: str) -> None:
    with pytest.raises(ConfigError, match=rf"unknown optimiser(.|\n)*got: {optimizer}"):
        fit(fresh.hf, EXAMPLES, config(optimizer=optimizer), seed=0, pad=1)


def test_a_loss_that_is_not_finite_stops_the_run(fresh: Any) -> None:
    with pytest.raises(RunError, match=r"the training loss is (nan|inf) at step \d+ of 40(.|\n)*learning_rate"):
        fit(fresh.hf, EXAMPLES, config(learning_rate=1e30, epochs=40), seed=0, pad=1)


# -- clipping rows --------------------------------------------------------------------------------


def row_gradients(model: Any) -> list[dict[str, torch.Tensor]]:
    """Each row's own gradient of its share of the batch loss times the number of rows, by transformers' loss."""
    labels, found = sum(len(example.completion) for example in EXAMPLES), []
    for example in EXAMPLES:
        hf = copy.deepcopy(model.hf)
        marked = torch.tensor([[-100] * example.prompt + list(example.completion)])
        loss = hf(input_ids=torch.tensor([example.ids]), labels=marked).loss
        (loss * len(example.completion) / labels * len(EXAMPLES)).backward()
        found.append({name: p.grad for name, p in hf.named_parameters()})
    return found


def test_rows_are_clipped_before_they_are_averaged(tiny_llama: Any) -> None:
    gradients = row_gradients(tiny_llama)
    norms = [math.sqrt(sum(float(g.square().sum()) for g in row.values())) for row in gradients]
    limit = sorted(norms)[len(norms) // 2]  # half of the rows are clipped
    moved = trained(tiny_llama, config(batch_size=12, max_row_norm=limit))
    for name, before in tiny_llama.hf.named_parameters():
        clipped = [row[name] * min(1.0, limit / norm) for row, norm in zip(gradients, norms, strict=True)]
        expected = before.detach() - 0.1 * sum(clipped) / len(clipped)
        torch.testing.assert_close(moved[name], expected, atol=1e-5, rtol=1e-4)


def test_a_row_norm_that_no_row_reaches_changes_nothing(tiny_llama: Any) -> None:
    plain = trained(tiny_llama, config(batch_size=5))
    assert apart(trained(tiny_llama, config(batch_size=5, max_row_norm=1e9)), plain) < 1e-5


def test_a_scout_leaves_the_moments_that_preconditioned_sgd_takes_up(tiny_llama: Any, tmp_path: Path) -> None:
    moments = tmp_path / "moments.safetensors"
    scout = config(optimizer="AdamW", learning_rate=1e-3)
    fit(copy.deepcopy(tiny_llama.hf), EXAMPLES, scout, seed=5, pad=1, second_moments=moments)
    after = config(
        optimizer="PreconditionedSGD", options={"second_moments": str(moments)}, learning_rate=1e-4, epochs=4
    )
    hf = copy.deepcopy(tiny_llama.hf)
    before = sum(completion_nll(hf, EXAMPLES, 1))
    fit(hf, EXAMPLES, after, seed=5, pad=1)
    assert sum(completion_nll(hf, EXAMPLES, 1)) < before


def test_a_model_is_trained_where_it_is_whatever_ran_in_this_process_before(tiny_llama: Any) -> None:
    from accelerate.state import AcceleratorState, PartialState

    expected = trained(tiny_llama, config())
    AcceleratorState._reset_state(reset_partial_state=True)
    try:
        PartialState(cpu=True).device = torch.device("meta")  # as a first fit on another device leaves it
        assert identical(trained(tiny_llama, config()), expected)
    finally:
        AcceleratorState._reset_state(reset_partial_state=True)
