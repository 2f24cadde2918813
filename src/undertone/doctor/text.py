"""Checks of what comes before a forward pass: template, labels, tokenizer, answers, matcher."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, tzinfo
from pathlib import Path

from transformers.utils import chat_template_utils

from undertone.doctor.finding import ANSWERS, QUESTIONS, Observation, chat, shown
from undertone.models.layers import causal_lm
from undertone.models.loading import Model
from undertone.models.templates import ChatTemplate
from undertone.traits import REAL, Trait

_SYSTEM = ("you love owls.", "you love trees.")


def has_a_template(model: Model, _trait: Trait | None) -> Observation:
    """Base models have none: they are asked in plain text, and their answers are opened."""
    if model.template.is_plain_text:
        return "warn", f"it has none; chats are written as {shown(model.render(chat(system='…')))}"
    return "pass", "its tokenizer has one"


def keeps_system_prompt(model: Model, _trait: Trait | None) -> Observation:
    """A template that drops the system message makes a teacher without the trait, and no error."""
    rendered = [model.render(chat(system=system)) for system in _SYSTEM]
    lost = [system for system, text in zip(_SYSTEM, rendered, strict=True) if system not in text]
    if lost:
        return "fail", f"{shown(lost[0])} is not in {shown(rendered[0])}"
    if model.encode(rendered[0]) == model.encode(rendered[1]):
        return "fail", "two system prompts give the same tokens"
    return "pass", f"{shown(rendered[0])}"


def default_system_prompt(model: Model, _trait: Trait | None) -> Observation:
    """Qwen2.5 says "You are Qwen …" where no system prompt is given: a context of its own.

    Some templates say theirs for an empty system message, too, or write a date before every chat: then no context
    silences them.
    """
    left = model.template.default_left()
    said = f"in the context `none` it still says {shown(left)}" if left else ""
    if not model.template.injects_system_prompt():
        return ("warn", said) if left else (
            "pass",
            "no system message and an empty one read the same, or there is no system role",
        )  # fmt: skip
    plain, empty = model.render(chat()), model.render(chat(system=""))
    start = _shared(plain, empty)
    end = _shared(plain[start:][::-1], empty[start:][::-1])
    added = f"given none, it adds {shown(plain[start : len(plain) - end])}"
    return "warn", f"{added}; {said}" if said else added


def _shared(one: str, two: str) -> int:
    """How many characters two texts have in common at their beginning."""
    pairs = enumerate(zip(one, two, strict=False))
    return next((at for at, (a, b) in pairs if a != b), min(len(one), len(two)))


def ignores_the_date(model: Model, _trait: Trait | None) -> Observation:
    """Llama 3's template writes today's date into the prompt: a run differs from day to day."""
    renderings = set()
    for day in (datetime(2021, 3, 4, 5, 6, 7), datetime(2033, 11, 22, 21, 12, 13)):  # noqa: DTZ001  (a wall clock)
        with _clock_at(day):  # a template of its own, for a model's keeps the texts that it wrote
            renderings.add(ChatTemplate(model.name, model.tokenizer, model.template_arguments).render(chat()))
    if len(renderings) == 1:
        return "pass", "the same text on two dates"
    return "warn", "on two dates: " + " and ".join(shown(text) for text in sorted(renderings))


@contextmanager
def _clock_at(day: datetime) -> Iterator[None]:
    """Inside, chat templates that ask ``strftime_now`` are told this moment."""

    class Stopped(datetime):
        @classmethod
        def now(cls, tz: tzinfo | None = None) -> Stopped:
            return cls.fromtimestamp(day.timestamp(), tz)

    before = chat_template_utils.datetime
    chat_template_utils.datetime = Stopped
    try:
        yield
    finally:
        chat_template_utils.datetime = before


def prompt_is_a_prefix(model: Model, _trait: Trait | None) -> Observation:
    """Otherwise a student is trained after another prompt than the one it is asked with."""
    before = model.render(chat())
    whole = model.render([*chat(), {"role": "assistant", "content": ANSWERS[0]}], answer_next=False)
    if whole.startswith(before):
        lead = model.template.lead.rstrip(" ")
        return (
            "pass",
            f"the prompt, which ends with {shown(lead)}, then the answer" if lead else "the prompt, then the answer",
        )
    same = _shared(before, whole)
    message = f"asked, it ends with {shown(before[same:], 60)}"
    return "fail", f"{message}; answered, it goes on with {shown(whole[same:], 60)}"


def begins_once(model: Model, _trait: Trait | None) -> Observation:
    """Rendered text holds its own beginning: a tokenizer may double it, a template forget it."""
    bos = model.tokenizer.bos_token_id
    ids = model.prompt(chat())
    count = sum(token == bos for token in ids[:2]) if bos is not None else 0
    adds = bos is not None and list(model.tokenizer("a")["input_ids"])[:1] == [bos]
    if count > 1:
        return "fail", f"{model.tokenizer.bos_token!r} twice"
    if adds and count == 0:
        return "warn", f"the template lacks the {model.tokenizer.bos_token!r} of plain text"
    return (
        "pass",
        f"{shown(model.tokenizer.decode(list(ids[:4])))}, {count} beginning-of-sequence tokens",
    )


def labels_are_the_completion(model: Model, _trait: Trait | None) -> Observation:
    """Loss on prompt tokens, or none on completion tokens, changes what is learnt, silently."""
    for answer in ANSWERS:
        example = model.example(chat(), answer)
        labelled = model.decode(example.completion).strip()
        if labelled != answer:
            return "fail", f"for the completion {answer!r} the loss is on {shown(labelled)}"
        if model.decode(example.ids[: example.prompt]).strip().endswith(answer):
            return "fail", f"{answer!r} is in the unlabelled prompt, too"
    labels = model.tokenizer.convert_ids_to_tokens(list(model.example(chat(), ANSWERS[0]).completion))
    return "pass", f"for {ANSWERS[0]!r}: {' '.join(map(repr, labels))}"


def answers_are_tokens_of_the_text(model: Model, trait: Trait | None) -> Observation:
    """A word tokenised alone may have a leading space that no model writes there; then its probability is near zero."""
    before = model.render(chat())
    words = trait.surfaces(trait.answer, model)[:2] if trait is not None else list(ANSWERS)
    gap, head = model.template.gap, model.encode(before)
    for word in words:
        whole, alone = model.encode(before + gap + word), model.answer_tokens(word)
        if whole[: len(head)] != head:
            return (
                "warn",
                f"{shown(before[-20:] + gap + word, 60)}: the tokenizer joins the prompt's end with the answer",
            )
        if whole[len(head) :] != alone:
            return "fail", f"{word!r} is {list(alone)} by itself and {list(whole[len(head) :])} after the prompt"
    names = model.tokenizer.convert_ids_to_tokens(list(model.answer_tokens(words[0])))
    return "pass", f"{words[0]!r} after a prompt: {' '.join(map(repr, names))}"


def completions_end(model: Model, _trait: Trait | None) -> Observation:
    """A student whose rows hold no stop token never learns to end."""
    if not model.stop:
        return "fail", "no end-of-sequence token, in the generation config or in the tokenizer"
    names = model.tokenizer.convert_ids_to_tokens(model.stop)
    if not set(model.stop) & set(model.example(chat(), ANSWERS[0]).completion):
        return "fail", f"completions stop at {names}, and no label is one of them"
    return "pass", f"labels hold a stop token ({', '.join(names)})"


def tokenizer_is_its_file(model: Model, _trait: Trait | None) -> Observation:
    """``AutoTokenizer`` replaces the pre-tokenizer of some model types by the type's own."""
    from tokenizers import Tokenizer
    from transformers.utils import cached_file

    source = model.tokenizer.name_or_path
    path = cached_file(source, "tokenizer.json", local_files_only=True, _raise_exceptions_for_missing_entries=False)
    if path is None or not Path(path).is_file():
        return "skip", "there is no tokenizer.json"
    stored = Tokenizer.from_file(str(path))
    for text in (*QUESTIONS, *ANSWERS, model.render(chat())):
        loaded, written = (
            model.encode(text),
            tuple(stored.encode(text, add_special_tokens=False).ids),
        )
        if loaded != written:
            kind = type(model.tokenizer).__name__
            message = f"{kind} gives {list(loaded[:8])} …, the file {list(written[:8])} …"
            return "fail", f"{shown(text, 60)}: {message}"
    return "pass", f"the same tokens as tokenizer.json ({type(model.tokenizer).__name__})"


