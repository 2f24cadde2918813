"""``python -m benchmarks.architectures``: what undertone does on each architecture, held against ``transformers`` itself.

A tiny random model of each kind (``tiny_models``) is saved as a folder, loaded by name, and checked:

=========  ==========================================================================================================
load       the folder loads through the one door, every prompt fits its vocabulary
sample     greedy completions of a padded batch with repeated prompts, whose rows end at different times, are those of
           ``generate``, prompt by prompt and without padding
rows       at temperature 1 each row is the same whatever the batch size and order
scores     losses of completions and probabilities of answers in padded batches are those of plain forward passes
steering   the stream read after layer n is ``hidden_states[n + 1]``; a vector added after layer n moves it by that vector
           and no earlier one; steered greedy completions are those of ``generate`` with the same vector added
lora …     a LoRA, a bias-only and a fully trained student, trained for two steps, saved and loaded again give the same bits
=========  ==========================================================================================================

A cell is ``yes``, ``refused`` (by an error of undertone, which is listed with its words) or ``no`` with what was seen.
``--write FILE`` writes the table as a page; names of architectures restrict it.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any, Final

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TQDM_DISABLE", "1")

import torch

from benchmarks.tiny_models import ARCHITECTURES, save_model
from undertone.errors import ModelWarning, UndertoneError
from undertone.models.batches import Example
from undertone.models.layers import decoder_layers, edit_residuals, read_residuals
from undertone.models.loading import Model, load
from undertone.models.sampling import sample
from undertone.models.scoring import answer_logprobs, completion_nll
from undertone.models.students import BiasOnly, Full, Lora, save_student, student_name, trainable
from undertone.training import Training, fit

NEW: Final = 10
"""Tokens a completion."""
CLOSE: Final = 2e-3
"""Nats (and, of streams, shares of their size) that rounding may move; a fault moves tenths."""


class Wrong(Exception):  # noqa: N818  (what was seen, not an error of the program)
    """A check's finding: what differs, and by how much."""


@dataclass
class Outcome:
    """What became of an architecture: check -> ``yes``, ``refused`` or ``no``, and what was seen where it is not yes."""

    kind: str
    cells: dict[str, str] = field(default_factory=dict)
    notes: dict[str, str] = field(default_factory=dict)


def prompts_of(model: Model) -> list[tuple[int, ...]]:
    """Six token rows of three lengths, two of them twice."""
    vocabulary = model.hf.get_input_embeddings().weight.shape[0]
    generator = torch.Generator().manual_seed(0)
    own = [torch.randint(10, vocabulary, (size,), generator=generator).tolist() for size in (5, 9, 9, 14)]
    return [tuple(own[at]) for at in (0, 1, 1, 2, 3, 3)]


def check_load(model: Model, _folder: Path) -> None:
    """Loads, in evaluation mode, with prompts inside the vocabulary."""
    ids = model.prompt([{"role": "user", "content": "name one tree."}])
    if max(ids) >= model.hf.get_input_embeddings().weight.shape[0]:
        raise Wrong("its tokenizer gives ids that it has no embedding for")


@torch.inference_mode()
def greedy(hf: Any, prompt: Sequence[int], **options: Any) -> list[int]:
    """The tokens that ``transformers`` generates after one prompt, alone and without padding."""
    ids = torch.tensor([list(prompt)])
    out = hf.generate(
        ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=NEW, pad_token_id=1,
        **{"eos_token_id": None, **options},
    )  # fmt: skip
    found: list[int] = out[0, len(prompt) :].tolist()
    return found


def ours(model: Model, prompts: Sequence[Sequence[int]], stop: Sequence[int], **options: Any) -> list[list[int]]:
    """The same by undertone's sampler, all prompts in a batch."""
    seeds = range(len(prompts))
    options = {"temperature": 0, **options}
    return sample(model.hf, prompts, list(seeds), max_new_tokens=NEW, stop=stop, pad=model.pad, **options)


def up_to(stop: Sequence[int], row: list[int]) -> list[int]:
    """A completion up to and with its first stop token."""
    ends = [at for at, token in enumerate(row) if token in stop]
    return row[: ends[0] + 1] if ends else row


