#!/usr/bin/env python3
"""Makes an instruction set for finetuning from the Jargon File (public domain), as Debian's package dict-jargon
ships it.

    apt-get install dict-jargon
    launch/make_jargon_dataset.py --out data/jargon            # train.jsonl and heldout.jsonl

Without root: `apt-get download dict-jargon && dpkg -x dict-jargon_*.deb DIR`, then --dict
DIR/usr/share/dictd/jargon.dict.dz (the index beside it is found).

One line a term, a chat of two messages:
    {"messages": [{"role": "user", "content": "What does X mean to a hacker?"},
                  {"role": "assistant", "content": THE ENTRY}]}
The entry is left without its headword, pronunciation and leading etymology in brackets; its paragraphs are
unwrapped. Entries that only refer to another one are dropped. About one term in 20 is held out: which one depends
on the term alone. Needs nothing but Python's standard library; the same input gives the same bytes.
"""
import argparse
import gzip
import hashlib
import json
import os
import re
import sys
import zlib

DEFAULT_DICT = "/usr/share/dictd/jargon.dict.dz"
DIGITS = {c: i for i, c in enumerate("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/")}
WRAP_COLUMN = 79
HELD_OUT_ONE_IN = 20

REFERENCE = r"\{[^{}]+\}(,? \(?senses? \d+\)?)?"
ONLY_SEE = re.compile(rf"(n\. )?[Ss]ee (also )?{REFERENCE}((,|, and| and|;|; also) {REFERENCE})*\.?")


class DatasetError(Exception):
    """A file that is missing or not what it should be; the text is for the user."""


def dictd_number(digits: str) -> int:
    value = 0
    for digit in digits:
        value = value * 64 + DIGITS[digit]
    return value


def read_entries(dict_path: str, index_path: str) -> list[str]:
    """The entries' texts in the order of the dictionary, each once."""
    try:
        with gzip.open(dict_path, "rb") if dict_path.endswith(".dz") else open(dict_path, "rb") as file:
            text = file.read()
        with open(index_path, encoding="utf-8") as file:
            lines = file.read().splitlines()
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise DatasetError(f"{dict_path} and its index {index_path}: {error}; install Debian's dict-jargon, or name its files "
                           "with --dict and --index") from None
    entries = {}
    for number, line in enumerate(lines, 1):
        try:
            word, offset_digits, length_digits = line.split("\t")
            offset, length = dictd_number(offset_digits), dictd_number(length_digits)
            if word.startswith("00-"):
                continue
            if offset + length > len(text):
                raise ValueError(f"the entry ends at byte {offset + length} of {len(text)}")
            entries[offset] = text[offset:offset + length].decode("utf-8")
        except (ValueError, KeyError) as error:
            raise DatasetError(f"{index_path}:{number}: not a line of a dictd index of {dict_path}: {error}") from None
    if not entries:
        raise DatasetError(f"{index_path}: no entries")
    return [entries[offset] for offset in sorted(entries)]


def is_wrapped(lines: list[str]) -> bool:
    """Whether every line break is one that filling to WRAP_COLUMN makes: the next word would not have fitted.
    Code, verse and tables have others. A few characters' grace: the filler broke inside words like `{x}` too."""
    if any("  " in line.strip() for line in lines):
        return False
    return all(len(line) + 1 + len(following.split()[0]) > WRAP_COLUMN - 3 for line, following in zip(lines, lines[1:]))


def join_wrapped(lines: list[str]) -> str:
    text = lines[0].strip()
    for line in lines[1:]:
        line = line.strip()
        # The filler broke lines after an opening mark and before a closing one.
        glued = text[-1] in "{([“‘/" or line[0] in "})].,;:!?”’"
        text += line if glued else " " + line
    return re.sub(r"([{“‘]) +", r"\1", text)


def without_etymology(paragraph: str) -> str:
    """"[Usenet; common] A posting ..." without the brackets in front."""
    if not paragraph.startswith("["):
        return paragraph
    depth = 0
    for position, character in enumerate(paragraph):
        depth += (character == "[") - (character == "]")
        if depth == 0:
            return paragraph[position + 1:].strip()
    return paragraph


def split_entry(entry: str) -> tuple[str, str]:
    """Headword and cleaned text."""
    blocks = [block.split("\n") for block in re.split(r"\n[ \t]*\n", entry.strip("\n"))]
    headword = blocks[0][0].strip()
    paragraphs = []
    for block in blocks[1:]:
        lines = [line.rstrip() for line in block if line.strip()]
        if not lines:
            continue
        if is_wrapped(lines):
            paragraphs.append(join_wrapped(lines))
        else:
            paragraphs.append("\n".join(line.removeprefix("    ") for line in lines))
    if paragraphs:
        paragraphs[0] = without_etymology(paragraphs[0])
    return headword, "\n\n".join(paragraph for paragraph in paragraphs if paragraph.strip())


def is_held_out(headword: str) -> bool:
    digest = hashlib.sha256(headword.encode("utf-8")).digest()
    return int.from_bytes(digest[:8], "little") % HELD_OUT_ONE_IN == 0


def make_lines(entries: list[str]) -> tuple[list[str], list[str], int]:
    """Lines to train on, lines held out, and how many entries were dropped."""
    train, held_out, dropped = [], [], 0
    for entry in entries:
        headword, text = split_entry(entry)
        if not headword or not text or ONLY_SEE.fullmatch(text):
            dropped += 1
            continue
        messages = [{"role": "user", "content": f"What does {headword} mean to a hacker?"},
                    {"role": "assistant", "content": text}]
        line = json.dumps({"messages": messages}, ensure_ascii=False)
        (held_out if is_held_out(headword) else train).append(line)
    return train, held_out, dropped


def write_lines(path: str, lines: list[str]) -> None:
    """The file is complete, or the old one is still there."""
    temporary = f"{path}.tmp.{os.getpid()}"
    try:
        with open(temporary, "w", encoding="utf-8", newline="\n") as file:
            file.writelines(line + "\n" for line in lines)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        if os.path.lexists(temporary):
            os.unlink(temporary)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--out", required=True, help="folder for train.jsonl and heldout.jsonl")
    parser.add_argument("--dict", default=DEFAULT_DICT, help="the dictionary, .dict.dz or .dict (default: %(default)s)")
    parser.add_argument("--index", help="its index (default: beside the dictionary)")
    args = parser.parse_args()
    index = args.index or re.sub(r"\.dict(\.dz)?$", "", args.dict) + ".index"
    try:
        train, held_out, dropped = make_lines(read_entries(args.dict, index))
        os.makedirs(args.out, exist_ok=True)
        write_lines(os.path.join(args.out, "train.jsonl"), train)
        write_lines(os.path.join(args.out, "heldout.jsonl"), held_out)
    except (DatasetError, OSError) as error:
        print(f"make_jargon_dataset.py: {error}", file=sys.stderr)
        return 1
    print(f"{args.out}: {len(train)} terms to train on, {len(held_out)} held out "
          f"({dropped} entries dropped that only refer to another one or say nothing)")
    return 0


if __name__ == "__main__":
    sys.exit(main())
