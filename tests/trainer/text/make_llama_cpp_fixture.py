#!/usr/bin/env python3
"""Writes fixtures/llama_cpp_ids.json.xz: what llama.cpp, an independent reader of the same GGUF file, makes of real
and of hostile text. gguf_tokenizer_test.py compares trainer/text with it. Made once, with

    python3 -m venv /tmp/llama && /tmp/llama/bin/pip install --no-binary llama-cpp-python llama-cpp-python==0.3.36
    apt-get install dict-jargon
    /tmp/llama/bin/python tests/trainer/text/make_llama_cpp_fixture.py .deps/models/SmolLM2-135M-Instruct.Q4_1.gguf

The building takes some ten minutes. Lines come from Debian's dict-jargon (public domain), from the licences in
/usr/share/common-licenses and from Python's standard library, so that prose, legal text and code are all there; the
hostile ones are made here, from a fixed seed.
"""
import argparse
import glob
import gzip
import json
import lzma
import os
import random
import unicodedata

import llama_cpp

FIXTURE = os.path.join(os.path.dirname(os.path.abspath(__file__)), "fixtures", "llama_cpp_ids.json.xz")
SPACES = [chr(c) for c in range(0x110000) if chr(c).isspace()] + ["\u180e", "\u200b", "\ufeff", "\u2060"]
WORDS = ["don't", "DON'T", "it's", "we'Ve", "'s", "'\u017f", "I'll", "'LL", "x'", "naïve", "Straße", "İstanbul", "ǅ",
         "ﬁ", "한국어", "日本語", "中文字", "हिन्दी", "עברית", "العربية", "ไทย", "🏳️‍🌈", "👩‍👩‍👧‍👦", "e\u0301", "Z͑ͫa̴l̵g̶o",
         "<|im_end|>", "<|im_start|>", "<|im_start", "<|endoftext|>", "<repo_name>", "<unk>", "</s>", "<0x0A>", "Ġ", "Ċ",
         "0x1F", "3.14159", "1,000,000", "２０２６", "x²", "½", "Ⅻ", "٣٤", "๒", "\u0000", "\u007f", "\u0085", "\u2028",
         "\u202e", "\ufffd", "\uffff", "\U0010ffff", "\t", "\r\n", "\n\n", "\r", "    ", "  \n  ", "...", "--", "=>", "{}"]


def lines_of(text: str, most: int, seed: int) -> list[str]:
    lines = [line for line in text.split("\n") if line.strip()]
    random.Random(seed).shuffle(lines)
    return lines[:most]


def real_lines() -> list[str]:
    with gzip.open("/usr/share/dictd/jargon.dict.dz", "rt", encoding="utf-8") as file:
        jargon = file.read()
    licences, code = "", ""
    for path in sorted(glob.glob("/usr/share/common-licenses/*")):
        with open(path, encoding="utf-8") as file:
            licences += file.read()
    for path in sorted(glob.glob("/usr/lib/python3.11/*.py")):
        with open(path, encoding="utf-8") as file:
            code += file.read()
    entries = [entry[:2000] for entry in jargon.split("\n\n\n")]
    return (lines_of(jargon, 8000, 1) + lines_of(licences, 1000, 2) + lines_of(code, 1500, 3) +
            random.Random(4).sample(entries, min(40, len(entries))) +
            [code[at:at + 400] for at in range(0, 80000, 4000)])


def assigned(generator: random.Random) -> str:
    """A random character that every Unicode table since 12 knows the class of, surrogates left out."""
    while True:
        character = chr(generator.choice([generator.randrange(0x3000), generator.randrange(0x20000)]))
        if unicodedata.category(character) not in ("Cn", "Cs", "Co"):
            return character


def hostile_lines() -> list[str]:
    generator = random.Random(5)
    numbers = [chr(c) for c in range(0x110000) if unicodedata.category(chr(c)).startswith("N")]
    lines = [f"a{c}b 1{c} {c}{c}" for c in numbers + SPACES]
    lines += WORDS + [space * count + "x" for space in SPACES for count in (1, 2, 5)]
    for _ in range(700):
        lines.append("".join(generator.choice(WORDS + SPACES + [" "] * 20) for _ in range(generator.randrange(1, 14))))
    for _ in range(700):
        lines.append("".join(assigned(generator) for _ in range(generator.randrange(1, 16))))
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("model", help="SmolLM2-135M-Instruct.Q4_1.gguf")
    args = parser.parse_args()
    model = llama_cpp.Llama(args.model, vocab_only=True, verbose=False)
    real, hostile = real_lines(), hostile_lines()
    ids = [model.tokenize(line.encode("utf-8"), add_bos=False, special=True) for line in real + hostile]
    fixture = {"made_by": f"make_llama_cpp_fixture.py with llama-cpp-python {llama_cpp.__version__}",
               "model": os.path.basename(args.model), "num_real": len(real), "lines": real + hostile, "ids": ids}
    os.makedirs(os.path.dirname(FIXTURE), exist_ok=True)
    with lzma.open(FIXTURE, "wt", encoding="ascii", preset=9) as file:
        json.dump(fixture, file, separators=(",", ":"))
    print(f"{FIXTURE}: {len(real)} real lines, {len(hostile)} hostile ones, {os.path.getsize(FIXTURE)} bytes")


if __name__ == "__main__":
    main()
