"""The tokenizer inside a GGUF file.

`tokenizer.ggml.pre` names how text is split before the byte-pair merges; the patterns are llama.cpp's
(src/llama-vocab.cpp, llm_tokenizer_bpe), and so are the tokens: no Unicode normalisation. (transformers' GGUF
conversion splits by GPT-2's pattern whatever the name says.)
"""
import re
from typing import Any

import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, pre_tokenizers

from .chat_template import ChatTemplate
from .errors import DataError, escaped
from .gguf_metadata import read_metadata
from .tokenizer import TextTokenizer

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6

CONTRACTIONS = "(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])"
TAIL = r"|\s*[\r\n]+|\s+(?!\S)|\s+"
LLAMA3 = CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*" + TAIL
QWEN2 = CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*" + TAIL
QWEN35 = CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*" + TAIL
GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
DIGIT = r"\p{N}"

# Name -> patterns, applied one after another, each splitting what the one before left.
PRE_TOKENIZERS = {
    **dict.fromkeys(("gpt-2", "phi-2", "mpt", "olmo"), (GPT2,)),
    **dict.fromkeys(("smollm", "starcoder", "refact", "command-r", "codeshell"), (DIGIT, GPT2)),
    **dict.fromkeys(("llama3", "llama-v3", "llama-bpe"), (LLAMA3,)),
    **dict.fromkeys(("qwen2", "deepseek-r1-qwen", "stablelm2"), (QWEN2,)),
    "qwen35": (QWEN35,),
}
# These take a piece that is a token as it stands, without going through the merges, and begin with BOS unless told
# otherwise.
WHOLE_TOKENS_FIRST = ("llama3", "llama-v3", "llama-bpe")

# transformers' names -> GGUF's.
SPECIAL_TOKENS = {"bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "pad_token": "padding"}


class _Metadata:
    """Typed access with errors that name file and key."""

    def __init__(self, path: str):
        self.path = escaped(path, 4096)
        self.values = read_metadata(path)

    def get(self, key: str, kind: type, default: Any = None) -> Any:
        value = self.values.get(key, default)
        if value is not None and not isinstance(value, kind):
            raise DataError(f"{self.path}: {key}: got {type(value).__name__}, want {kind.__name__}")
        return value

    def need(self, key: str, kind: type) -> Any:
        value = self.get(key, kind)
        if value is None:
            raise DataError(f"{self.path}: {key} is missing: the file holds no tokenizer that can be used")
        return value

    def token_id(self, name: str, num_tokens: int) -> int | None:
        key = f"tokenizer.ggml.{name}_token_id"
        value = self.get(key, int)
        if value is not None and not 0 <= value < num_tokens:
            raise DataError(f"{self.path}: {key}: {value}, want less than {num_tokens}, the number of tokens")
        return value


def _make_bpe(metadata: _Metadata, tokens: list[str], types: list[int], pre: str) -> tokenizers.Tokenizer:
    vocab = {token: number for number, token in enumerate(tokens)}
    if len(vocab) != len(tokens):
        raise DataError(f"{metadata.path}: tokenizer.ggml.tokens: a token stands twice")
    merges = []
    for merge in metadata.need("tokenizer.ggml.merges", list):
        left, _, right = str(merge).partition(" ")
        if not left or not right:
            raise DataError(f"{metadata.path}: tokenizer.ggml.merges: '{escaped(merge)}' is no pair of tokens")
        merges.append((left, right))
    try:
        model = models.BPE(vocab=vocab, merges=merges, fuse_unk=False, ignore_merges=pre in WHOLE_TOKENS_FIRST)
    except Exception as error:  # The library raises bare Exception.
        raise DataError(f"{metadata.path}: tokenizer.ggml.merges: {escaped(error)}") from None
    tokenizer = tokenizers.Tokenizer(model)
    steps = [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in PRE_TOKENIZERS[pre]]
    steps.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False))
    # A byte that is no token is left out, and what stands on its two sides must not be merged (the library would).
    absent = sorted(set(pre_tokenizers.ByteLevel.alphabet()) - set(vocab))
    if absent:
        steps.append(pre_tokenizers.Split(Regex("|".join(map(re.escape, absent))), "removed"))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(steps)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False)
                                  for token, kind in zip(tokens, types) if kind == CONTROL and token])
    tokenizer.add_tokens([AddedToken(token, special=False, normalized=False)
                          for token, kind in zip(tokens, types) if kind == USER_DEFINED and token])
    return tokenizer


def load_gguf_tokenizer(path: str) -> TextTokenizer:
    metadata = _Metadata(path)
    model = metadata.need("tokenizer.ggml.model", str)
    pre = metadata.get("tokenizer.ggml.pre", str, "default")
    if model != "gpt2":
        raise DataError(f"{metadata.path}: tokenizer.ggml.model '{escaped(model)}' is not supported, only 'gpt2' "
                        "(byte-level BPE); use the model's Hugging Face folder")
    if pre not in PRE_TOKENIZERS:
        raise DataError(f"{metadata.path}: tokenizer.ggml.pre '{escaped(pre)}' is not supported, only "
                        f"{', '.join(sorted(PRE_TOKENIZERS))}; use the model's Hugging Face folder")
    tokens = metadata.need("tokenizer.ggml.tokens", list)
    if not tokens or not all(isinstance(token, str) for token in tokens):
        raise DataError(f"{metadata.path}: tokenizer.ggml.tokens: want strings")
    types = metadata.get("tokenizer.ggml.token_type", list, [NORMAL] * len(tokens))
    if len(types) != len(tokens):
        raise DataError(f"{metadata.path}: tokenizer.ggml.token_type: {len(types)} values for {len(tokens)} tokens")
    ids = {name: metadata.token_id(name, len(tokens)) for name in ("bos", "eos", "unknown", "padding", "eot", "eom")}
    add_bos = metadata.get("tokenizer.ggml.add_bos_token", bool, pre in WHOLE_TOKENS_FIRST)
    if add_bos and ids["bos"] is None:
        raise DataError(f"{metadata.path}: tokenizer.ggml.add_bos_token is true, but there is no bos_token_id")
    special_tokens = {name: tokens[ids[key]] for name, key in SPECIAL_TOKENS.items() if ids[key] is not None}
    source = metadata.get("tokenizer.chat_template", str)
    return TextTokenizer(
        where=metadata.path,
        tokenizer=_make_bpe(metadata, tokens, types, pre),
        prefix_ids=[ids["bos"]] if add_bos else [],
        eos_id=ids["eos"],
        stop_ids=list(dict.fromkeys(ids[name] for name in ("eos", "eot", "eom") if ids[name] is not None)),
        special_ids=frozenset(number for number, kind in enumerate(types) if kind == CONTROL),
        special_tokens=special_tokens,
        template=None if source is None else ChatTemplate(source, metadata.path, special_tokens))