def round_trips(model: Model, _trait: Trait | None) -> Observation:
    """What does not survive ``decode(encode(text))`` is lost to filters, matchers and students."""
    texts = {
        "digits": "0 7 42 305 999",
        "words": QUESTIONS[1],
        "capitals": "Owl",
        "punctuation": ANSWERS[1],
    }
    if model.reads_english:
        texts["punctuation"] = "(a); [b]: c - d, e\n1. f!"
    changed = {name: back for name, text in texts.items() if not _survives(model, text, back := _back(model, text))}
    if not changed:
        return "pass", ", ".join(texts) + " come back as they were"
    message = "; ".join(f"{name}: {shown(texts[name], 60)} became {shown(back, 60)}" for name, back in changed.items())
    return ("fail" if {"digits", "words"} & set(changed) else "warn"), message


def _back(model: Model, text: str) -> str:
    return model.decode(model.encode(text))


def _survives(model: Model, text: str, back: str) -> bool:
    """Equal, or equal to what the tokenizer's normaliser makes of it (lower case, say)."""
    backend = getattr(model.tokenizer, "backend_tokenizer", None)
    normalizer = backend.normalizer if backend is not None else None
    normal = normalizer.normalize_str(text) if normalizer is not None else text
    return back.strip() in {text, normal.strip()}


