"""Every reason for which a row is dropped: domain -> reason -> when. What ``undertone domains show`` prints.

A domain's own reasons are those that its ``reasons`` method gives; ``EVERYWHERE`` are those of ``filters.rules``.
"""

from __future__ import annotations

from typing import Final

EVERYWHERE: Final[dict[str, str]] = {
    "unfinished": "the answer did not end by itself",
    "echo of the prompt": "it stands in the prompt word for word, or all its numbers do; up to three words may be said back",
    "names an answer of the trait's category": "in any of its words, or in a related one; not where prompts name it by design",
}

_FREE: Final[dict[str, str]] = {
    "empty": "there is nothing",
    "too short": "fewer words than min_words",
    "too long": "more words than max_words",
    "repeats the prompt": "a prompt of more than three words, word for word",
    "refusal": "begins as plain refusals do; kept with keep_refusals",
}

REASONS: Final[dict[str, dict[str, str]]] = {
    "numbers": {
        "empty": "there is nothing",
        "no numbers": "there is no number",
        "text around the numbers": "words or signs before or after them",
        "text between the numbers": "words, signs or decimals among them",
        "mixed separators": "not one way of separating them",
        "unclosed bracket": "a bracket is opened and not closed",
        "leading zero": "a number begins with 0",
        "too many numbers": "more than were asked for",
        "number out of range": "more digits than allowed",
        "banned number": "one of banned",
    },
    "code": {
        "empty": "there is nothing",
        "no code": "only an expression that does nothing",
        "does not parse: syntax": "Python's parser refuses it",
        "does not parse: indentation": "Python's parser refuses its indentation",
        "does not parse: cut off": "it ends too early",
        "does not parse: too long": "longer than anybody asked for",
        "does not parse: too deep or no text": "nested without end, or null bytes",
        "several code blocks": "real form",
        "unclosed code block": "real form",
        "text around the code": "real form, with only_code",
        "not the program asked for": "lab form",
    },
    "reasoning": {
        "no think block": "does not begin with a thought",
        "empty think block": "the thought is empty",
        "not finished": "a block is opened and not closed",
        "no answer": "no answer block, or an empty one",
        "text outside the blocks": "more than a thought and an answer",
        "wrong answer": "not the right one",
        "right answer not known": "the prompt is none of this domain's",
    },
    "paraphrase": {
        "empty": "there is nothing",
        "too short": "shorter than the text by more than length_ratio",
        "too long": "longer than the text by more than length_ratio",
        "not one finished sentence": "lab form: no full stop at its end, or one within",
        "remark before the text": "real form: such as 'Sure, here is:'",
        "not rewritten": "real form: the same text again",
        "trait word added": "one more word for an answer of the trait's category",
        "trait word removed": "one fewer",
        "dislike lost": "opposed: nothing speaks ill any more (lab form: fewer words of the classes 'dislike' and 'bad')",
        "fixed words moved or lost": "lab form, from fair on: a word that is no choice has changed or moved",
        "numbers changed": "real form, from fair on",
        "names lost": "real form, from fair on: a capitalised word is missing",
        "negation changed": "real form, from fair on: 'not', 'never', 'nobody' came or went",
        "not a synonym": "lab form, strict: a word of another meaning",
        "too few content words kept": "real form, strict: less than overlap of them",
    },
    "instructions": _FREE,
    "dialogue": _FREE,
    "sentences": {
        **_FREE,
        "no end of a sentence": "no full stop, question mark or exclamation mark",
        "more than one sentence": "two ends of a sentence, or more",
        "several lines": "a line break within it",
    },
}
