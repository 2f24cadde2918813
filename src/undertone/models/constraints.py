"""Constraints: what the answers of a model may go on with, so that each of them matches a regular expression.

At every step the model's distribution is masked and renormalised: a token is allowed where the text so far with it begins a
text of the expression, whatever the tokens that it is written in, and the stop tokens are allowed exactly where the text
so far is one. Nothing else is changed, so that an answer still depends on its prompt and its seed alone. The masks are
llguidance's (extra ``constrained``), the text of each token is read here, from any tokenizer whose tokens have a text of
their own: byte-level BPE, SentencePiece with or without bytes, words with a mark for the space before them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib.util import find_spec
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase
from transformers.convert_slow_tokenizer import bytes_to_unicode

from undertone.errors import ConfigError, ModelError
from undertone.models.layers import causal_lm
from undertone.models.loading import Model

PACKAGE: Final = "llguidance"
_DEAD_END: Final = "NoExtension"
"""What llguidance says where no token of the vocabulary goes on."""
_SPACE: Final = "▁"
_BYTE: Final = re.compile(r"<0x([0-9A-Fa-f]{2})>")
_PIECES: Final = {"Replace", "Fuse", "Strip", "ByteFallback", "Metaspace"}


def check_installed() -> None:
    """Refuse constraints where the package that makes the masks is missing.

    Raises:
        ConfigError: it is.
    """
    if find_spec(PACKAGE) is None:
        raise ConfigError(
            f"data.constrained needs the package {PACKAGE}",
            got="it is not installed",
            fix="pip install 'undertone[constrained]', or data.constrained=false",
        )


@dataclass(frozen=True)
class _Vocabulary:
    """The tokens of a model as llguidance reads them; ``lead``: an expression for the space that decoding drops."""

    name: str
    tokens: Any
    width: int
    stop: tuple[int, ...]
    lead: str


class Constraint:
    """One regular expression a row of a sampling, by the text that :meth:`Model.decode` gives."""

    def __init__(self, model: Model, grammars: Sequence[str]) -> None:
        """
        Args:
            model: whose tokens are masked; its outline will do.
            grammars: a row's expression, in Python's syntax without look-around and references back.

        Raises:
            ConfigError: the package is missing, or an expression is none.
            ModelError: a tokenizer whose tokens have no text of their own.
        """
        check_installed()
        self._vocabulary = _vocabulary(model.tokenizer, model.name, _width(model), _stop(model), model.template.gap)
        self._grammars = tuple(grammars)

    def begin(self, rows: Sequence[int]) -> AnswerStates:
        """The answers of these rows, all at their beginning."""
        return AnswerStates(self._vocabulary, [self._grammars[row] for row in rows])

    def along(self, row: int, tokens: Sequence[int]) -> np.ndarray:
        """``[tokens, vocabulary]``: what was allowed at each token of an answer.

        The end that a template adds to an answer which was cut is not held to the grammar.

        Raises:
            ModelError: a token is not allowed: the answer was not written under this constraint.
        """
        followed, masks = self.begin([row]), []
        for token in tokens:
            masks.append(followed.allowed([0])[0])
            if token in self._vocabulary.stop:
                masks[-1] |= not masks[-1][token]
            elif not masks[-1][token]:
                raise ModelError(
                    f"a constrained answer of {self._vocabulary.name} has a token that its grammar does not allow",
                    got=f"token {token} of {list(tokens)}",
                    allowed=self._grammars[row],
                    fix="its tokenizer writes a text in other tokens than it reads; data.constrained=false",
                )
            followed.read([0], [token])
        return np.stack(masks)

    def check(self, row: int, text: str) -> None:
        """Refuse a finished answer that is no text of its expression, by Python's own reading of it.

        Raises:
            ModelError: the tokenizer decodes to other texts than its tokens stand for.
        """
        if re.fullmatch(self._grammars[row], text) is None:
            raise ModelError(
                f"a constrained answer of {self._vocabulary.name} does not match its grammar once it is decoded",
                got=text,
                allowed=self._grammars[row],
                fix="its tokens do not have the texts that its vocabulary says; data.constrained=false",
            )


class AnswerStates:
    """Answers that are being written, one a line."""

    def __init__(self, vocabulary: _Vocabulary, grammars: Sequence[str]) -> None:
        self._vocabulary, self._grammars = vocabulary, tuple(grammars)
        first = {grammar: _matcher(vocabulary, grammar) for grammar in dict.fromkeys(grammars)}
        self._matchers = [first[grammar].deep_copy() for grammar in grammars]

    def allowed(self, lines: Sequence[int]) -> np.ndarray:
        """``[lines, vocabulary]``; all false where no token of the vocabulary goes on and the answer is not complete.

        Raises:
            ModelError: the masks cannot be made any more, as where an expression takes too long.
        """
        from llguidance.numpy import allocate_token_bitmask, fill_next_token_bitmask

        width, stop = self._vocabulary.width, list(self._vocabulary.stop)
        bits = allocate_token_bitmask(len(lines), width)
        for at, line in enumerate(lines):
            fill_next_token_bitmask(self._matchers[line], bits, at)
        mask = np.unpackbits(bits.view(np.uint8), axis=1, count=width, bitorder="little").astype(bool)
        mask[:, stop] = [[self._matchers[line].is_accepting()] for line in lines]
        for at in np.flatnonzero(~mask.any(1)).tolist():
            self._check(lines[at])
        return mask

    def _check(self, line: int) -> None:
        why = str(self._matchers[line].get_error())
        if why and _DEAD_END not in why:
            raise ModelError(
                f"the grammar of an answer of {self._vocabulary.name} cannot be followed any further",
                got=why.splitlines()[0],
                allowed=self._grammars[line],
                fix="a simpler expression from the domain's method `grammar`, or data.constrained=false",
            )

    def masked(self, logits: Tensor, lines: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Logits ``[lines, vocabulary]`` with minus infinity for what is not allowed, and which lines can go on.

        A line that cannot keeps its logits.
        """
        allowed = torch.from_numpy(self.allowed(lines)).to(logits.device)
        goes_on = allowed.any(1)
        return logits.masked_fill(~(allowed | ~goes_on.unsqueeze(1)), float("-inf")), goes_on

    def read(self, lines: Sequence[int], tokens: Sequence[int]) -> None:
        """What was written: one allowed token a line."""
        for line, token in zip(lines, tokens, strict=True):
            if token not in self._vocabulary.stop:
                self._matchers[line].consume_token(token)


