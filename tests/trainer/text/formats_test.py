"""Every data format in every kind of file, and an error with file, line or row, and key for everything else."""
import json
import os
import tempfile
import unittest

import pyarrow
import pyarrow.parquet

from trainer.text.errors import ConfigError, DataError
from trainer.text.formats import ALPACA_WITH_INPUT, ALPACA_WITHOUT_INPUT, FORMATS, choose_format, ignored_columns
from trainer.text.records import read_records

USER, ASSISTANT = {"role": "user", "content": "Q é\U0001f600"}, {"role": "assistant", "content": "A"}

# type -> records, and what each must become.
CASES = {
    "chat_template": [({"messages": [USER, ASSISTANT]}, ([USER, ASSISTANT], 0)),
                      ({"messages": [{"role": "system", "content": "S"}, USER, ASSISTANT, USER, ASSISTANT]},
                       ([{"role": "system", "content": "S"}, USER, ASSISTANT, USER, ASSISTANT], 0))],
    "sharegpt": [({"conversations": [{"from": "human", "value": "Q"}, {"from": "gpt", "value": "A"}], "system": "S"},
                  ([{"role": "system", "content": "S"}, {"role": "user", "content": "Q"},
                    {"role": "assistant", "content": "A"}], 0))],
    "prompt_completion": [({"prompt": "P ", "completion": "C"}, ("P ", "C"))],
    "alpaca": [({"instruction": "I", "input": "N", "output": "O"},
                (f"{ALPACA_WITH_INPUT}\n\n### Instruction:\nI\n\n### Input:\nN\n\n### Response:\n", "O")),
               ({"instruction": "I", "input": "", "output": "O"},
                (f"{ALPACA_WITHOUT_INPUT}\n\n### Instruction:\nI\n\n### Response:\n", "O")),
               ({"instruction": "I", "input": "", "output": "O", "system": "S"},
                ("S\n\n### Instruction:\nI\n\n### Response:\n", "O"))],
    "text": [({"text": "some\ntext\u2028"}, ("", "some\ntext\u2028")), ({"text": ""}, ("", ""))],
}


def write_files(folder: str, records: list[dict]) -> list[str]:
    paths = [os.path.join(folder, name) for name in ("d.json", "d.jsonl", "lines.json", "d.parquet")]
    lines = "".join(json.dumps(record, ensure_ascii=number % 2 == 0) + "\n" for number, record in enumerate(records))
    for path, text in zip(paths, (json.dumps(records, indent=1), "\ufeff" + lines.replace("\n", "\r\n\r\n"), lines)):
        with open(path, "w", encoding="utf-8", newline="") as file:
            file.write(text)
    columns = dict.fromkeys(key for record in records for key in record)
    table = pyarrow.table({column: [record.get(column) for record in records] for column in columns})
    pyarrow.parquet.write_table(table, paths[3])
    return paths


def as_tuple(sample) -> tuple:
    return (sample.messages, sample.first_trained) if hasattr(sample, "messages") else (sample.prompt, sample.completion)


class Folder(unittest.TestCase):
    def setUp(self) -> None:
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = folder.name

    def write(self, name: str, content: str | bytes) -> str:
        path = os.path.join(self.folder, name)
        with open(path, "wb") as file:
            file.write(content.encode("utf-8") if isinstance(content, str) else content)
        return path


