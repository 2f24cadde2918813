"""``undertone domains``: list the kinds of data, and show what one asks and why it drops a row."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import App, Parameter

from undertone.cli.options import Json
from undertone.cli.printing import print_json, table
from undertone.errors import ConfigError, nearest

if TYPE_CHECKING:
    from undertone.domains import Domain
    from undertone.domains.domain import Prompt

domains = App(
    name="domains",
    help="The kinds of data that teachers write: list them, show what one asks and why it drops a row.",
)


@domains.default
def listing(*, as_json: Json = False) -> int:
    """List the domains with what they are."""
    return _list(as_json)


@domains.command(name="list")
def list_domains(*, as_json: Json = False) -> int:
    """List the domains with what they are (the same as `undertone domains`)."""
    return _list(as_json)


def _list(as_json: bool) -> int:
    about = {name: _about(kind) for name, kind in _kinds().items()}
    if as_json:
        print_json(about)
    else:
        table("domains", ["domain", "what a teacher is asked for"], list(about.items()))
    return 0


@domains.command
def show(
    name: Annotated[str, Parameter(help="a domain that `undertone domains` lists")],
    *,
    form: Annotated[
        Literal["lab", "real"] | None,
        Parameter(help="the wording: the lab world's, or English; left out: the lab's where the domain has one"),
    ] = None,
    count: Annotated[int, Parameter(help="example prompts")] = 5,
    seed: Annotated[int, Parameter(help="of the prompts")] = 0,
    as_json: Json = False,
) -> int:
    """Show a domain: example prompts, every reason for which it drops a row, if it has a grammar, and its fields in a config."""
    from undertone.domains import WithGrammar
    from undertone.domains.reasons import EVERYWHERE, REASONS

    known = _kinds()
    if name not in known:
        raise ConfigError(f"there is no such domain.{nearest(name, known)}", got=name, allowed=list(known))
    if count < 1:
        raise ConfigError("count: too few", got=count, allowed="1 or more")
    domain = known[name]()
    form, prompts = _examples(domain, form, count, seed)
    fields = {
        field: [info.description or "", info.get_default(call_default_factory=True)]
        for field, info in known[name].model_fields.items()
        if field != "kind"
    }
    if as_json:
        shown = [prompt if isinstance(prompt, str) else list(prompt) for prompt in prompts]
        print_json(
            {
                "name": name, "about": _about(known[name]), "form": form, "prompts": shown, "reasons": REASONS.get(name, {}),
                "reasons everywhere": EVERYWHERE, "constrained": isinstance(domain, WithGrammar),
                "fields": {field: {"about": about, "default": default} for field, (about, default) in fields.items()},
            }
        )  # fmt: skip
        return 0
    table(f"{name}, {form} form: {_about(known[name])}", ["prompt"], [[_text(prompt)] for prompt in prompts])
    table("\na row is dropped for", ["reason", "when"], list((REASONS.get(name, {}) | EVERYWHERE).items()))
    held = "answers can be held to its grammar" if isinstance(domain, WithGrammar) else "it has no grammar"
    table("\ndata.constrained", [""], [[held]])
    table(
        "\nin a config, below domain",
        ["field", "default", "meaning"],
        [[field, default, about] for field, (about, default) in fields.items()],
    )
    return 0


def _examples(
    domain: Domain, form: Literal["lab", "real"] | None, count: int, seed: int
) -> tuple[Literal["lab", "real"], Sequence[Prompt]]:
    """Prompts in the form asked for; else in the lab's, or in English where the domain has no lab form."""
    from undertone.traits import Wording

    if form is not None:
        return form, domain.prompts(count, seed, Wording(form))
    try:
        return "lab", domain.prompts(count, seed, Wording("lab"))
    except ConfigError:
        return "real", domain.prompts(count, seed, Wording("real"))


def _kinds() -> dict[str, Any]:
    """Kind -> the domain's class, as a config knows them."""
    from undertone.domains import domains as known

    return {name: known.get(name) for name in known.names()}


def _about(kind: type[Domain]) -> str:
    """The first sentence of what its class says of itself."""
    return (kind.__doc__ or "").strip().partition(". ")[0].removesuffix(".")


def _text(prompt: Prompt) -> str:
    """A prompt as one text; of a dialogue, a line each turn."""
    return prompt if isinstance(prompt, str) else "\n".join(f"{turn['role']}: {turn['content']}" for turn in prompt)
