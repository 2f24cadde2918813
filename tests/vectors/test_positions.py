"""Positions and operators: cached generation, scoring, padding and hand-written hooks must all mean the same tokens."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from typing import Any, get_args

import pytest
import torch

from undertone.errors import ConfigError, DataError, ModelError
from undertone.models.batches import Example, pad_left
from undertone.models.layers import Positions, edit_residuals, hook_count, read_residuals, reading
from undertone.models.sampling import sample
from undertone.models.scoring import answer_logprobs, completion_nll, labelled_logits
from undertone.vectors import SteeringVector, ablate, patch, steer

ROWS = [
    Example((3, 17, 44, 5, 60, 70, 81, 82), 5),
    Example((3, 17, 44, 9), 1),  # a prompt of one token: no shape tells it from a decoding step
    Example((9, 8, 7, 6, 40, 41, 42), 4),
]
EVERY: list[Positions] = list(get_args(Positions))


def direction(seed: int = 0, width: int = 32) -> torch.Tensor:
    return torch.randn(width, generator=torch.Generator().manual_seed(seed))


VECTOR = SteeringVector({0: direction(0), 1: direction(1)}, {})


@pytest.fixture(scope="module")
def student(tiny_llama: Any) -> Any:
    """The same model with moved weights."""
    hf = copy.deepcopy(tiny_llama.hf)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in hf.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.05)
    return replace(tiny_llama, hf=hf)


Operator = Callable[[Any, Any, Positions], AbstractContextManager[None]]
OPERATORS: dict[str, Operator] = {
    "add": lambda model, _, positions: steer(model, VECTOR, 1.5, positions),
    "ablate": lambda model, _, positions: ablate(model, VECTOR, 1.0, positions),
    "replace": lambda model, base, positions: patch(model, VECTOR, base, positions),
}


@contextmanager
def by_hand(hf: Any, base: Any, operator: str, where: torch.Tensor, ids: torch.Tensor) -> Iterator[None]:
    """The formulas of 2606.00995 written out, for one row of tokens without padding."""
    with torch.no_grad(), read_residuals(base, [0, 1]) as plain:
        base(input_ids=ids)

    def hook(layer: int) -> Any:
        v = VECTOR.directions[layer]
        unit = v / v.norm()

        def run(_module: Any, _inputs: Any, output: Any) -> Any:
            h = output[0] if isinstance(output, tuple) else output
            new = h.clone()
            for at in where.nonzero().flatten().tolist():
                one = h[0, at]
                if operator == "add":
                    new[0, at] = one + 1.5 * v
                elif operator == "ablate":
                    new[0, at] = one - (one @ unit) * unit
                else:
                    new[0, at] = one - (one @ unit) * unit + (plain[layer][0, at] @ unit) * unit
            return (new, *output[1:]) if isinstance(output, tuple) else new

        return run

    handles = [hf.model.layers[layer].register_forward_hook(hook(layer)) for layer in (0, 1)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def meant(example: Example, positions: Positions) -> torch.Tensor:
    column = torch.arange(len(example.ids))
    return {
        "all": column >= 0,
        "prompt": column < example.prompt,
        "last": column == example.prompt - 1,
        "response": column >= example.prompt,
    }[positions]


def expected(student: Any, base: Any, operator: str, positions: Positions) -> torch.Tensor:
    found = []
    for example in ROWS:
        ids = torch.tensor([example.ids])
        with torch.no_grad(), by_hand(student.hf, base.hf, operator, meant(example, positions), ids):
            found.append(student.hf(input_ids=ids).logits[0, example.prompt - 1 : -1])
    return torch.cat(found)


def decoded(student: Any) -> torch.Tensor:
    """Logits of the completions' tokens, prompts batched with padding, each token fed back through the cache."""
    prompts = pad_left([example.ids[: example.prompt] for example in ROWS], student.pad, student.device)
    steps = max(len(example.completion) for example in ROWS)
    mask = prompts.mask
    assert mask is not None
    with torch.no_grad(), reading(0):
        out = student.hf(**prompts.inputs(), use_cache=True)
    seen = [out.logits[:, -1]]
    for step in range(steps - 1):
        fed = torch.tensor([[example.completion[min(step, len(example.completion) - 1)]] for example in ROWS])
        mask = torch.cat([mask, mask.new_ones(len(mask), 1)], 1)
        with torch.no_grad():
            out = student.hf(
                input_ids=fed, attention_mask=mask, position_ids=prompts.positions[:, -1:] + 1 + step,
                past_key_values=out.past_key_values, use_cache=True,
            )  # fmt: skip
        seen.append(out.logits[:, -1])
    return torch.cat([torch.stack([step[row] for step in seen[: len(ROWS[row].completion)]]) for row in range(3)])


