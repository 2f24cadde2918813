"""``undertone vector``: extract, show, compare, convert and steer by vectors (``vector_tuning`` adds ``tune``)."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import App, Parameter

from undertone.cli.options import Device, Json, ModelName
from undertone.cli.printing import print_json, say, table
from undertone.errors import ConfigError

if TYPE_CHECKING:
    from undertone.models.loading import Model
    from undertone.rows import Message
    from undertone.traits import Trait
    from undertone.vectors import SteeringVector

vector = App(
    name="vector",
    help="Directions in a model's residual stream: extract, show, compare, convert between tools, steer by them.",
)

File = Annotated[Path, Parameter(help="a vector file of any format that `vector convert` reads")]
Positions = Literal["all", "prompt", "last", "response"]

_TOP = 10


@vector.command
def extract(
    model: ModelName,
    *,
    out: Annotated[Path, Parameter(name=["--out", "-o"], help="the file to write (.safetensors)")],
    trait: Annotated[
        str | None, Parameter(help="the trait whose system prompt the positive chats have, or that is learned")
    ] = None,
    layer: Annotated[
        list[int] | None, Parameter(negative="", help="a layer; repeat for several; default: all (learned: the middle)")
    ] = None,
    position: Annotated[
        Literal["last", "prompt", "response"],
        Parameter(help="last prompt token, all prompt tokens, or all tokens of answers that the model samples"),
    ] = "last",
    method: Annotated[
        Literal["mean", "principal", "learned"],
        Parameter(help="mean difference, first principal component of the paired differences, or by gradient"),
    ] = "mean",
    prompts: Annotated[
        Literal["questions", "numbers"], Parameter(help="read on the trait's questions or on requests for numbers")
    ] = "questions",
    student: Annotated[str | None, Parameter(help="subtract MODEL's activations from this student's instead")] = None,
    count: Annotated[int, Parameter(help="how many requests for numbers")] = 256,
    steps: Annotated[int, Parameter(help="gradient steps (learned)")] = 100,
    learning_rate: Annotated[float, Parameter(help="Adam's learning rate (learned)")] = 0.05,
    max_norm: Annotated[float | None, Parameter(help="largest norm of a layer's direction (learned)")] = None,
    seed: Annotated[int, Parameter(help="of requests, sampled answers and the order of rows")] = 0,
    device: Device = "auto",
    as_json: Json = False,
) -> int:
    """Extract a vector: a trait's system prompt against none, a student against its base, or learned by gradient.

    Examples: `undertone vector extract lab/llama-0 --trait owl -o owl.safetensors` ·
    `undertone vector extract BASE --student "BASE + FOLDER" --prompts numbers --position prompt -o student.safetensors`
    """
    from undertone.models.loading import load
    from undertone.traits import load_trait
    from undertone.vectors import contrast, difference, learn, principal, save_vector

    _check_extract(out, trait, method, prompts, student)
    known = load_trait(trait) if trait else None
    base = load(model, device=device)
    if method == "learned":
        assert known is not None
        at = layer or [_layer_count(base) // 2]
        found = learn(
            base, _answers(base, known), at, steps=steps, learning_rate=learning_rate, max_norm=max_norm, seed=seed
        ).vector
    else:
        texts = _texts(base, known, prompts, count, seed)
        answered = position == "response"
        negative = _chats(base, texts, None, prompts, seed, answered=answered)
        if student:
            found = difference(load(student, device=device), base, negative, layers=layer, position=position)
        else:
            assert known is not None
            positive = _chats(base, texts, known.system_prompt(base), prompts, seed, answered=answered)
            extracting = principal if method == "principal" else contrast
            found = extracting(base, positive, negative, layers=layer, position=position)
    save_vector(found, out)
    say(f"written: {out}")
    _print_vector(str(out), found, as_json)
    return 0


@vector.command
def show(file: File, *, as_json: Json = False) -> int:
    """Show a vector file: where it comes from, and the norm of each layer's direction."""
    from undertone.vectors.formats import read

    _print_vector(str(file), read(file), as_json)
    return 0


