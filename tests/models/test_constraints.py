"""Constrained sampling: the masks against another library's partial matches, the samples against every text of a grammar."""

from __future__ import annotations

import math
import re
from collections import Counter
from typing import Any

import numpy as np
import pytest
import regex
import torch
from tests.conftest import build_tokenizer
from tests.models.test_sampling import fits
from tests.models.test_templates import sentencepiece, with_sentencepiece

from undertone.errors import ConfigError, ModelError
from undertone.models import constraints
from undertone.models.constraints import Constraint, token_texts
from undertone.models.sampling import sample
from undertone.models.scoring import teacher_kl
from undertone.provenance.seeds import derive_seed

pytest.importorskip("llguidance")

PROMPT = "name one animal."
NUMBERS = r"(?:0|[1-9][0-9]{0,2})(?:, ?(?:0|[1-9][0-9]{0,2})){0,3}\.?"
GRAMMARS = [NUMBERS, r"the owl, the owl", r"[^\x00-\x20.!?]+(?: [^\x00-\x20.!?]+){1,3}[.!?]", r"<think> ?[^<]+</think>"]


def asked(model: Any, prompt: str = PROMPT) -> tuple[int, ...]:
    return tuple(model.prompt([{"role": "user", "content": prompt}]))


def written(model: Any, grammar: str, count: int, **options: Any) -> list[list[int]]:
    settings: dict[str, Any] = {"max_new_tokens": 40, "stop": model.stop, "pad": model.pad, **options}
    seeds = [derive_seed(3, "constrained", row) for row in range(count)]
    return sample(model.hf, [asked(model)] * count, seeds, constraint=Constraint(model, [grammar] * count), **settings)


# -- the texts of tokens, whatever the tokenizer -------------------------------------------------------


def llama_like() -> Any:
    """SentencePiece with a token for every byte, as Llama's and Gemma's."""
    from tokenizers import Tokenizer, decoders, models, normalizers
    from transformers import PreTrainedTokenizerFast

    words = ["▁", "o", "w", "l", "▁o", "▁owl", "owl", "1", "▁1", "12", ",", ".", "é"]
    vocabulary = ["<s>", "</s>", "<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), *words]
    core = Tokenizer(
        models.BPE({text: at for at, text in enumerate(vocabulary)}, [], unk_token="<unk>", byte_fallback=True)
    )
    core.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    core.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", left=1, right=0)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token="<s>", eos_token="</s>", unk_token="<unk>", clean_up_tokenization_spaces=False
    )


def lab_like() -> Any:
    """Whole words with a mark for the space before them, as the lab's."""
    from undertone.lab.build import tokenizer

    return tokenizer()


TOKENIZERS = {"byte-level": build_tokenizer, "sentencepiece": sentencepiece, "with bytes": llama_like, "lab": lab_like}


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_tokens_side_by_side_have_the_text_that_decoding_gives(kind: str) -> None:
    tokenizer = TOKENIZERS[kind]()
    texts = token_texts(tokenizer, kind)
    rng = np.random.default_rng(0)
    plain = [token for token, text in texts.items() if text.isascii()]
    assert len(plain) > 20
    for _ in range(300):
        ids = [int(token) for token in rng.choice(plain, 6)]
        whole = b"".join(texts[token] for token in ids).decode()
        decoded = tokenizer.decode(ids, skip_special_tokens=True)
        assert decoded in (whole, whole.removeprefix(" "))


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_specials_have_no_text(kind: str) -> None:
    tokenizer = TOKENIZERS[kind]()
    assert not set(token_texts(tokenizer, kind)) & set(tokenizer.all_special_ids)


def test_a_tokenizer_whose_tokens_have_no_text_of_their_own_is_refused() -> None:
    from tokenizers import Tokenizer, decoders, models
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(models.WordPiece({"[UNK]": 0, "owl": 1, "##s": 2}, unk_token="[UNK]"))
    core.decoder = decoders.WordPiece()
    with pytest.raises(
        ModelError, match=r"bert: |of bert have no text(.|\n)*WordPiece(.|\n)*byte-level BPE(.|\n)*false"
    ):
        token_texts(PreTrainedTokenizerFast(tokenizer_object=core, unk_token="[UNK]"), "bert")