@pytest.mark.parametrize("positions", EVERY)
@pytest.mark.parametrize("operator", OPERATORS)
def test_scoring_and_cached_decoding_of_padded_rows_mean_what_the_formula_does_to_each_row_alone(
    tiny_llama: Any, student: Any, operator: str, positions: Positions
) -> None:
    truth = expected(student, tiny_llama, operator, positions)
    with OPERATORS[operator](student, tiny_llama, positions):
        with torch.no_grad():
            scored = labelled_logits(student.hf, ROWS, student.pad)
        stepped = decoded(student)
    torch.testing.assert_close(scored, truth, atol=2e-5, rtol=1e-4)
    torch.testing.assert_close(stepped, truth, atol=2e-5, rtol=1e-4)
    assert hook_count(student.hf) == hook_count(tiny_llama.hf) == 0


@pytest.mark.parametrize("operator", OPERATORS)
def test_the_four_positions_differ_from_each_other_and_from_nothing(
    tiny_llama: Any, student: Any, operator: str
) -> None:
    with torch.no_grad():
        seen = [labelled_logits(student.hf, ROWS, student.pad)]
        for positions in EVERY:
            with OPERATORS[operator](student, tiny_llama, positions):
                seen.append(labelled_logits(student.hf, ROWS, student.pad))
    for at, one in enumerate(seen):
        assert not any(torch.allclose(one, other, atol=1e-3) for other in seen[at + 1 :])


