"""launch/make_jargon_dataset.py on a small dictionary in dictd's format, written here."""
import gzip
import json
import os
import subprocess
import sys
import tempfile
import unittest

SCRIPT = os.path.join(os.path.dirname(os.path.abspath(__file__)), "../../../launch/make_jargon_dataset.py")
DIGITS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"

ENTRIES = {
    "00-database-info": "00-database-info\n    Not an entry.\n",
    "foo": """foo
 /foo/, n.

    [very common; from {FUBAR [sic]}] A name for anything that is used when
    nothing better is at hand, as in the well-known and very old saying that “
    This is a foo”, more often than anybody would think possible, and as {bar
    }s are.

    Code looks like this:

    if (foo)
        bar();

    See also {baz}.

""",
    "bar": "bar\n\n\n    See {foo}, {baz}, and {quux}.\n\n",
    "baz": "baz\n n.\n\n    See {foo} (sense 2).\n\n",
    "quux": "quux\n\n\n    See {foo}, but only on Sundays.\n\n",
    "été": "été\n\n\n    Summer.\n\n",
}
WANT = {
    "foo": "A name for anything that is used when nothing better is at hand, as in the well-known and very old saying "
           "that “This is a foo”, more often than anybody would think possible, and as {bar}s are.\n\nCode looks like this:\n\nif (foo)\n    bar();\n\nSee also {baz}.",
    "quux": "See {foo}, but only on Sundays.",
    "été": "Summer.",
}


def number(value: int) -> str:
    digits = ""
    while value or not digits:
        value, digit = divmod(value, 64)
        digits = DIGITS[digit] + digits
    return digits


class JargonDataset(unittest.TestCase):
    def setUp(self) -> None:
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = folder.name
        self.index, text = [], b""
        for word, entry in ENTRIES.items():
            self.index.append(f"{word}\t{number(len(text))}\t{number(len(entry.encode()))}")
            text += entry.encode()
        self.index.append(self.index[1].replace("foo", "FOO"))  # Another name of the same entry.
        with gzip.open(self.path("d.dict.dz"), "wb") as file:
            file.write(text)
        self.write_index(self.index)

    def path(self, name: str) -> str:
        return os.path.join(self.folder, name)

    def write_index(self, lines: list[str]) -> None:
        with open(self.path("d.index"), "w", encoding="utf-8") as file:
            file.write("\n".join(lines) + "\n")

    def run_script(self) -> subprocess.CompletedProcess:
        return subprocess.run([sys.executable, SCRIPT, "--dict", self.path("d.dict.dz"), "--out", self.path("out")],
                              capture_output=True, text=True, check=False)

    def read(self, name: str) -> dict[str, str]:
        with open(self.path(f"out/{name}"), encoding="utf-8") as file:
            chats = [json.loads(line)["messages"] for line in file]
        for user, assistant in chats:
            self.assertEqual((user["role"], assistant["role"]), ("user", "assistant"))
        return {user["content"]: assistant["content"] for user, assistant in chats}

    def test_makes_chats_of_the_entries_that_say_something(self) -> None:
        result = self.run_script()
        self.assertEqual(result.returncode, 0, result.stderr)
        train, held_out = self.read("train.jsonl"), self.read("heldout.jsonl")
        self.assertEqual(train | held_out, {f"What does {word} mean to a hacker?": text for word, text in WANT.items()})
        self.assertIn(f"{len(train)} terms to train on, {len(held_out)} held out (2 entries dropped", result.stdout)
        self.assertEqual(sorted(os.listdir(self.path("out"))), ["heldout.jsonl", "train.jsonl"])

    def test_the_split_depends_on_the_term_alone(self) -> None:
        self.run_script()
        before = self.read("train.jsonl")
        self.write_index(self.index[:2] + self.index[4:])
        self.run_script()
        self.assertLessEqual(self.read("train.jsonl").items(), before.items())

    def test_a_damaged_index_is_an_error_with_its_line(self) -> None:
        for line, message in (("foo\tA", "d.index:1: "), ("foo\tA\t~", "d.index:1: "), ("foo\tA\tZZZ", "ends at byte")):
            self.write_index([line])
            result = self.run_script()
            self.assertEqual(result.returncode, 1)
            self.assertIn(message, result.stderr)
            self.assertNotIn("Traceback", result.stderr)
            self.assertFalse(os.path.exists(self.path("out/train.jsonl")))

    def test_a_missing_or_damaged_dictionary_is_an_error(self) -> None:
        with open(self.path("d.dict.dz"), "rb") as file:
            whole = file.read()
        middle = len(whole) // 2
        for broken in (whole[:middle], whole[:middle] + bytes(20) + whole[middle + 20:], b"no gzip"):
            with open(self.path("d.dict.dz"), "wb") as file:
                file.write(broken)
            errors = self.run_script().stderr
            self.assertIn("d.dict.dz and its index", errors)
            self.assertIn("install Debian's dict-jargon", errors)
            self.assertNotIn("Traceback", errors)
        os.unlink(self.path("d.dict.dz"))
        self.assertIn("install Debian's dict-jargon", self.run_script().stderr)


if __name__ == "__main__":
    unittest.main()