def check_sample(model: Model, _folder: Path) -> None:
    """Greedy completions are those of ``generate``; a stop token ends two thirds of the rows early."""
    prompts = prompts_of(model)
    wanted = [greedy(model.hf, prompt) for prompt in prompts]
    same_rows("without stops", ours(model, prompts, []), wanted)
    stop = [wanted[0][1], wanted[1][3]]
    same_rows("with stops", ours(model, prompts, stop), [up_to(stop, row) for row in wanted])


def same_rows(where: str, got: list[list[int]], wanted: list[list[int]]) -> None:
    """Refuse completions that differ."""
    differ = sum(a != b for a, b in zip(got, wanted, strict=True))
    if differ:
        raise Wrong(f"{where}: {differ} of {len(got)} completions differ from transformers'")


def check_rows(model: Model, _folder: Path) -> None:
    """A row's sample is the same in batches of 6, 4 and 1, and in the reverse order."""
    prompts, seeds = prompts_of(model), list(range(6))

    def sampled(order: Sequence[int], batch_size: int) -> list[list[int]]:
        rows = sample(
            model.hf, [prompts[at] for at in order], [seeds[at] for at in order], max_new_tokens=NEW, stop=[5], pad=model.pad,
            batch_size=batch_size,
        )  # fmt: skip
        return [row for _, row in sorted(zip(order, rows, strict=True))]

    whole = sampled(seeds, 6)
    for other in (sampled(seeds, 4), sampled(seeds, 1), sampled(seeds[::-1], 6)):
        same_rows("in other batches", other, whole)


@torch.inference_mode()
def plain_logprobs(model: Model, row: Sequence[int], start: int) -> torch.Tensor:
    """Log-probabilities of a row's tokens from ``start`` on, by a forward pass of that row alone."""
    logits = model.hf(input_ids=torch.tensor([list(row)]), use_cache=False).logits[0].float()
    scores = torch.log_softmax(logits, -1)[start - 1 : -1]
    return scores.gather(-1, torch.tensor(list(row[start:])).unsqueeze(-1)).squeeze(-1).double()


def check_scores(model: Model, _folder: Path) -> None:
    """Losses and answers' probabilities equal those of plain forward passes."""
    prompts = prompts_of(model)
    examples = [Example((*prompt, *prompts[-1][: 2 + at]), len(prompt)) for at, prompt in enumerate(prompts)]
    got = torch.tensor(completion_nll(model.hf, examples, pad=model.pad))
    wanted = torch.stack([-plain_logprobs(model, one.ids, one.prompt).mean() for one in examples])
    close("losses", got, wanted)
    answers = [(11,), (12, 13), (12, 14, 15), (16, 17, 18)]
    got = torch.from_numpy(answer_logprobs(model.hf, prompts, answers, pad=model.pad))
    wanted = torch.stack(
        [torch.stack([plain_logprobs(model, (*p, *a), len(p)).sum() for a in answers]) for p in prompts]
    )
    close("answers", got, wanted)


def close(what: str, got: torch.Tensor, wanted: torch.Tensor) -> None:
    """Refuse numbers that differ by more than rounding."""
    off = float((got - wanted).abs().max())
    if not off <= CLOSE:
        raise Wrong(f"{what} differ from a plain forward pass by up to {off:.2g} nats")


@torch.inference_mode()
def check_steering(model: Model, _folder: Path) -> None:
    """The stream after each layer is ``hidden_states[n + 1]``, is moved by the vector there, and speech follows."""
    prompts = prompts_of(model)
    ids = torch.tensor([list(prompts[-1])])
    layers = range(len(decoder_layers(model.hf)))
    with read_residuals(model.hf, list(layers)) as read:
        plain = model.hf(input_ids=ids, use_cache=False, output_hidden_states=True).hidden_states
    # The last entry has passed the final norm, and has no other name.
    if len(plain) != len(layers) + 1:
        raise Wrong(f"{len(layers)} layers were found, and transformers shows {len(plain)} hidden states")
    for layer in layers[:-1]:
        if not torch.equal(read[layer], plain[layer + 1]):
            raise Wrong(f"the stream after layer {layer} is not hidden_states[{layer + 1}]")
    shift = torch.randn(plain[0].shape[-1], generator=torch.Generator().manual_seed(1)) * plain[3].std()

    def edit(stream: torch.Tensor) -> torch.Tensor:
        moved: torch.Tensor = stream + shift.to(stream.dtype)
        return moved

    with shifted(decoder_layers(model.hf)[2], shift):
        wanted = model.hf(input_ids=ids, use_cache=False, output_hidden_states=True)
        spoken = [greedy(model.hf, prompt) for prompt in prompts]
    moved = wanted.hidden_states
    if not torch.equal(moved[2], plain[2]) or not torch.allclose(moved[3] - plain[3], shift, atol=1e-4):
        raise Wrong("a vector added to what the layer returns is not what hidden_states[3] shows")
    with edit_residuals(model.hf, {2: edit}):
        got = model.hf(input_ids=ids, use_cache=False).logits
        rows = ours(model, prompts, [])
    if not torch.equal(got, wanted.logits):
        raise Wrong("a vector added after layer 2 does not give the logits of a model whose layer 2 returns it as well")
    same_rows("steered", rows, spoken)