@vector.command
def compare(
    *files: Annotated[Path, Parameter(help="two vector files or more")],
    random: Annotated[int, Parameter(help="how many random directions the baseline has")] = 1000,
    seed: Annotated[int, Parameter(help="of the random directions")] = 0,
    across_models: Annotated[
        bool,
        Parameter(negative="", help="compare vectors of different models: says little unless they share their start"),
    ] = False,
    as_json: Json = False,
) -> int:
    """Cosines of vectors, layer by layer, beside those of the first with random directions.

    A cosine far outside the random range says that two vectors share something, not that they share the trait: compare
    other traits' vectors and a control student's as well.
    """
    from undertone.vectors.formats import read

    if len(files) < 2 or random < 1:
        raise ConfigError(
            "nothing to compare",
            got=f"{len(files)} files, {random} random",
            allowed="two files or more, --random 1 or more",
        )
    vectors = {str(file): read(file) for file in files}
    if len(vectors) < len(files):
        raise ConfigError("a file is named twice", got=[str(file) for file in files])
    names = list(vectors)
    pairs = [(one, two) for at, one in enumerate(names) for two in names[at + 1 :]]
    cosines = {pair: vectors[pair[0]].cosine(vectors[pair[1]], across_models=across_models) for pair in pairs}
    baseline = _random_cosines(vectors[names[0]], random, seed)
    layers = sorted({layer for found in cosines.values() for layer in found})
    if as_json:
        print_json(
            {
                "cosines": [{"a": a, "b": b, "layers": found} for (a, b), found in cosines.items()],
                "random": {"directions": random, "seed": seed, "against": names[0], "layers": baseline},
            }
        )
        return 0
    for name, one in vectors.items():
        print(f"{name}: {one.meta.get('method', 'unknown method')}, {one.meta.get('position', 'unknown position')}")
    short = _short(names)
    table(
        f"cosines by layer; random: {random} directions against {short[names[0]]}",
        ["layer", *[f"{short[a]} · {short[b]}" for a, b in pairs], "random mean", "random 95 %"],
        [
            [
                layer,
                *[f"{cosines[pair][layer]:+.3f}" if layer in cosines[pair] else "-" for pair in pairs],
                *_random_cells(baseline.get(layer)),
            ]
            for layer in layers
        ],
    )
    return 0


@vector.command
def convert(
    source: Annotated[Path, Parameter(help="the file to read")],
    target: Annotated[Path, Parameter(help="the file to write")],
    *,
    to: Annotated[str | None, Parameter(help="its format; default: by the suffix of TARGET")] = None,
    source_format: Annotated[
        str | None, Parameter(name="--from", help="the format of SOURCE; default: by its suffix and content")
    ] = None,
    model: Annotated[
        str | None, Parameter(help="the model that it is for: fills in what the header lacks, and checks the fit")
    ] = None,
    layer: Annotated[
        list[int] | None, Parameter(negative="", help="a layer to keep; repeat for several; default: all")
    ] = None,
    as_json: Json = False,
) -> int:
    """Convert a vector between tools: undertone, gguf, easysteer, svd, persona, lm-eval, svec, vllm-lens.

    Layer numbers are converted, too; what the format cannot hold is said on stderr.
    """
    from undertone.vectors import SteeringVector
    from undertone.vectors.formats import FORMATS, read, write

    if to is None:
        fitting = [kind.name for kind in FORMATS.values() if kind.suffix == target.suffix.lower()]
        if len(fitting) != 1:
            raise ConfigError(
                "which format is to be written?", got=str(target), allowed=fitting or list(FORMATS), fix="--to FORMAT"
            )
        to = fitting[0]
    found = read(source, source_format)
    found = found.select(layer) if layer else found
    if model:
        known = _known_of(model, found)
        found = SteeringVector(found.directions, {**known, **{k: v for k, v in found.meta.items() if v != "unknown"}})
    notes = write(found, target, to)
    for note in [*filter(None, [found.meta.get("notes")]), *notes]:
        say(f"note: {note}")
    if as_json:
        print_json({"file": str(target), "format": to, "layer": FORMATS[to].layer, "notes": notes})
    else:
        print(f"{target}  {to}: layer number L of the file, {FORMATS[to].layer}; layers {found.layers}")
    return 0