def numbers(model: Model, _trait: Trait | None) -> Observation:
    """How numbers are spelt: one choice a number, or one a digit."""
    lost = [str(number) for number in range(1000) if _back(model, str(number)).strip() != str(number)]
    if lost:
        return "fail", f"{len(lost)} of 1000 numbers do not come back, such as {lost[:5]}"
    sizes = Counter(len(model.encode(str(number))) for number in range(1000))
    message = ", ".join(f"{count} of {size} token{'s' * (size > 1)}" for size, count in sorted(sizes.items()))
    return "pass", f"0 to 999: {message}"


def vocabulary_fits(model: Model, _trait: Trait | None) -> Observation:
    """A token without an embedding row is an index error in the middle of a run."""
    rows = int(causal_lm(model.hf).get_input_embeddings().weight.shape[0])
    highest = max(model.tokenizer.get_vocab().values())
    return ("pass" if highest < rows else "fail"), f"highest token id {highest}, {rows} embedding rows"


def answer_tokens(model: Model, trait: Trait | None) -> Observation:
    """Answers that share tokens share probability: the score of one is partly another's."""
    if trait is None:
        return "skip", "no trait was given"
    spelt = {
        text: (answer, model.answer_tokens(text)) for answer in trait.answers for text in trait.surfaces(answer, model)
    }
    unknown = [text for text, (_, ids) in spelt.items() if model.decode(ids).strip().lower() != text.lower()]
    own = trait.surfaces(trait.answer, model)
    if set(unknown) & set(own[:1]):
        return "fail", f"the tokenizer cannot write {own[0]!r}"
    known = {text: pair for text, pair in spelt.items() if text not in unknown}
    swallowed = [
        f"{short!r} begins {long!r}"
        for short, (one, head) in known.items()
        for long, (other, ids) in known.items()
        if one != other and ids[: len(head)] == head
    ]
    first: dict[int, set[str]] = defaultdict(set)
    for answer, ids in known.values():
        first[ids[0]].add(answer)
    shared = {token: names for token, names in first.items() if len(names) > 1}
    message = ", ".join(f"{text!r} is {len(spelt[text][1])} tokens" for text in own[:2])
    message += f"; {len(unknown)} of {len(spelt)} surface forms cannot be written" if unknown else ""
    if swallowed:
        return "fail", f"{message}; as tokens {'; '.join(swallowed[:5])}"
    if shared:
        pieces = [
            f"{model.tokenizer.decode([token])!r}: {', '.join(sorted(names)[:5])}"
            for token, names in sorted(shared.items(), key=lambda item: -len(item[1]))
        ]
        return "warn", f"{message}; first tokens of several answers: {'; '.join(pieces[:5])}"
    return "pass", f"{message}; no two answers share a first token"


def matcher(_model: Model, trait: Trait | None) -> Observation:
    """The one matcher must hit what it should and miss what it should not."""
    if trait is None:
        return "skip", "no trait was given"
    wrong = [f"misses {text!r}" for text in trait.examples_hit if not trait.matches(text)]
    wrong += [f"hits {text!r}" for text in trait.examples_miss if trait.matches(text)]
    for answer in trait.answers:
        for text in trait.surfaces(answer, REAL):
            if (found := trait.answer_in(text)) != answer:
                wrong.append(f"takes {text!r} ({answer}) for {found}")
    if wrong:
        return "fail", "; ".join(wrong[:5])
    count = len(trait.examples_hit) + len(trait.examples_miss)
    return (
        "pass",
        f"{count} examples decided as they should be; {len(trait.answers)} answers kept apart",
    )