class Formats(Folder):
    def test_each_format_reads_from_each_kind_of_file(self) -> None:
        for type_name, cases in CASES.items():
            for path in write_files(self.folder, [record for record, _ in cases]):
                for asked in ("auto", type_name):
                    form = None
                    got = []
                    for where, record in read_records(path):
                        form = form or choose_format(asked, record, where)
                        got.append(as_tuple(form.convert(record, where)))
                    self.assertEqual(form.name, type_name)
                    self.assertEqual(got, [want for _, want in cases], path)

    def test_prompt_and_completion_may_be_messages(self) -> None:
        record = {"prompt": [USER, ASSISTANT, USER], "completion": [ASSISTANT]}
        sample = choose_format("auto", record, "w").convert(record, "w")
        self.assertEqual(as_tuple(sample), ([USER, ASSISTANT, USER, ASSISTANT], 3))

    def test_auto_prefers_chats_and_then_the_richer_columns(self) -> None:
        everything = {"messages": 0, "conversations": 0, "prompt": 0, "completion": 0, "instruction": 0, "output": 0,
                      "text": 0}
        for name, columns in (("chat_template", ["messages"]), ("sharegpt", ["conversations"]),
                              ("prompt_completion", ["prompt", "completion"]), ("alpaca", ["instruction", "output"]),
                              ("text", ["text"])):
            self.assertEqual(choose_format("auto", everything, "w").name, name)
            for column in columns:
                del everything[column]
        self.assertIs(FORMATS["completion"], FORMATS["text"])

    def test_columns_that_fit_no_format_are_listed(self) -> None:
        with self.assertRaisesRegex(DataError, r"w: columns found: question, a\\nb; want messages or conversations or "
                                               r"prompt\+completion or instruction\+output or text"):
            choose_format("auto", {"question": 1, "a\nb": 2}, "w")
        with self.assertRaisesRegex(DataError, "w: columns found: text; want messages"):
            choose_format("chat_template", {"text": 1}, "w")
        with self.assertRaisesRegex(ConfigError, "type 'chatml': want auto, "):
            choose_format("chatml", {"text": 1}, "w")

    def test_columns_that_are_not_used_are_known(self) -> None:
        record = {"id": 1, "messages": [], "tools": [], "source": "x"}
        self.assertEqual(ignored_columns(FORMATS["chat_template"], record), ["id", "source"])

    def test_wrong_values_are_named(self) -> None:
        for record, message in (
                ({"messages": "x"}, "messages: want a list of messages"),
                ({"messages": []}, "messages: want a list of messages"),
                ({"messages": [USER, 5]}, r"messages\[1\]: got int"),
                ({"messages": [{"content": "x"}]}, r"messages\[0\]: role is missing"),
                ({"messages": [{"role": 1, "content": "x"}]}, r"messages\[0\]: role: got int"),
                ({"messages": [{"role": "user"}]}, r"messages\[0\]: content: got NoneType"),
                ({"messages": [{"role": "user", "content": [{"type": "image"}]}]}, r"messages\[0\]: content: want"),
                ({"messages": [USER], "tools": "x"}, "tools: want a list of objects"),
                ({"conversations": [{"from": "gpt"}]}, r"conversations\[0\]: value is missing"),
                ({"conversations": [{"from": "bob", "value": ""}]}, r"conversations\[0\]: from: 'bob', want one of"),
                ({"conversations": [[]]}, r"conversations\[0\]: got list"),
                ({"prompt": "x", "completion": 5}, "completion: got int, want a string"),
                ({"prompt": [USER], "completion": "x"}, "completion: want a list of messages"),
                ({"instruction": None, "output": "x"}, "instruction is missing"),
                ({"instruction": "x", "output": "x", "input": 5}, "input: got int"),
                ({"instruction": "x", "output": "x", "history": [["a", "b"]]}, "history: "),
                ({"text": ["x"]}, "text: got list, want a string")):
            form = choose_format("auto", record, "w")
            with self.assertRaisesRegex(DataError, "^d.jsonl:3: " + message):
                form.convert(record, "d.jsonl:3")

    def test_parts_of_text_are_messages_too(self) -> None:
        message = {"role": "user", "content": [{"type": "text", "text": "x"}]}
        record = {"messages": [message | {"name": None}]}
        self.assertEqual(as_tuple(FORMATS["chat_template"].convert(record, "w")), ([message], 0))


