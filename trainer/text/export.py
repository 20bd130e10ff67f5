"""Writes a tokenizer's files into an exported Hugging Face folder, so that transformers loads it from there."""
import json
import os

from .errors import DataError, escaped
from .gguf_tokenizer import load_gguf_tokenizer, special_tokens_and_template

FOLDER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja",
                "added_tokens.json", "vocab.json", "merges.txt", "tokenizer.model")


def _write(path: str, data: bytes) -> None:
    """Complete or not there."""
    temporary = f"{path}.tmp.{os.getpid()}"
    try:
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise DataError(f"{escaped(path, 4096)}: {escaped(error)}") from None
    finally:
        if os.path.exists(temporary):
            os.unlink(temporary)


def export_tokenizer(source: str, folder: str) -> list[str]:
    """Names of the files written. A folder's files are copied as they are; a GGUF's tokenizer is written as
    tokenizer.json with its special tokens and chat template."""
    files: dict[str, bytes] = {}
    if os.path.isdir(source):
        for name in FOLDER_FILES:
            path = os.path.join(source, name)
            if os.path.exists(path):
                with open(path, "rb") as file:
                    files[name] = file.read()
    else:
        tokens, template = special_tokens_and_template(source)
        config = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False, **tokens}
        if template is not None:
            config["chat_template"] = template
        files["tokenizer.json"] = load_gguf_tokenizer(source).tokenizer.to_str().encode()
        files["tokenizer_config.json"] = (json.dumps(config, indent=2, ensure_ascii=False) + "\n").encode()
    for name, data in files.items():
        _write(os.path.join(folder, name), data)
    return sorted(files)