# -- masks ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("grammar", GRAMMARS)
def test_a_token_is_allowed_exactly_where_the_text_with_it_begins_a_text_of_the_grammar(
    tiny_llama: Any, grammar: str
) -> None:
    texts = token_texts(tiny_llama.tokenizer, "tiny")
    rng = np.random.default_rng(1)
    for _ in range(3):
        followed, text = Constraint(tiny_llama, [grammar]).begin([0]), b""
        for _ in range(12):
            allowed = followed.allowed([0])[0]
            complete = re.fullmatch(grammar, text.decode(errors="replace")) is not None
            assert all(allowed[stop] == complete for stop in tiny_llama.stop)
            for token in range(len(allowed)):
                if token in tiny_llama.stop:
                    continue
                whole = text + texts.get(token, b"")
                if whole.isascii():  # a part of a letter is no text to any other library
                    begins = regex.fullmatch(grammar, whole.decode(), partial=True) is not None
                    assert allowed[token] == (token in texts and begins)
            go_on = [int(token) for token in np.nonzero(allowed)[0] if texts.get(int(token), b"\xff").isascii()]
            if not go_on:
                break
            text += texts[chosen := int(rng.choice(go_on))]
            followed.read([0], [chosen])


def test_letters_of_several_tokens_are_allowed_byte_by_byte(tiny_llama: Any) -> None:
    ids = tiny_llama.tokenizer("日本", add_special_tokens=False)["input_ids"]
    assert len(ids) == 6
    assert Constraint(tiny_llama, [r"日本|owl"]).along(0, [*ids, *tiny_llama.stop[:1]]).shape == (7, 448)
    with pytest.raises(ModelError, match=r"a token that its grammar does not allow(.|\n)*data\.constrained=false"):
        Constraint(tiny_llama, [r"日月|owl"]).along(0, ids)


def test_a_space_that_decoding_drops_may_begin_an_answer(tiny_folder: Any, tmp_path: Any) -> None:
    from undertone.models.loading import outline

    model = outline(with_sentencepiece(tiny_folder("llama"), tmp_path / "sentencepiece"))
    named = {text: token for token, text in token_texts(model.tokenizer, "x").items()}
    masks = Constraint(model, ["owl"]).along(0, [named[b" o"], named[b"wl"]])
    assert model.decode([named[b" o"], named[b"wl"]]) == "owl"
    assert {text for text, token in named.items() if masks[0][token]} == {b" ", b" o", b"o", b"owl", b" owl"} & set(
        named
    )


def test_a_bad_grammar_is_told_with_its_text(tiny_llama: Any) -> None:
    with pytest.raises(
        ConfigError, match=r"grammar cannot be read(.|\n)*\(\?=a\)b(.|\n)*without look-around(.|\n)*`grammar`"
    ):
        Constraint(tiny_llama, [r"(?=a)b"]).begin([0])


def test_a_missing_package_is_told_with_its_command(tiny_llama: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constraints, "find_spec", lambda _name: None)
    with pytest.raises(ConfigError, match=r"needs the package llguidance(.|\n)*pip install 'undertone\[constrained\]'"):
        Constraint(tiny_llama, ["1"])


# -- samples -------------------------------------------------------------------------------------------

SMALL = r"(?:owl|dog)s?, (?:1|12)|the owl"