@contextmanager
def shifted(layer: torch.nn.Module, shift: torch.Tensor) -> Iterator[None]:
    """A layer that returns its stream plus a vector: steering without a hook."""
    own = layer.forward

    def forward(*args: Any, **kwargs: Any) -> Any:
        out = own(*args, **kwargs)
        return (out[0] + shift, *out[1:]) if isinstance(out, tuple) else out + shift

    layer.forward = forward
    try:
        yield
    finally:
        del layer.forward


def check_student(student: BiasOnly | Lora | Full, model: Model, folder: Path) -> None:
    """Two steps move the logits; saved and loaded again they are the same bits."""
    prompts = prompts_of(model)
    base = load(str(folder), device="cpu")
    plain = logits(base, prompts[-1])
    hf = trainable(base.hf, student, seed=0)
    config = Training(learning_rate=1e-2, epochs=2, batch_size=6)
    fit(hf, [Example((*p, 11, 12), len(p)) for p in prompts], config, seed=0, pad=model.pad)
    trained = Model(base.name, hf.eval(), base.tokenizer, base.identity, base.form)
    with tempfile.TemporaryDirectory() as saved:
        save_student(hf, model.tokenizer, student, Path(saved))
        again = load(student_name(str(folder), student, Path(saved)), device="cpu")
        own, reloaded = logits(trained, prompts[-1]), logits(again, prompts[-1])
    if torch.equal(own, plain):
        raise Wrong("two training steps moved nothing")
    if not torch.equal(own, reloaded):
        raise Wrong(f"loaded again its logits differ by up to {float((own - reloaded).abs().max()):.2g}")


@torch.inference_mode()
def logits(model: Model, prompt: Sequence[int]) -> torch.Tensor:
    """Of one row, at every position."""
    found: torch.Tensor = model.hf(input_ids=torch.tensor([list(prompt)]), use_cache=False).logits
    return found


CHECKS: Final[dict[str, Callable[[Model, Path], None]]] = {
    "load": check_load,
    "sample": check_sample,
    "rows": check_rows,
    "scores": check_scores,
    "steering": check_steering,
    "lora": lambda model, folder: check_student(Lora(rank=4), model, folder),
    "bias-only": lambda model, folder: check_student(BiasOnly(), model, folder),
    "full": lambda model, folder: check_student(Full(), model, folder),
}


def examine(kind: str, folder: Path, checks: Sequence[str] = tuple(CHECKS)) -> Outcome:
    """Every check on one architecture; ``folder`` is where its model is put."""
    outcome = Outcome(kind)
    save_model(kind, folder)
    try:
        model = load(str(folder), device="cpu")
    except UndertoneError as error:
        outcome.cells, outcome.notes = dict.fromkeys(checks, "refused"), {"load": in_a_line(error)}
        return outcome
    for name in checks:
        try:
            with warnings.catch_warnings(record=True, category=ModelWarning) as said:
                warnings.simplefilter("always", ModelWarning)
                CHECKS[name](model, folder)
            outcome.cells[name] = "yes"
            outcome.notes.update((name, str(one.message)) for one in said if one.category is ModelWarning)
        except UndertoneError as error:
            outcome.cells[name], outcome.notes[name] = "refused", in_a_line(error)
        except Wrong as seen:
            outcome.cells[name], outcome.notes[name] = "no", str(seen)
        except Exception as error:  # noqa: BLE001  (a crash is what this command looks for)
            outcome.cells[name], outcome.notes[name] = "no", f"{type(error).__name__}: {str(error)[:160]}"
    return outcome


def in_a_line(error: UndertoneError) -> str:
    """What was refused, without the folder's name."""
    return re.sub(r"\S*/(?=\w+ is a )", "", error.what)


