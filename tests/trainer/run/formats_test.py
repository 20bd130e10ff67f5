"""Every data format from every kind of file, named by path in the configuration: the tokens that are trained on are those
of transformers' tokenizer and of the format, and they train."""
import json
import pathlib

import numpy as np
import pyarrow
import pyarrow.parquet
import transformers
from tiny_run import Runner, run_checks

ALPACA = ("Below is an instruction that describes a task{}. Write a response that appropriately completes the request.\n\n"
          "### Instruction:\n{}\n\n{}### Response:\n")
INPUT = ", paired with an input that provides further context"


def chat(question: str, answer: str) -> list[dict]:
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


# The type's name in the configuration -> records, and the text before and in what is trained on; None: a chat's.
RECORDS = {
    "chat_template": [({"messages": chat("What is a kluge?", "cruft")}, None),
                      ({"messages": chat("What is a frob?", "hack bogus")}, None)],
    "alpaca": [({"instruction": "grok", "input": "foo", "output": "munge bar"},
                (ALPACA.format(INPUT, "grok", "### Input:\nfoo\n\n"), "munge bar")),
               ({"instruction": "flame", "input": "", "output": "moby"}, (ALPACA.format("", "flame", ""), "moby"))],
    "prompt_completion": [({"prompt": "baz: ", "completion": "quux"}, ("baz: ", "quux"))],
    "text": [({"text": "lossage moby winnitude"}, ("", "lossage moby winnitude"))],
}


def write_files(folder: pathlib.Path, name: str, records: list[dict]) -> list[pathlib.Path]:
    paths = [folder / f"{name}{ending}" for ending in (".json", ".jsonl", ".parquet")]
    paths[0].write_text(json.dumps(records))
    paths[1].write_text("".join(json.dumps(record) + "\n" for record in records))
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(records), paths[2])
    return paths


def expected(tokenizer, record: dict, parts: tuple[str, str] | None) -> list[tuple[int, bool]]:
    """Tokens, and which count: of a chat the answer and its end of turn, else the completion and an EOS; never the
    first token."""
    if parts is None:
        ids = tokenizer.apply_chat_template(record["messages"], return_dict=True)["input_ids"]
        begin = len(tokenizer.apply_chat_template(record["messages"][:1], add_generation_prompt=True,
                                                  return_dict=True)["input_ids"])
        end = max(i for i, token in enumerate(ids) if token == tokenizer.eos_token_id) + 1
        return [(token, begin <= i < end) for i, token in enumerate(ids)]
    whole = tokenizer("".join(parts), return_offsets_mapping=True)
    starts = [offset[0] for offset in whole["offset_mapping"]]
    tokens = [(token, start >= len(parts[0])) for token, start in zip(whole["input_ids"], starts, strict=True)]
    return [(tokens[0][0], False), *tokens[1:], (tokenizer.eos_token_id, True)]


def cached(path: pathlib.Path) -> list[list[tuple[int, bool]]]:
    """The samples of a token cache, by the layout in docs/data.md."""
    data = path.read_bytes()
    fields = np.frombuffer(data, dtype="<i8", count=9, offset=16)
    words = np.frombuffer(data, dtype="<u4", count=int(fields[2]), offset=128)
    bounds = np.frombuffer(data, dtype="<i8", count=int(fields[1]) + 1, offset=int(fields[6]))
    return [[(int(word) & 0x7FFFFFFF, bool(word >> 31)) for word in words[begin:end]]
            for begin, end in zip(bounds[:-1], bounds[1:])]


def check_formats(runner: Runner) -> None:
    tokenizer = transformers.AutoTokenizer.from_pretrained(runner.folder / "model")
    datasets, want = [], []
    for name, cases in RECORDS.items():
        for path in write_files(runner.folder, name, [record for record, _ in cases]):
            for asked in (name, "auto"):
                datasets.append(f"{{path: {path}, type: {asked}}}")
                want += [expected(tokenizer, record, parts) for record, parts in cases]
    # Any of four ranks makes the cache, and each would say how it gets on.
    text = runner.run(4, "formats", {"datasets": f"[{', '.join(datasets)}]", "test_datasets": "[]", "max_steps": 2,
                                     "sequence_len": 256, "generate.heldout_prompts": 0})
    for name in RECORDS:
        assert text.count(f"read as {name}") == 6, text
    (cache,) = (runner.folder / "runs" / ".cache").glob("*.tokens")
    got = cached(cache)
    assert len(got) == len(want) == 36, (len(got), len(want))
    for number, (ours, theirs) in enumerate(zip(got, want, strict=True)):
        assert ours == theirs, f"sample {number}: {ours}, want {theirs}"
    assert len({tuple(sample) for sample in got}) == 6, "the records are not told apart"
    assert [line["step"] for line in runner.lines("formats")] == [1, 2]
    print(f"{len(datasets)} data files of {len(RECORDS)} formats: every token as it should be")


if __name__ == "__main__":
    run_checks(check_formats)