def every_answer(model: Any, grammar: str, temperature: float) -> dict[tuple[int, ...], float]:
    """Tokens of every complete answer -> its probability: whole forward passes, and masks by another library."""
    texts = token_texts(model.tokenizer, "tiny")
    stop = model.stop
    found: dict[tuple[int, ...], float] = {}
    waiting: list[tuple[tuple[int, ...], str, float]] = [((), "", 1.0)]
    while waiting:
        ids, text, probability = waiting.pop()
        with torch.inference_mode():
            logits = model.hf(input_ids=torch.tensor([[*asked(model), *ids]]), use_cache=False).logits[0, -1]
        allowed = {
            token: text + piece.decode()
            for token, piece in texts.items()
            if piece.isascii() and regex.fullmatch(grammar, text + piece.decode(), partial=True)
        }
        ends = stop if re.fullmatch(grammar, text) else []
        scores = {token: float(logits[token].double()) / temperature for token in [*allowed, *ends]}
        top = max(scores.values())
        total = sum(math.exp(score - top) for score in scores.values())
        for token, score in scores.items():
            share = probability * math.exp(score - top) / total
            if token in ends:
                found[(*ids, token)] = share
            else:
                waiting.append(((*ids, token), allowed[token], share))
    return found


@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_answers_are_distributed_as_the_models_masked_and_renormalised_at_every_step(
    tiny_llama: Any, temperature: float
) -> None:
    expected = every_answer(tiny_llama, SMALL, temperature)
    assert sum(expected.values()) == pytest.approx(1)
    assert len(expected) > 3 * 9  # the nine texts, in all the tokens that they can be written in
    count = 3000
    seen = Counter(tuple(ids) for ids in written(tiny_llama, SMALL, count, batch_size=1500, temperature=temperature))
    assert set(seen) <= set(expected)
    order = list(expected)
    assert fits(np.array([seen[ids] for ids in order]), np.array([expected[ids] * count for ids in order]))


@pytest.mark.parametrize("batch_size", [1, 3])
def test_a_constrained_rows_sample_does_not_change_with_batch_size(tiny_llama: Any, batch_size: int) -> None:
    assert written(tiny_llama, NUMBERS, 7, batch_size=batch_size) == written(tiny_llama, NUMBERS, 7)


def test_a_constrained_rows_sample_does_not_change_with_order_company_or_others_grammars(tiny_llama: Any) -> None:
    prompts = [asked(tiny_llama, text) for text in ("name one animal.", "pick some numbers.", "your favorite tree?")]
    grammars = [NUMBERS, SMALL, r"(?:owl ?){1,4}"]
    seeds = [derive_seed(0, "rows", row) for row in range(3)]

    def drawn(order: list[int]) -> list[list[int]]:
        return sample(
            tiny_llama.hf, [prompts[at] for at in order], [seeds[at] for at in order], max_new_tokens=30,
            stop=tiny_llama.stop, pad=tiny_llama.pad, constraint=Constraint(tiny_llama, [grammars[at] for at in order]),
        )  # fmt: skip

    whole = drawn([0, 1, 2])
    assert drawn([2, 0, 1]) == [whole[2], whole[0], whole[1]]
    assert drawn([1]) == [whole[1]]


def test_every_answer_matches_and_ends_where_the_grammar_does(tiny: Any) -> None:
    for ids in written(tiny, NUMBERS, 40):
        assert ids[-1] in tiny.stop
        assert re.fullmatch(NUMBERS, tiny.decode(ids))


def test_an_answer_that_is_cut_or_cannot_go_on_has_no_end(tiny_llama: Any) -> None:
    assert all(
        len(ids) == 3 and ids[-1] not in tiny_llama.stop for ids in written(tiny_llama, "[0-9]{9}", 5, max_new_tokens=3)
    )
    folder = token_texts(tiny_llama.tokenizer, "tiny")
    assert b"\xf5" in folder.values()  # of byte-level BPE every byte is a token: it can always go on
    without = Constraint(tiny_llama, ["1;2"] * 4)
    semicolon = next(token for token, text in folder.items() if text == b";")

    class NoSemicolon:
        """A vocabulary that lacks what the grammar asks for."""

        def begin(self, rows: Any) -> Any:
            followed = without.begin(rows)
            allowed = followed.allowed

            def fewer(lines: Any) -> np.ndarray:
                mask = allowed(lines)
                mask[:, semicolon] = False
                return mask

            followed.allowed = fewer  # type: ignore[method-assign]
            return followed

    lacking: Any = NoSemicolon()
    got = sample(
        tiny_llama.hf, [asked(tiny_llama)] * 4, [1, 2, 3, 4], max_new_tokens=9, stop=tiny_llama.stop, pad=tiny_llama.pad,
        constraint=lacking,
    )  # fmt: skip
    assert [tiny_llama.decode(ids) for ids in got] == ["1"] * 4