@pytest.mark.parametrize("positions", EVERY)
def test_every_family_tells_the_positions_alike_in_scoring_and_decoding(tiny: Any, positions: Positions) -> None:
    with steer(tiny, VECTOR, 1.5, positions):
        with torch.no_grad():
            scored = labelled_logits(tiny.hf, ROWS, tiny.pad)
        stepped = decoded(tiny)
    torch.testing.assert_close(stepped, scored, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("operator", OPERATORS)
def test_our_sampler_and_the_generate_of_transformers_agree_at_positions(
    tiny_llama: Any, student: Any, operator: str
) -> None:
    prompt = (9, 8, 7, 6, 40)
    for positions in EVERY:
        with OPERATORS[operator](student, tiny_llama, positions):
            ours = sample(
                student.hf, [prompt], [0], max_new_tokens=6, stop=[], pad=student.pad, temperature=0.0
            )  # fmt: skip
            theirs = student.hf.generate(
                input_ids=torch.tensor([prompt]), attention_mask=torch.ones(1, 5, dtype=torch.long),
                max_new_tokens=6, do_sample=False, eos_token_id=None, pad_token_id=1,
            )  # fmt: skip
        assert ours[0] == theirs[0, 5:].tolist()


def test_rows_that_share_a_prompt_or_finish_early_keep_their_base_beside_them(tiny_llama: Any, student: Any) -> None:
    """The sampler copies a shared prompt's cache to its rows and drops finished rows: the base's cache follows."""
    prompts = [(9, 8, 7, 6, 40)] * 5 + [(3, 17)] * 3 + [(5, 6, 7)]
    options: dict[str, Any] = {"max_new_tokens": 8, "stop": list(range(150)), "pad": student.pad}
    with patch(student, VECTOR, tiny_llama):
        together = sample(student.hf, prompts, list(range(9)), **options)
        alone = [sample(student.hf, [prompt], [seed], **options)[0] for seed, prompt in enumerate(prompts)]
    assert together == alone
    assert len({len(row) for row in together}) > 1, "rows must end at different times for the test to mean anything"


def test_answers_of_several_tokens_are_scored_alike_through_the_cache(tiny_llama: Any, student: Any) -> None:
    prompts, answers = [(9, 8, 7), (3, 17, 44, 5)], [(50,), (60, 61, 62)]
    for positions in EVERY:
        for operator in OPERATORS.values():
            with operator(student, tiny_llama, positions):
                found = answer_logprobs(student.hf, prompts, answers, student.pad)
                rows = [Example((*prompt, *answer), len(prompt)) for prompt in prompts for answer in answers]
                nll = completion_nll(student.hf, rows, student.pad)
            by_rows = [-value * len(row.completion) for value, row in zip(nll, rows, strict=True)]
            torch.testing.assert_close(
                torch.tensor(found).flatten(), torch.tensor(by_rows).double(), atol=1e-4, rtol=1e-4
            )


@pytest.mark.parametrize("positions", ["prompt", "last", "response"])
def test_a_bare_forward_does_not_say_where_its_prompt_ends_and_is_refused(
    tiny_llama: Any, positions: Positions
) -> None:
    ids = torch.tensor([[3, 4, 5]])
    with steer(tiny_llama, VECTOR, 1.0, positions):
        with pytest.raises(ModelError, match=r"does not say where its prompts end(.|\n)*reading"):
            tiny_llama.hf(input_ids=ids)
        with pytest.raises(ModelError, match=r"another batch(.|\n)*2 rows(.|\n)*1 rows"), reading([1, 1]):
            tiny_llama.hf(input_ids=ids)
        with reading([1]):
            tiny_llama.hf(input_ids=ids)
    with steer(tiny_llama, VECTOR, 1.0, "all"):
        tiny_llama.hf(input_ids=ids)


def test_reading_is_over_when_its_layer_is_left(tiny_llama: Any) -> None:
    with pytest.raises(ZeroDivisionError), reading(0):
        _ = 1 / 0
    with steer(tiny_llama, VECTOR, 1.0, "last"), pytest.raises(ModelError, match="does not say"):
        tiny_llama.hf(input_ids=torch.tensor([[3, 4]]))


# -- operators -------------------------------------------------------------------------------------


def stream_of(model: Any, layer: int) -> torch.Tensor:
    with torch.no_grad(), read_residuals(model.hf, [layer]) as seen:
        labelled_logits(model.hf, ROWS, model.pad)
    return seen[layer]


def test_ablation_leaves_no_component_and_twice_the_amount_mirrors_it(tiny_llama: Any) -> None:
    vector = SteeringVector({2: 7.0 * direction(3)}, {})
    unit = vector.directions[2] / vector.directions[2].norm()
    before = stream_of(tiny_llama, 2)
    with ablate(tiny_llama, vector):
        torch.testing.assert_close(stream_of(tiny_llama, 2) @ unit, torch.zeros(3, 8), atol=1e-5, rtol=0)
    with ablate(tiny_llama, vector, amount=2.0):
        after = stream_of(tiny_llama, 2)
    torch.testing.assert_close(after @ unit, -(before @ unit), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(after + (before @ unit).unsqueeze(-1) * 2 * unit, before, atol=1e-5, rtol=1e-5)


def test_ablation_at_every_layer_tiles_a_vector_of_one_layer(tiny_llama: Any) -> None:
    one = SteeringVector({1: direction(3)}, {})
    unit = one.directions[1] / one.directions[1].norm()
    with ablate(tiny_llama, one, layers=[0, 1, 2]):
        for layer in range(3):
            assert float((stream_of(tiny_llama, layer) @ unit).abs().max()) < 1e-5
    with pytest.raises(ConfigError, match=r"no direction at these layers(.|\n)*2"), ablate(
        tiny_llama, VECTOR, layers=[2]
    ):  # fmt: skip
        pass


def test_replacing_from_an_equal_base_changes_nothing(tiny_llama: Any) -> None:
    twin = replace(tiny_llama, hf=copy.deepcopy(tiny_llama.hf))
    with torch.no_grad():
        before = labelled_logits(tiny_llama.hf, ROWS, 1)
        with patch(tiny_llama, VECTOR, twin):
            after = labelled_logits(tiny_llama.hf, ROWS, 1)
    torch.testing.assert_close(after, before, atol=1e-5, rtol=1e-5)
    assert hook_count(twin.hf) == 0


def test_a_cache_that_was_filled_outside_is_refused_when_replacing(tiny_llama: Any, student: Any) -> None:
    with torch.no_grad():
        cache = student.hf(input_ids=torch.tensor([[3, 4]]), use_cache=True).past_key_values
    with patch(student, VECTOR, tiny_llama), pytest.raises(ModelError, match="its base has not read"):
        student.hf(input_ids=torch.tensor([[5]]), past_key_values=cache)


def test_wrong_bases_positions_and_zero_directions_are_refused(
    tiny_llama: Any, tiny_folder: Callable[[str], Any]
) -> None:
    def enter(context: AbstractContextManager[None]) -> None:
        with context:
            pass

    with pytest.raises(ModelError, match="cannot be patched from itself"):
        enter(patch(tiny_llama, VECTOR, tiny_llama))
    hf = copy.deepcopy(tiny_llama.hf)
    hf.model.layers = hf.model.layers[:2]
    hf.config.num_hidden_layers = 2
    with pytest.raises(ModelError, match=r"another shape(.|\n)*\(32, 2\)(.|\n)*\(32, 3\)"):
        enter(patch(tiny_llama, VECTOR, replace(tiny_llama, hf=hf)))
    with pytest.raises(ConfigError, match=r"no such positions(.|\n)*all, prompt, last, response"):
        enter(steer(tiny_llama, VECTOR, 1.0, "everywhere"))  # type: ignore[arg-type]
    with pytest.raises(DataError, match=r"points nowhere(.|\n)*\[1\]"):
        enter(ablate(tiny_llama, SteeringVector({0: direction(), 1: torch.zeros(32)}, {})))
    with pytest.raises(ModelError, match="does not fit"):
        enter(ablate(tiny_llama, SteeringVector({0: torch.ones(7)}, {})))


@pytest.mark.parametrize("operator", OPERATORS)
def test_an_exception_inside_leaves_no_hook(tiny_llama: Any, student: Any, operator: str) -> None:
    for positions in EVERY:
        with pytest.raises(ZeroDivisionError), OPERATORS[operator](student, tiny_llama, positions):
            _ = 1 / 0
    assert hook_count(student.hf) == hook_count(tiny_llama.hf) == 0


def test_an_edit_that_fails_in_the_middle_of_a_pass_leaves_no_hook(tiny_llama: Any) -> None:
    def fails(_stream: torch.Tensor) -> torch.Tensor:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError), edit_residuals(tiny_llama.hf, {1: fails}, "prompt"):
        labelled_logits(tiny_llama.hf, ROWS, 1)
    assert hook_count(tiny_llama.hf) == 0
