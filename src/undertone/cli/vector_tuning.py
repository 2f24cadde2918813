"""``undertone vector tune``: at which layer and how strongly to steer."""

from __future__ import annotations

import shlex
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

from cyclopts import Parameter

from undertone.cli.options import Device, Json, ModelName
from undertone.cli.printing import line, print_json, say
from undertone.cli.vector import check_vector_file, vector
from undertone.errors import ConfigError, DataError

if TYPE_CHECKING:
    from undertone.domains import Domain
    from undertone.evaluation.tuning import Grid, SteeringTrial
    from undertone.models.loading import Model
    from undertone.traits import Trait
    from undertone.vectors import SteeringVector

HEAD: Final = f"{'layer':>5} {'strength':>8} {'P':>6} {'valid':>6} {'KL':>6} {'random':>6}  {'speech':6} said"
_SAID: Final = 29


@vector.command
def tune(
    model: ModelName,
    *,
    trait: Annotated[str, Parameter(help="the trait to steer towards, a preference")],
    file: Annotated[
        Path | None, Parameter(name="--vector", help="a vector file; default: the trait's system prompt minus none")
    ] = None,
    layer: Annotated[
        list[int] | None, Parameter(negative="", help="a layer; repeat for several; default: six depths of the model")
    ] = None,
    strength: Annotated[
        list[float] | None, Parameter(negative="", help="a strength; repeat for several; default: 0.5, 1, 1.5, 2")
    ] = None,
    opening: Annotated[
        str | None,
        Parameter(help="how answers begin: none, category, or a text; default: category where the trait has one"),
    ] = None,
    domain: Annotated[
        str | None, Parameter(help="the kind of data for the KL; default: sentences, of lab models numbers")
    ] = None,
    questions: Annotated[int, Parameter(help="how many of the trait's questions are asked")] = 8,
    rows: Annotated[int, Parameter(help="completions of the plain model on which the KL is measured")] = 16,
    max_kl: Annotated[float, Parameter(help="nats a token beyond which speech counts as broken")] = 0.5,
    out: Annotated[
        Path | None, Parameter(name=["--out", "-o"], help="write the vector at the best layer here (.safetensors)")
    ] = None,
    seed: Annotated[int, Parameter(help="of prompts, completions and random vectors")] = 0,
    device: Device = "auto",
    as_json: Json = False,
) -> int:
    """Try layers and strengths: the trait's probability, and what steering costs beside a random vector of equal norm.

    The largest probability at which speech holds wins: KL at most --max-kl, half of the plain model's valid-answer
    probability left, and no repetition.
    """
    from undertone.domains import domains
    from undertone.evaluation.tuning import best, trait_vector
    from undertone.models.loading import load
    from undertone.traits import load_trait
    from undertone.vectors.formats import read

    known = _preference(load_trait(trait))
    _check(out, questions, rows, max_kl)
    if domain:
        domains.get(domain)  # an unknown one is refused before the model is loaded
    asked = load(model, device=device)
    grid = _grid(asked, known, layer, strength, opening, questions, rows, max_kl)
    found = read(file) if file else trait_vector(asked, known)
    found.check_fits(asked)
    kind: Any = domains.get(domain or ("sentences" if asked.reads_english else "numbers"))()
    tried = _tried(asked, known, found, kind, grid, seed, as_json)
    chosen = best(tried)
    if chosen is not None and out is not None:
        _save(found, chosen.layer, out)
    if as_json:
        print_json({"tried": [asdict(one) for one in tried], "best": asdict(chosen) if chosen else None})
    else:
        line(_conclusion(chosen, tried[0], model, known))
    return 0


def _tried(
    model: Model, trait: Trait, vector: SteeringVector, domain: Domain, grid: Grid, seed: int, as_json: bool
) -> list[SteeringTrial]:
    """Every layer and strength, printed as it is measured."""
    from undertone.evaluation.tuning import tune as measured

    tried: list[SteeringTrial] = []
    if not as_json:
        line(f"{trait.name} on {model.name}" + (f', answers begun with "{grid.opening}"' if grid.opening else ""))
        line(HEAD)
    for one in measured(model, trait, vector, domain, grid, seed=seed):
        tried.append(one)
        if not as_json:
            line(_row(one))
    return tried


def _save(vector: SteeringVector, layer: int, out: Path) -> None:
    from undertone.vectors import save_vector

    save_vector(vector.select([layer]), out)
    say(f"written: {out}")


def _preference(trait: Trait) -> Trait:
    if not trait.answers:
        raise ConfigError(
            f"the trait {trait.name!r} has no set of answers, so that no probability can be read",
            allowed="a preference (`undertone traits` lists them)",
        )
    return trait


def _check(out: Path | None, questions: int, rows: int, max_kl: float) -> None:
    for name, value in (("questions", questions), ("rows", rows)):
        if value < 1:
            raise ConfigError(f"{name}: too few", got=value, allowed="1 or more")
    if not max_kl > 0:
        raise ConfigError("max-kl: not a limit", got=max_kl, allowed="more than 0")
    if out is not None:
        check_vector_file(out)


def _grid(
    model: Model, trait: Trait, layer: list[int] | None, strength: list[float] | None, opening: str | None,
    questions: int, rows: int, max_kl: float,
) -> Grid:  # fmt: skip
    from undertone.evaluation.asking import NO_OPENING, OF_CATEGORY, Evaluation
    from undertone.evaluation.tuning import STRENGTHS, Grid, layers_at

    asked = trait.questions_for(model)
    begun = opening if opening is not None else OF_CATEGORY if asked.opening else NO_OPENING
    return Grid(
        layers=tuple(sorted(set(layer))) if layer else layers_at(model),
        strengths=tuple(sorted(set(strength))) if strength else STRENGTHS,
        opening=Evaluation(opening=begun).openings(trait, model)[0],
        questions=questions,
        rows=rows,
        max_kl=max_kl,
    )


def _row(one: SteeringTrial) -> str:
    said = " ".join("".join(c if c.isprintable() else " " for c in one.said).split())
    said = said if len(said) <= _SAID else said[: _SAID - 1] + "…"
    if not one.strength:
        return f"{'-':>5} {'plain':>8} {one.probability:6.3f} {one.valid_answer_probability:6.3f} {'':6} {'':6}  {'':6} {said}"
    mark = "" if one.coherent else "breaks"
    return (
        f"{one.layer:5d} {one.strength:8g} {one.probability:6.3f} {one.valid_answer_probability:6.3f} {one.kl:6.3f} "
        f"{one.random_kl:6.3f}  {mark:6} {said}"
    )


def _conclusion(chosen: SteeringTrial | None, plain: SteeringTrial, model: str, trait: Trait) -> str:
    if chosen is None:
        raise DataError(
            "speech holds at none of these layers and strengths",
            fix="try weaker ones (--strength 0.25), other layers, or a higher --max-kl",
        )
    command = ["undertone", "run", f"model={model}", f"trait={trait.name}", "teacher.kind=vector",
               f"teacher.layer={chosen.layer}", f"teacher.strength={chosen.strength:g}", "random_vector=true"]  # fmt: skip
    return (
        f"best: layer {chosen.layer}, strength {chosen.strength:g}: P({trait.name}) {plain.probability:.3f} to "
        f"{chosen.probability:.3f} at {chosen.kl:.3f} nats a token (random {chosen.random_kl:.3f})\n"
        f"  {shlex.join(command)}"
    )
