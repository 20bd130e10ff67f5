"""A model's tokenizer, special tokens and chat template, whatever file they come from.

    tokenizer = load_tokenizer("model.gguf")           # or a Hugging Face folder
    tokenizer.encode(["some text"])[0].ids
"""
import os
from dataclasses import dataclass, field

import tokenizers
import tokenizers.processors

from .chat_template import ChatTemplate
from .errors import DataError, escaped


@dataclass
class TextTokenizer:
    """Prefix tokens (BOS) are not added by `encode`: chat templates write them out, and for other text the caller
    puts `prefix_ids` in front."""
    where: str
    tokenizer: tokenizers.Tokenizer
    prefix_ids: list[int]
    eos_id: int | None
    stop_ids: list[int]
    special_ids: frozenset[int]
    special_tokens: dict[str, str]  # transformers' names: {"bos_token": "<s>", ...}
    template: ChatTemplate | None
    template_with_tools: ChatTemplate | None = None
    vocab_size: int = field(init=False)

    def __post_init__(self) -> None:
        # Offsets must cover every character (some post-processors trim spaces off), and no token may be added.
        self.tokenizer.post_processor = tokenizers.processors.Sequence([])
        self.vocab_size = max(self.tokenizer.get_vocab(with_added_tokens=True).values()) + 1
        turn_end = self._end_of_turn_id()
        if turn_end is not None and turn_end not in self.stop_ids:
            self.stop_ids.append(turn_end)

    def encode(self, texts: list[str]) -> list[tokenizers.Encoding]:
        """Names of special tokens in a text become those tokens, as in transformers."""
        try:
            return self.tokenizer.encode_batch(texts, add_special_tokens=False)
        except Exception as error:  # The library raises bare Exception.
            raise DataError(f"{self.where}: the tokenizer refuses a text: {escaped(error)}") from None

    def decode(self, ids: list[int]) -> str:
        """Special tokens are left out."""
        return self.tokenizer.decode(ids, skip_special_tokens=True)

    def render(self, messages: list[dict], tools: list[dict] | None = None, add_generation_prompt: bool = False) -> str:
        template = self.template_with_tools if tools is not None and self.template_with_tools else self.template
        if template is None:
            raise DataError(f"{self.where}: has no chat template, so it can't be used with chat messages")
        return template.render(messages, tools, add_generation_prompt)

    def _end_of_turn_id(self) -> int | None:
        """The special token that the template writes after what the assistant says: a model that was trained on
        this template stops with it, whatever its eos_token is."""
        if self.template is None:
            return None
        probe = [{"role": "user", "content": "a"}]
        try:
            asked = self.render(probe, add_generation_prompt=True)
            answered = self.render(probe + [{"role": "assistant", "content": "b"}])
        except DataError:
            return None
        if not answered.startswith(asked):
            return None
        ids = self.encode([answered[len(asked):]])[0].ids
        return next((token for token in ids if token in self.special_ids), None)


def load_tokenizer(path: str) -> TextTokenizer:
    """Errors: DataError naming the file and what is missing or can't be used."""
    # Each loader is imported where it is needed: starting up is most of the time of a small job.
    if os.path.isdir(path):
        from .folder_tokenizer import load_folder_tokenizer
        return load_folder_tokenizer(path)
    if not os.path.exists(path):
        raise DataError(f"{escaped(path)}: does not exist; want a .gguf file or a Hugging Face folder")
    from .gguf_tokenizer import load_gguf_tokenizer
    return load_gguf_tokenizer(path)
