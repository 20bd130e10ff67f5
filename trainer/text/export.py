"""Writes a tokenizer's files into an exported Hugging Face folder, so that transformers loads it from there."""
import json
import os

import tokenizers
from tokenizers import processors

from .errors import DataError, escaped, storage_error
from .tokenizer import TextTokenizer

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
        raise storage_error(path, error) from None
    finally:
        if os.path.exists(temporary):
            os.unlink(temporary)


def _tokenizer_json(tokenizer: TextTokenizer) -> str:
    """With the BOS in front that the GGUF asks for: a post-processor says so in this format."""
    copy = tokenizers.Tokenizer.from_str(tokenizer.tokenizer.to_str())
    if tokenizer.prefix_ids:
        bos = tokenizer.special_tokens["bos_token"]
        copy.post_processor = processors.TemplateProcessing(single=f"{bos} $A", pair=f"{bos} $A {bos} $B",
                                                            special_tokens=[(bos, tokenizer.prefix_ids[0])])
    return copy.to_str()


def _copied_files(source: str) -> dict[str, bytes]:
    files = {}
    for name in FOLDER_FILES:
        try:
            with open(os.path.join(source, name), "rb") as file:
                files[name] = file.read()
        except FileNotFoundError:
            continue
        except OSError as error:
            raise DataError(f"{escaped(os.path.join(source, name), 4096)}: {error.strerror}") from None
    return files


def export_tokenizer(tokenizer: TextTokenizer, source: str, folder: str) -> list[str]:
    """Names of the files written. A folder's files are copied as they are; a GGUF's tokenizer is written as
    tokenizer.json with its special tokens and chat template. `tokenizer` was loaded from `source`."""
    if os.path.isdir(source):
        files = _copied_files(source)
    else:
        config = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False,
                  **tokenizer.special_tokens}
        if tokenizer.template is not None:
            config["chat_template"] = tokenizer.template.source
        files = {"tokenizer.json": _tokenizer_json(tokenizer).encode(),
                 "tokenizer_config.json": (json.dumps(config, indent=2, ensure_ascii=False) + "\n").encode()}
    for name, data in files.items():
        _write(os.path.join(folder, name), data)
    return sorted(files)