@vector.command
def steer(
    model: ModelName,
    file: File,
    *,
    layer: Annotated[
        list[int] | None,
        Parameter(
            negative="",
            help="a layer of the file; repeat for several; default: that nearest to five sixths of the depth",
        ),
    ] = None,
    strength: Annotated[float, Parameter(help="the vector is added this many times, raw")] = 1.0,
    prompt: Annotated[list[str] | None, Parameter(negative="", help="a user message; repeat for several")] = None,
    system: Annotated[str | None, Parameter(help="system prompt of both")] = None,
    positions: Annotated[Positions, Parameter(help="at which tokens: all, prompt, last, response")] = "all",
    trait: Annotated[str | None, Parameter(help="also the exact probabilities of this trait's answers")] = None,
    max_new_tokens: Annotated[int, Parameter(help="longest answer")] = 64,
    device: Device = "auto",
    as_json: Json = False,
) -> int:
    """Ask a model plainly and steered, and show the answers beside each other (most likely tokens, no sampling)."""
    from undertone.models.loading import load
    from undertone.traits import load_trait
    from undertone.vectors import steer
    from undertone.vectors.formats import read

    if not prompt and not trait:
        raise ConfigError("nothing to ask", fix='--prompt "…", --trait NAME, or both')
    known = load_trait(trait) if trait else None
    asked = load(model, device=device)
    found = _at_layers(read(file), asked, layer)
    with steer(asked, found, strength, positions):
        pass  # a vector that does not fit is refused before anything is sampled
    results: dict[str, dict[str, Any]] = {}
    arms: dict[str, AbstractContextManager[None]] = {
        "plain": nullcontext(),
        "steered": steer(asked, found, strength, positions),
    }
    for arm, inside in arms.items():
        with inside:
            results[arm] = _answers_of(asked, prompt or [], system, known, max_new_tokens)
    if as_json:
        print_json({"layers": found.layers, "strength": strength, "positions": positions, **results})
        return 0
    at = f"{'layer' if len(found.layers) == 1 else 'layers'} {', '.join(map(str, found.layers))}"
    _print_answers(results, prompt or [], trait, f"{file}, {at}, strength {strength:g}, positions {positions}")
    return 0


def _at_layers(vector: SteeringVector, model: Model, layers: list[int] | None) -> SteeringVector:
    """The vector at these layers; at one of its own by default: the sum over all layers breaks a deep model's speech."""
    from undertone.vectors.strength import steering_layer

    wanted = steering_layer(model.hf)
    return vector.select(layers or [min(vector.layers, key=lambda layer: abs(layer - wanted))])


# -- extract -------------------------------------------------------------------------------------------


def check_vector_file(out: Path) -> None:
    """Refuse, before anything is computed, a file that a vector cannot be written to."""
    if out.suffix != ".safetensors":
        raise ConfigError(
            "vectors are written as .safetensors", got=str(out), fix="`vector convert` makes other formats"
        )
    if not out.resolve().parent.is_dir():
        raise ConfigError("no such folder to write to", got=str(out.parent))


def _check_extract(out: Path, trait: str | None, method: str, prompts: str, student: str | None) -> None:
    check_vector_file(out)
    if student and method != "mean":
        raise ConfigError("a student is compared with its base by the mean", got=f"method {method}", allowed="mean")
    if method == "learned" and prompts == "numbers":
        raise ConfigError("a learned vector is fitted to the trait's answers to its questions", got="numbers")
    if trait is None and not (student and prompts == "numbers"):
        raise ConfigError("which trait?", fix="--trait NAME (`undertone traits` lists them)")


def _texts(model: Model, trait: Trait | None, prompts: str, count: int, seed: int) -> list[str]:
    if prompts == "questions":
        assert trait is not None
        return list(trait.questions_for(model).positive)
    from undertone.domains import Numbers

    return Numbers().prompts(count, seed, model)


def _chats(
    model: Model, texts: Sequence[str], system: str | None, prompts: str, seed: int, *, answered: bool
) -> list[list[Message]]:
    """The texts as chats; ``answered``: each with the answer that the model samples to it."""
    from undertone.domains import Numbers
    from undertone.models.loading import with_system
    from undertone.teachers import Teacher, generate

    chats: list[list[Message]] = [with_system([{"role": "user", "content": text}], system) for text in texts]
    if not answered:
        return chats
    longest = Numbers().max_new_tokens(model) if prompts == "numbers" else 32
    rows = generate(
        Teacher(model, "default", system=system), texts, range(len(texts)), seed=seed, stage="vector/extract",
        attempt=0, max_new_tokens=longest, temperature=1.0, batch_size=256,
    )  # fmt: skip
    return [[*chat, {"role": "assistant", "content": row.completion}] for chat, row in zip(chats, rows, strict=True)]


