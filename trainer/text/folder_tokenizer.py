"""The tokenizer of a Hugging Face folder: tokenizer.json, and beside it tokenizer_config.json,
special_tokens_map.json, generation_config.json and chat_template.jinja where they exist."""
import json
import os
from typing import Any

import tokenizers
from tokenizers import AddedToken

from .chat_template import ChatTemplate
from .errors import DataError, escaped
from .tokenizer import TextTokenizer

# The variables that transformers passes to templates.
SPECIAL_NAMES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


def _read_json(path: str) -> dict[str, Any]:
    """{} when the file does not exist."""
    try:
        with open(path, encoding="utf-8") as file:
            value = json.load(file)
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{escaped(path, 4096)}: {escaped(error)}") from None
    if not isinstance(value, dict):
        raise DataError(f"{escaped(path, 4096)}: want a JSON object")
    return value


def _token_text(value: Any, where: str) -> str | None:
    """A special token stands as a string or as an object with its content."""
    if isinstance(value, dict):
        value = value.get("content")
    if value is None or isinstance(value, str):
        return value
    raise DataError(f"{where}: got {type(value).__name__}, want a token")


def _special_tokens(folder: str, config: dict[str, Any]) -> dict[str, str]:
    fallback = _read_json(os.path.join(folder, "special_tokens_map.json"))
    tokens = {}
    for name in SPECIAL_NAMES:
        text = _token_text(config.get(name, fallback.get(name)), f"{escaped(folder, 4096)}: {name}")
        if text is not None:
            tokens[name] = text
    return tokens


def _add_missing_tokens(tokenizer: tokenizers.Tokenizer, config: dict[str, Any], where: str) -> None:
    """tokenizer_config.json may list added tokens that tokenizer.json does not mark as such."""
    decoder = config.get("added_tokens_decoder", {})
    if not isinstance(decoder, dict):
        raise DataError(f"{where}: added_tokens_decoder: want an object")
    known = {token.content for token in tokenizer.get_added_tokens_decoder().values()}
    for number, value in sorted(decoder.items(), key=lambda item: str(item[0]).zfill(12)):
        text = _token_text(value, f"{where}: added_tokens_decoder")
        if text is None or text in known:
            continue
        flags = {name: bool(value.get(name, False)) for name in ("single_word", "lstrip", "rstrip", "normalized",
                                                                  "special")} if isinstance(value, dict) else {}
        special = flags.pop("special", True)
        add = tokenizer.add_special_tokens if special else tokenizer.add_tokens
        add([AddedToken(text, special=special, **flags)])
        if str(tokenizer.token_to_id(text)) != str(number):
            raise DataError(f"{where}: added_tokens_decoder: '{escaped(text)}' has the id {escaped(number)}, but "
                            f"{tokenizer.token_to_id(text)} in tokenizer.json")


def _template_sources(folder: str, config: dict[str, Any], where: str) -> dict[str, str]:
    """Name -> template; chat_template.jinja goes before tokenizer_config.json."""
    path = os.path.join(folder, "chat_template.jinja")
    if os.path.exists(path):
        try:
            with open(path, encoding="utf-8") as file:
                return {"default": file.read()}
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(f"{escaped(path, 4096)}: {escaped(error)}") from None
    value = config.get("chat_template")
    if value is None:
        return {}
    if isinstance(value, str):
        return {"default": value}
    if isinstance(value, list) and all(isinstance(entry, dict) and isinstance(entry.get("name"), str) and
                                       isinstance(entry.get("template"), str) for entry in value):
        sources = {entry["name"]: entry["template"] for entry in value}
        if "default" in sources:
            return sources
        raise DataError(f"{where}: chat_template: several templates and none is called 'default': "
                        f"{escaped(', '.join(sources))}")
    raise DataError(f"{where}: chat_template: want a string or a list of {{name, template}}")


def _prefix_ids(tokenizer: tokenizers.Tokenizer, bos_id: int | None) -> list[int]:
    """BOS if the tokenizer's own post-processor puts it in front."""
    ids = tokenizer.encode("a", add_special_tokens=True).ids
    return [bos_id] if bos_id is not None and ids[:1] == [bos_id] else []


def _stop_ids(folder: str, eos_id: int | None, vocab_size: int) -> list[int]:
    path = os.path.join(folder, "generation_config.json")
    value = _read_json(path).get("eos_token_id")
    listed = value if isinstance(value, list) else [] if value is None else [value]
    if not all(isinstance(token, int) and 0 <= token < vocab_size for token in listed):
        raise DataError(f"{escaped(path, 4096)}: eos_token_id: {escaped(value)}, want ids below {vocab_size}")
    return list(dict.fromkeys(([] if eos_id is None else [eos_id]) + listed))


def load_folder_tokenizer(folder: str) -> TextTokenizer:
    where = escaped(folder, 4096)
    path = os.path.join(folder, "tokenizer.json")
    if not os.path.exists(path):
        raise DataError(f"{where}: has no tokenizer.json; save the model's fast tokenizer into the folder")
    try:
        tokenizer = tokenizers.Tokenizer.from_file(path)
    except Exception as error:  # The library raises bare Exception.
        raise DataError(f"{escaped(path, 4096)}: {escaped(error)}") from None
    config = _read_json(os.path.join(folder, "tokenizer_config.json"))
    config_where = escaped(os.path.join(folder, "tokenizer_config.json"), 4096)
    _add_missing_tokens(tokenizer, config, config_where)
    tokenizer.no_truncation()
    tokenizer.no_padding()
    special = _special_tokens(folder, config)
    ids = {name: tokenizer.token_to_id(text) for name, text in special.items()}
    for name in ("bos_token", "eos_token"):
        if name in special and ids[name] is None:
            raise DataError(f"{config_where}: {name} '{escaped(special[name])}' is not in tokenizer.json")
    sources = _template_sources(folder, config, config_where)
    templates = {name: ChatTemplate(source, where, special) for name, source in sources.items()}
    marked = {number for number, token in tokenizer.get_added_tokens_decoder().items() if token.special}
    return TextTokenizer(
        where=where,
        tokenizer=tokenizer,
        prefix_ids=_prefix_ids(tokenizer, ids.get("bos_token")),
        eos_id=ids.get("eos_token"),
        stop_ids=_stop_ids(folder, ids.get("eos_token"), tokenizer.get_vocab_size(with_added_tokens=True)),
        special_ids=frozenset(marked | {number for number in ids.values() if number is not None}),
        special_tokens=special,
        template=templates.get("default"),
        template_with_tools=templates.get("tool_use"))