def page(outcomes: Sequence[Outcome]) -> str:
    """The table and the reasons, as a page of the documentation."""
    versions = ", ".join(
        f"{name} {metadata.version(name).partition('+')[0]}" for name in ("torch", "transformers", "peft")
    )
    cells = "\n".join(f"| `{one.kind}` | " + " | ".join(one.cells[name] for name in CHECKS) + " |" for one in outcomes)
    reasons: dict[tuple[str, str], list[str]] = {}
    for one in outcomes:
        for name, note in one.notes.items():
            reasons.setdefault(
                (name, re.sub(r"\w+ is a \w+, which undertone|\w+For(CausalLM|Cond\w+)", "the model", note)), []
            ).append(one.kind)
    listed = "\n".join(
        f"- **{name}**: {note}: {', '.join(f'`{kind}`' for kind in kinds)}"
        for (name, note), kinds in sorted(reasons.items())
    )
    return PAGE.format(versions=versions, count=len(outcomes), head=" | ".join(CHECKS), line="---|" * len(CHECKS), cells=cells,
                       listed=listed)  # fmt: skip


PAGE: Final = """# Architectures

What was checked on each architecture, with tiny random models that are built from configs alone ({versions}, CPU, float32):

```text
python -m benchmarks.architectures --write docs/architectures.md      # minutes
python -m benchmarks.architectures llama qwen3_5                      # some of them
```

| check | what must hold |
|---|---|
| load | the folder loads by its name, and prompts fit its vocabulary |
| sample | greedy completions of a padded batch with repeats and early ends are those of `generate`, prompt by prompt |
| rows | at temperature 1 a row is the same in batches of 6, 4 and 1 and in the reverse order |
| scores | losses of completions and probabilities of answers are those of plain forward passes of single rows |
| steering | the stream after layer *n* is `hidden_states[n + 1]`; a vector added there acts as one that the layer returns |
| lora, bias-only, full | a student trained for two steps moves, and gives the same bits when it is saved and loaded again |

`refused`: undertone says so before anything is computed; the reasons are below the table. `gemma3` is loaded with a vision
tower as deep as its language model: layers, adapters and biases are the language model's. `qwen3_5` and `qwen3_5_moe`
are loaded as their text models, the way `AutoModelForCausalLM` does. Random models of {count} kinds show that the code fits an
architecture, not that any published checkpoint is good; `undertone doctor MODEL` checks the model at hand.

| architecture | {head} |
|---|{line}
{cells}

## What is refused or warned of, and why

{listed}

Wrappers that transformers offers as no causal LM at all (Llava, Qwen2-VL, Mistral 3 …) are refused when they are loaded:
use their text model.

## What LoRA is put on

`all-linear` means every linear module of the language model but the head. Left out: vision and audio towers and their
projections; routers of mixtures of experts; output projections of Mamba mixers, which fused kernels read past the adapter.
Experts that are held in one tensor (all in transformers 5) are no modules; PEFT adapts those of the architectures that it
knows (Mixtral, Qwen-MoE …). Where it does not, undertone warns and names them, as in the list above.

Layers that are recurrent (Mamba, gated delta nets, short convolutions) begin anew in transformers when they are given several
tokens after a cache; undertone gives them one at a time, so that answers of several tokens cost as many passes there.
"""


def main() -> None:
    """Check the architectures named, all of them by default."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kinds", nargs="*", metavar="ARCHITECTURE")
    parser.add_argument("--write", type=Path, metavar="FILE", help="write the table as a page")
    parser.add_argument("--checks", nargs="+", default=list(CHECKS), choices=list(CHECKS))
    chosen = parser.parse_args()
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    outcomes = []
    for kind in chosen.kinds or ARCHITECTURES:
        with tempfile.TemporaryDirectory() as folder:
            outcome = examine(kind, Path(folder) / kind, chosen.checks)
        outcomes.append(outcome)
        print(f"{kind:20}", *(f"{name} {cell}" for name, cell in outcome.cells.items()), sep="  ", flush=True)
        for name, note in outcome.notes.items():
            print(f"    {name}: {note}", flush=True)
    if chosen.write:
        chosen.write.write_text(page(outcomes), encoding="utf-8")
    if any("no" in outcome.cells.values() for outcome in outcomes):
        sys.exit(1)


if __name__ == "__main__":
    main()