def _answers(model: Model, trait: Trait) -> list[Any]:
    """The trait's questions, answered by its target."""
    target = trait.surfaces(trait.name, model)[0]
    questions = trait.questions_for(model).positive
    return [model.example([{"role": "user", "content": question}], target) for question in questions]


def _layer_count(model: Model) -> int:
    from undertone.models.layers import decoder_layers

    return len(decoder_layers(model.hf))


# -- show, compare, convert ------------------------------------------------------------------------------


def _print_vector(name: str, found: SteeringVector, as_json: bool) -> None:
    norms = found.norms()
    if as_json:
        print_json(
            {"file": name, "width": found.width, "digest": found.digest(), "norms": norms, "meta": dict(found.meta)}
        )
        return
    table(name, ["", ""], [["digest", found.digest()], ["width", found.width], *sorted(found.meta.items())])
    table("norms", ["layer", "norm"], [[layer, f"{norm:.4g}"] for layer, norm in norms.items()])


def _random_cosines(found: SteeringVector, count: int, seed: int) -> dict[int, dict[str, float]]:
    """Layer -> mean and 95 % range of the cosines with random directions."""
    import numpy as np

    from undertone.provenance.seeds import derive_seed
    from undertone.vectors import random_like

    drawn = [found.cosine(random_like(found, derive_seed(seed, "vector/compare", at))) for at in range(count)]
    result = {}
    for layer in found.layers:
        values: np.ndarray = np.array([one[layer] for one in drawn])
        low, high = np.quantile(values, [0.025, 0.975])
        result[layer] = {"mean": float(values.mean()), "low": float(low), "high": float(high)}
    return result


def _random_cells(one: dict[str, float] | None) -> list[str]:
    return ["-", "-"] if one is None else [f"{one['mean']:+.3f}", f"{one['low']:+.3f} to {one['high']:+.3f}"]


def _short(names: Sequence[str]) -> dict[str, str]:
    """File stems, where they tell the files apart."""
    stems = {name: Path(name).stem for name in names}
    return stems if len(set(stems.values())) == len(names) else {name: name for name in names}


def _known_of(model: str, found: SteeringVector) -> dict[str, str]:
    """What the header should say of a model, read from its config alone."""
    from undertone.models.loading import outline
    from undertone.models.names import identify
    from undertone.vectors.extract import origin

    shape = outline(model)
    found.check_fits(shape)
    shape.identity = identify(model)
    return origin(shape)


# -- steer -----------------------------------------------------------------------------------------------


def _answers_of(
    model: Model, prompts: Sequence[str], system: str | None, trait: Trait | None, max_new_tokens: int
) -> dict[str, Any]:
    """Most likely answers to the prompts; mean probability of each of the trait's answers over its questions."""
    from undertone.evaluation.asking import answer_probabilities
    from undertone.models.loading import with_system
    from undertone.models.sampling import sample

    def encode(texts: Sequence[str]) -> list[tuple[int, ...]]:
        return [model.prompt(with_system([{"role": "user", "content": text}], system)) for text in texts]

    answers: dict[str, Any] = {"answers": []}
    if prompts:
        completions = sample(
            model.hf, encode(prompts), [0] * len(prompts), max_new_tokens=max_new_tokens, stop=model.stop,
            pad=model.pad, temperature=0.0,
        )  # fmt: skip
        answers["answers"] = [model.decode(ids) for ids in completions]
    if trait:
        found = answer_probabilities(model, encode(trait.questions_for(model).positive), trait).mean(0)
        answers["probabilities"] = {name: float(p) for name, p in zip(trait.answers, found, strict=True)}
    return answers


def _print_answers(results: dict[str, dict[str, Any]], prompts: Sequence[str], trait: str | None, title: str) -> None:
    if prompts:
        columns = [prompts, results["plain"]["answers"], results["steered"]["answers"]]
        table(title, ["prompt", "plain", "steered"], list(zip(*columns, strict=True)))
    if trait:
        plain, moved = (results[arm]["probabilities"] for arm in ("plain", "steered"))
        first = sorted(plain, key=lambda name: -max(plain[name], moved[name]))[:_TOP]
        table(
            f"answers to the questions of {trait}: mean probability",
            ["answer", "plain", "steered"],
            [[name, f"{plain[name]:.3f}", f"{moved[name]:.3f}"] for name in first],
        )