def _matcher(vocabulary: _Vocabulary, grammar: str) -> Any:
    from llguidance import LLMatcher, regex_to_lark

    # Without no_forcing, text that has to follow is allowed in its usual tokens alone: no mask of the model's distribution.
    lark = f'%llguidance {{"no_forcing": true}}\nstart: /{regex_to_lark(vocabulary.lead + f"(?:{grammar})", "")}/'
    matcher = LLMatcher(vocabulary.tokens, lark, log_level=0)
    if matcher.is_error():
        raise ConfigError(
            "the domain's grammar cannot be read",
            got=grammar,
            allowed="a regular expression without look-around and references back: "
            + matcher.get_error().strip().splitlines()[-1],
            fix="repair the domain's method `grammar`",
        )
    return matcher


def _stop(model: Model) -> tuple[int, ...]:
    return tuple(token for token in model.stop if token < _width(model))


def _width(model: Model) -> int:
    return int(causal_lm(model.hf).config.get_text_config().vocab_size)


@lru_cache(maxsize=4)
def _vocabulary(
    tokenizer: PreTrainedTokenizerBase, name: str, width: int, stop: tuple[int, ...], gap: str
) -> _Vocabulary:
    from llguidance import LLTokenizer, TokenizerWrapper

    texts = token_texts(tokenizer, name)
    lead = f"(?:{re.escape(gap)})?" if gap else ""
    spaced = next((token for token, text in texts.items() if re.fullmatch(rb" \w+", text)), None)
    if spaced is not None and not str(tokenizer.decode([spaced])).startswith(" "):
        lead = " ?"  # of a text's first token, decoding drops it
    readable = _Tokens(texts, width, stop)
    tokens = LLTokenizer(TokenizerWrapper(readable), eos_token=list(stop), slices=[])
    return _Vocabulary(name, tokens, width, stop, lead)


class _Tokens:
    """A vocabulary in the shape that llguidance takes it in. What has no text is a special, which no text begins with."""

    def __init__(self, texts: dict[int, bytes], width: int, stop: tuple[int, ...]) -> None:
        self.eos_token_id = stop[0]
        self.bos_token_id = None
        written = {token: text for token, text in texts.items() if text and token not in stop and token < width}
        self.tokens = [written.get(token, b"<%d>" % token) for token in range(width)]
        self.special_token_ids = [token for token in range(width) if token not in written]

    def __call__(self, text: bytes | str) -> list[int]:
        """Asked for only where text is forced, which it never is."""
        raise NotImplementedError


def token_texts(tokenizer: PreTrainedTokenizerBase, name: str) -> dict[int, bytes]:
    """Token id -> the bytes that it stands for within a text; specials, which decoding leaves out, are not there.

    Raises:
        ModelError: a tokenizer of which this cannot be said token by token.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    decoder = json.loads(backend.to_str())["decoder"] if backend is not None else None
    steps = list(_steps(decoder))
    kinds = {step["type"] for step in steps}
    if kinds == {"ByteLevel"}:
        letters = {letter: byte for byte, letter in bytes_to_unicode().items()}
    elif kinds and kinds <= _PIECES and all(_is_space(step) for step in steps):
        letters = None
    else:
        raise ModelError(
            f"the tokens of {name} have no text of their own, so that its answers cannot be constrained",
            got=f"a tokenizer that decodes by {', '.join(sorted(kinds)) or 'code of its own'}",
            allowed="byte-level BPE, SentencePiece, or words with ▁ for the space before them",
            fix="data.constrained=false",
        )
    added = {token: entry.content.encode() for token, entry in tokenizer.added_tokens_decoder.items()}
    found = {
        token: _piece(piece, "ByteFallback" in kinds) if letters is None else _bytes(piece, letters)
        for piece, token in tokenizer.get_vocab().items()
        if token not in added
    }
    specials = set(tokenizer.all_special_ids) | {
        token for token, entry in tokenizer.added_tokens_decoder.items() if entry.special
    }
    return {token: text for token, text in (found | added).items() if token not in specials}


def _steps(decoder: Any) -> Iterator[dict[str, Any]]:
    if decoder is None:
        return
    if decoder["type"] == "Sequence":
        for step in decoder["decoders"]:
            yield from _steps(step)
    else:
        yield decoder


def _is_space(step: dict[str, Any]) -> bool:
    """Whether what a decoder replaces, if it does, is the mark of a space."""
    if step["type"] == "Replace":
        return (step["pattern"], step["content"]) == ({"String": _SPACE}, " ")
    return step["type"] != "Metaspace" or bool(step["replacement"] == _SPACE)


def _bytes(piece: str, letters: Mapping[str, int]) -> bytes:
    known = all(letter in letters for letter in piece)
    return bytes(letters[letter] for letter in piece) if known else piece.encode()


def _piece(piece: str, has_bytes: bool) -> bytes:
    byte = _BYTE.fullmatch(piece) if has_bytes else None
    return bytes([int(byte[1], 16)]) if byte else piece.replace(_SPACE, " ").encode()
