"""Encodes and decodes for `bitshard generate`: requests on standard input, answers on standard output, a JSON object
a line.

    {"ready": {"stop_tokens": [2], "vocab_size": 49152}}                  (first, without a request)
    {"render": [{"role": "user", "content": "Hi"}]}     -> {"tokens": [1, 4093, ...]}
    {"encode": "text"}                                  -> {"tokens": [...]}
    {"decode": [19556]}                                 -> {"text": "Hello"}
    {"export": "folder"}                                -> {"files": ["tokenizer.json", ...]}
    anything that can't be answered                     -> {"error": "why", "exit_code": 3}
"""
import json
import sys
from typing import Any

from .errors import DataError, TextError, escaped
from .tokenizer import TextTokenizer, load_tokenizer


def _tokens(tokenizer: TextTokenizer, text: str) -> dict[str, Any]:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise DataError("the text holds half of a surrogate pair") from None
    return {"tokens": tokenizer.encode([text])[0].ids}


def answer(tokenizer: TextTokenizer, tokenizer_path: str, request: dict[str, Any]) -> dict[str, Any]:
    if "render" in request:
        return _tokens(tokenizer, tokenizer.render(request["render"], add_generation_prompt=True))
    if "encode" in request:
        return _tokens(tokenizer, request["encode"])
    if "decode" in request:
        ids = request["decode"]
        if not all(isinstance(token, int) and 0 <= token < tokenizer.vocab_size for token in ids):
            raise DataError(f"decode: want token ids below {tokenizer.vocab_size}")
        return {"text": tokenizer.decode(ids)}
    if "export" in request:
        from .export import export_tokenizer
        return {"files": export_tokenizer(tokenizer, tokenizer_path, request["export"])}
    raise DataError(f"unknown request: {escaped(', '.join(request))}")


def serve(tokenizer_path: str) -> None:
    tokenizer = load_tokenizer(tokenizer_path)
    ready = {"stop_tokens": tokenizer.stop_ids, "vocab_size": tokenizer.vocab_size}
    print(json.dumps({"ready": ready}), flush=True)
    for line in sys.stdin:
        try:
            reply = answer(tokenizer, tokenizer_path, json.loads(line))
        except TextError as error:
            reply = {"error": str(error), "exit_code": error.exit_code}
        print(json.dumps(reply), flush=True)
