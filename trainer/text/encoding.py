"""Samples as tokens, and which of them count in the loss.

A chat is rendered as a whole. What the assistant says in message i lies between the end of
render(messages[:i], add_generation_prompt=True) and the end of render(messages[:i + 1]); both must be prefixes of the
whole, else the template rewrites history and there is no right answer. Tokens that begin there count, up to the
turn's last special token (the end-of-turn token; a newline after it does not). Everything goes by position: a
token's id never decides, so a pad token that is also the EOS does no harm.
"""
from dataclasses import dataclass

import tokenizers

from .errors import DataError
from .formats import Chat, Completion, Sample
from .tokenizer import TextTokenizer


@dataclass
class EncodedSample:
    where: str
    ids: list[int]
    trained: list[bool]
    prompt: str | None  # What the user says, where it is one turn.


@dataclass
class _Text:
    """A text to encode with the character ranges that count."""
    text: str
    spans: list[tuple[int, int]]
    is_chat: bool


def _chat_text(tokenizer: TextTokenizer, chat: Chat) -> _Text:
    try:
        whole = tokenizer.render(chat.messages, chat.tools)
        spans = []
        for turn, message in enumerate(chat.messages):
            if message["role"] != "assistant" or turn < chat.first_trained:
                continue
            asked = tokenizer.render(chat.messages[:turn], chat.tools, add_generation_prompt=True)
            answered = tokenizer.render(chat.messages[:turn + 1], chat.tools)
            if not answered.startswith(asked) or not whole.startswith(answered):
                raise DataError(f"turn {turn + 1} (assistant): the chat template writes earlier turns differently "
                                "once later ones follow, so what is to be trained can't be told apart; use a "
                                "template that leaves earlier turns as they are")
            spans.append((len(asked), len(answered)))
        return _Text(whole, spans, True)
    except DataError as error:
        raise DataError(f"{chat.where}: {error}") from None


def _sample_text(tokenizer: TextTokenizer, sample: Sample) -> _Text:
    if isinstance(sample, Chat):
        result = _chat_text(tokenizer, sample)
    else:
        if tokenizer.eos_id is None:
            raise DataError(f"{tokenizer.where}: the tokenizer has no EOS token, which has to end each sample")
        text = sample.prompt + sample.completion
        result = _Text(text, [(len(sample.prompt), len(text))], False)
    try:
        result.text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise DataError(f"{sample.where}: character {error.start} is half of a surrogate pair, no text") from None
    return result


def _trained_tokens(encoding: tokenizers.Encoding, text: _Text, special_ids: frozenset[int]) -> list[bool]:
    starts = [begin for begin, _ in encoding.offsets]
    trained = [False] * len(starts)
    for begin, end in text.spans:
        inside = [position for position, start in enumerate(starts) if begin <= start < end]
        if text.is_chat:
            last_special = next((n for n in reversed(range(len(inside))) if encoding.ids[inside[n]] in special_ids), None)
            if last_special is not None:
                inside = inside[:last_special + 1]
        for position in inside:
            trained[position] = True
    return trained


def encode_samples(tokenizer: TextTokenizer, samples: list[Sample], train_on_inputs: bool) -> list[EncodedSample]:
    """One EncodedSample each. The first token never counts: nothing comes before it that could predict it."""
    texts = [_sample_text(tokenizer, sample) for sample in samples]
    encodings = tokenizer.encode([text.text for text in texts])
    result = []
    for sample, text, encoding in zip(samples, texts, encodings):
        ids, trained = encoding.ids, _trained_tokens(encoding, text, tokenizer.special_ids)
        if isinstance(sample, Completion):
            ids = tokenizer.prefix_ids + ids + [tokenizer.eos_id]
            trained = [False] * len(tokenizer.prefix_ids) + trained + [True]
        if train_on_inputs:
            trained = [True] * len(ids)
        trained[:1] = [False] * len(ids[:1])
        result.append(EncodedSample(sample.where, ids, trained, sample.user_prompt()))
    return result