class Records(Folder):
    def error(self, name: str, content: str | bytes) -> str:
        path = self.write(name, content)
        with self.assertRaises(DataError) as raised:
            list(read_records(path))
        self.assertTrue(str(raised.exception).startswith(path), str(raised.exception))
        self.assertNotIn("\n", str(raised.exception))
        return str(raised.exception)[len(path):]

    def test_a_line_cut_anywhere_is_an_error_with_its_number(self) -> None:
        line = json.dumps({"text": "é\U0001f600 \"x\" \\"}, ensure_ascii=False).encode()
        for size in range(1, len(line)):
            self.assertRegex(self.error("d.jsonl", line + b"\n" + line[:size]), "^:2: ")

    def test_bad_json_has_line_and_column(self) -> None:
        self.assertEqual(self.error("d.jsonl", '{"text": 1}\n{"text": }'), ":2: column 10: Expecting value; want JSON")
        self.assertEqual(self.error("d.json", '[{"text": 1},\n {"text" 2}]'),
                         ":2: column 10: Expecting ':' delimiter; want JSON")
        self.assertIn(":1: the key 'text' stands twice", self.error("d.jsonl", '{"text": 1, "text": 2}'))
        self.assertIn(":1: NaN is not JSON", self.error("d.jsonl", '{"text": NaN}'))
        self.assertIn(":1: byte 2: no UTF-8", self.error("d.jsonl", b'{"\xff": 1}'))
        self.assertIn("nested too deeply", self.error("d.jsonl", "[" * 100000))

    def test_values_that_are_no_objects_are_refused(self) -> None:
        self.assertEqual(self.error("d.jsonl", "{}\n5"), ":2: got int, want an object")
        self.assertEqual(self.error("d.json", "[{}, 5]"), ": element 2: got int, want an object")
        self.assertIn(": want a JSON array", self.error("d.json", "5"))
        self.assertIn(":1: ", self.error("d.json", ""))

    def test_parquet_that_is_cut_is_an_error(self) -> None:
        path = os.path.join(self.folder, "whole.parquet")
        pyarrow.parquet.write_table(pyarrow.table({"text": ["x"] * 100}), path)
        with open(path, "rb") as file:
            whole = file.read()
        for size in (0, 3, 4, len(whole) // 2, len(whole) - 1):
            self.error("d.parquet", whole[:size])

    def test_parquet_columns_that_are_null_are_absent(self) -> None:
        path = os.path.join(self.folder, "d.parquet")
        pyarrow.parquet.write_table(pyarrow.table({"text": ["x", None], "n": [None, 5]}), path)
        self.assertEqual(list(read_records(path)), [(f"{path}: row 1", {"text": "x"}), (f"{path}: row 2", {"n": 5})])

    def test_parquet_values_that_python_cannot_hold_are_an_error(self) -> None:
        no_utf8 = pyarrow.array([b"ok", b"\xff"]).cast(pyarrow.binary()).view(pyarrow.string())
        path = os.path.join(self.folder, "d.parquet")
        for column in (no_utf8, pyarrow.array([0, 1 << 60], pyarrow.timestamp("us"))):
            pyarrow.parquet.write_table(pyarrow.table({"text": ["x", "y"], "c": column}), path)
            with self.assertRaises(DataError) as raised:
                list(read_records(path))
            self.assertTrue(str(raised.exception).startswith(f"{path}: column 'c' from row 1 on: "), str(raised.exception))

    def test_files_that_cannot_be_read_are_named(self) -> None:
        for name, message in (("none.jsonl", "does not exist"), ("d.txt", "want a name that ends in"),
                              (".", "want a name that ends in")):
            with self.assertRaisesRegex(DataError, message):
                list(read_records(os.path.join(self.folder, name)))
        os.mkdir(os.path.join(self.folder, "dir.json"))
        with self.assertRaisesRegex(DataError, "not a regular file"):
            list(read_records(os.path.join(self.folder, "dir.json")))
        os.mkfifo(os.path.join(self.folder, "pipe.json"))
        with self.assertRaisesRegex(DataError, "not a regular file"):
            list(read_records(os.path.join(self.folder, "pipe.json")))

    def test_hostile_names_are_escaped(self) -> None:
        path = self.write("a\n\x1b[31m\u202e.jsonl", "{")
        with self.assertRaises(DataError) as raised:
            list(read_records(path))
        self.assertIn("a\\n\\x1b[31m\\u202e.jsonl:1: ", str(raised.exception))


if __name__ == "__main__":
    unittest.main()