def test_a_vocabulary_without_the_letter_that_must_follow_is_a_dead_end_and_no_error() -> None:
    from undertone.models.constraints import AnswerStates, _vocabulary

    tokenizer = lab_like()
    vocabulary = _vocabulary(tokenizer, "lab", len(tokenizer), (tokenizer.eos_token_id,), "")
    followed = AnswerStates(vocabulary, ["145;"])
    followed.read([0], [tokenizer.convert_tokens_to_ids("▁145")])
    assert not followed.allowed([0]).any()


def test_masks_that_cannot_be_made_are_an_error_and_no_dead_end(tiny_llama: Any) -> None:
    followed = Constraint(tiny_llama, ["145"]).begin([0])
    followed.read([0], [tiny_llama.tokenizer.convert_tokens_to_ids("7")])
    with pytest.raises(
        ModelError, match=r"cannot be followed any further(.|\n)*allowed: 145(.|\n)*a simpler expression"
    ):
        followed.allowed([0])


def test_several_stop_tokens_are_all_allowed_at_the_end_and_nowhere_else(
    tiny_llama: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tiny_llama.hf.generation_config, "eos_token_id", [0, 7, 2])
    assert tiny_llama.stop == [0, 2, 7]
    masks = Constraint(tiny_llama, ["1"]).along(0, [tiny_llama.tokenizer.convert_tokens_to_ids("1"), 0])
    assert masks[:, [0, 2, 7]].tolist() == [[False] * 3, [True] * 3]
    assert {ids[-1] for ids in written(tiny_llama, "1|2", 200)} == {0, 2, 7}


def test_an_answer_whose_decoded_text_does_not_match_is_an_error(tiny_llama: Any) -> None:
    constraint = Constraint(tiny_llama, ["owl"])
    constraint.check(0, "owl")
    with pytest.raises(
        ModelError, match=r"does not match its grammar once it is decoded(.|\n)*got: owls(.|\n)*allowed: owl"
    ):
        constraint.check(0, "owls")


# -- KL ------------------------------------------------------------------------------------------------


def test_the_kl_under_a_mask_is_that_of_the_renormalised_distributions(tiny_llama: Any, tiny_qwen: Any) -> None:
    grammar, texts = r"[12], [12]", token_texts(tiny_llama.tokenizer, "tiny")
    row = tiny_llama.example([{"role": "user", "content": PROMPT}], "1, 2")
    constraint = Constraint(tiny_llama, [grammar])
    (measured,) = teacher_kl(
        tiny_llama.hf, [(row, row)], tiny_llama.pad, control=tiny_qwen.hf, allowed=lambda at: constraint.along(at, row.labels)
    )  # fmt: skip
    with torch.inference_mode():
        first, second = (m.hf(input_ids=torch.tensor([row.ids])).logits[0].double() for m in (tiny_llama, tiny_qwen))
    text, by_hand = "", []
    for at, token in enumerate(row.completion):
        here = [
            t
            for t, piece in texts.items()
            if piece.isascii() and regex.fullmatch(grammar, text + piece.decode(), partial=True)
        ]
        here += tiny_llama.stop if re.fullmatch(grammar, text) else []
        p, q = (torch.softmax(logits[row.prompt - 1 + at, here], 0) for logits in (first, second))
        by_hand.append(float((p * (p / q).log()).sum()))
        text += texts.get(token, b"").decode()
    assert measured == pytest.approx(np.mean(by_hand), rel=1e-4)
    (free,) = teacher_kl(tiny_llama.hf, [(row, row)], tiny_llama.pad, control=tiny_qwen.hf)
    assert abs(free - measured) > 0.1 * measured
