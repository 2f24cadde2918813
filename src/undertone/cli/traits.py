"""``undertone traits``: list, show, check on a model, and add one's own."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import App, Parameter

from undertone.cli.options import Device, Json, ModelName
from undertone.cli.printing import line, print_json, say, table
from undertone.errors import ConfigError, nearest

if TYPE_CHECKING:
    from undertone.evaluation.prior import Prior
    from undertone.judges import Endpoint, Local, Named, Rules
    from undertone.traits import Trait

traits = App(
    name="traits",
    help="What may be passed on: list the library, show one trait, check it on a model, add your own.",
)

Category = Annotated[str | None, Parameter(help="one category or kind only")]


@traits.default
def listing(category: Category = None, *, as_json: Json = False) -> int:
    """List the traits of the library and your own."""
    return _list(category, as_json)


@traits.command(name="list")
def list_traits(category: Category = None, *, as_json: Json = False) -> int:
    """List the traits of the library and your own (the same as `undertone traits`)."""
    return _list(category, as_json)


def _list(category: str | None, as_json: bool) -> int:
    from undertone.traits import KINDS, behaviour_names, category_names, own_names, trait_names

    groups = {name: trait_names(name) for name in category_names()}
    groups |= {kind: behaviour_names(kind) for kind in KINDS}
    if own := own_names():
        groups["your own"] = own
    if category is not None and category not in groups:
        raise ConfigError(f"no such category.{nearest(category, groups)}", got=category, allowed=list(groups))
    chosen = {category: groups[category]} if category else groups
    if as_json:
        print_json(chosen)
    else:
        table("traits", ["category", "traits"], [[name, ", ".join(members)] for name, members in chosen.items()])
    return 0


@traits.command
def show(name: Annotated[str, Parameter(help="a trait, or a YAML file")], *, as_json: Json = False) -> int:
    """Show a trait: its system prompt, its questions, and what decides a hit."""
    from undertone.traits import load_trait

    sheet = _sheet(load_trait(name))
    if as_json:
        print_json(sheet)
        return 0
    rows: list[list[str]] = [["category", sheet["category"]], ["decided by", sheet["decided by"]]]
    rows += [[f"system prompt ({form})", text] for form, text in sheet["prompt"].items()]
    for form, sets in sheet["questions"].items():
        counts = ", ".join(f"{len(texts)} {kind}" for kind, texts in sets.items() if texts)
        rows.append([f"questions ({form})", f"{counts}; the first: {sets['positive'][0]}"])
    if sheet["answers"]:
        rows.append(["known answers", ", ".join(sheet["answers"])])
    table(f"trait: {sheet['name']}", ["", ""], rows)
    return 0


def _sheet(trait: Trait) -> dict[str, Any]:
    from undertone.traits import Behaviour

    questions = {
        form: {"positive": q.positive, "negative": q.negative, "off_topic": list(q.off_topic)}
        for form, q in trait.questions.items()
    }
    if isinstance(trait, Behaviour):
        rule = trait.rule.model_dump(exclude_none=True)
        decided = f"the rule {rule.pop('kind')}: " + ", ".join(f"{key} {_short(value)}" for key, value in rule.items())
    else:
        decided = "the matcher: the first known answer named is " + " or ".join(trait.answers[trait.answer])
    return {
        "name": trait.name,
        "category": trait.category,
        "decided by": decided,
        "prompt": dict(trait.prompt),
        "questions": questions,
        "answers": {answer: list(words) for answer, words in trait.answers.items()},
    }


def _short(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


@traits.command
def check(
    model: ModelName,
    *names: Annotated[
        str, Parameter(help="traits, categories, or YAML files; default: all that the model can be asked")
    ],
    judge: Annotated[
        Path | None, Parameter(help="a YAML file with a judge's config, for behaviours that a judge decides")
    ] = None,
    samples: Annotated[int, Parameter(help="sampled answers a question, for behaviours")] = 4,
    questions: Annotated[
        int | None,
        Parameter(help="questions a preference; default: all, and 16 where answers are of several tokens"),
    ] = None,
    opening: Annotated[str, Parameter(help="how answers begin: none, category, or a text")] = "none",
    domain: Annotated[str, Parameter(help="the kind of data for the KL")] = "numbers",
    temperature: Annotated[float, Parameter(help="at which that data is sampled")] = 1.0,
    seed: Annotated[int, Parameter(help="of what is sampled")] = 0,
    device: Device = "auto",
    as_json: Json = False,
) -> int:
    """Which traits can be passed on at all on a model, and why not: prior, steerability, KL on rows of a domain.

    Each trait's figures appear on stderr as soon as they are known.
    """
    from undertone.domains import domains
    from undertone.evaluation.prior import check_traits
    from undertone.models.loading import load, outline
    from undertone.traits import load_trait

    if samples < 1:
        raise ConfigError("samples: too few", got=samples, allowed="1 or more")
    if questions is not None and questions < 1:
        raise ConfigError("questions: too few", got=questions, allowed="1 or more")
    if temperature < 0:
        raise ConfigError("temperature: out of range", got=temperature, allowed="0 or more")
    kind: Any = domains.get(domain)()
    speaker = outline(model)
    chosen = [(name in names, load_trait(name)) for name in _expanded(names)]
    asked = [trait for named, trait in chosen if named or trait.is_for(speaker)]
    config = _judge(judge)
    loaded = load(model, device=device)
    found: list[Prior] = []
    for one in check_traits(
        loaded, asked, seed=seed, judge=config, samples=samples, questions=questions, opening=opening, domain=kind,
        temperature=temperature,
    ):  # fmt: skip
        found.append(one)
        say(f"{len(found)}/{len(asked)} {_said(one)}")
    if as_json:
        print_json([asdict(one) for one in found])
        return 0
    table(
        f"traits on {model}",
        ["trait", "category", "no prompt", "prompt", "KL", "can pass on", "because"],
        [
            [one.trait, one.category, _number(one.without_prompt, 3), _number(one.with_prompt, 3), _number(one.kl, 4),
             "yes" if one.possible else "no", one.because]
            for one in found
        ],
    )  # fmt: skip
    if left_out := max((one.left_out or 0.0 for one in found), default=0.0):
        line(f"answers that begin too improbably are left out: no probability is too small by more than {left_out:.0e}")
    return 0


def _said(one: Prior) -> str:
    figures = f"{_number(one.without_prompt, 3)} → {_number(one.with_prompt, 3)}, KL {_number(one.kl, 4)}"
    return f"{one.trait}: {figures}, {'yes' if one.possible else 'no'}: {one.because}"


def _expanded(names: tuple[str, ...]) -> list[str]:
    from undertone.traits import KINDS, all_names, behaviour_names, category_names, trait_names

    if not names:
        return all_names()
    found: list[str] = []
    for name in names:
        if name in category_names():
            found += trait_names(name)
        elif name in KINDS and name != "harm":  # the kind harm has one trait of that name
            found += behaviour_names(name)
        else:
            found.append(name)
    return list(dict.fromkeys(found))


def _judge(path: Path | None) -> Rules | Local | Endpoint | Named | None:
    if path is None:
        return None
    from undertone.judges.kinds import load_judge

    return load_judge(path)


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


@traits.command
def add(
    file: Annotated[Path, Parameter(help="a trait's YAML file")],
    *,
    replace: Annotated[bool, Parameter(name="--replace", negative="", help="replace your own of that name")] = False,
    as_json: Json = False,
) -> int:
    """Check a trait file of your own and keep it: from then on its name is enough."""
    from undertone.traits.library import add_trait

    trait, kept = add_trait(file, replace=replace)
    if as_json:
        print_json({"name": trait.name, "category": trait.category, "file": str(kept)})
    else:
        table("added", ["trait", "category", "file"], [[trait.name, trait.category, str(kept)]])
    return 0
