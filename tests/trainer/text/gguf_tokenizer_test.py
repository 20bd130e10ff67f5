"""trainer/text on GGUF files: the same tokens as llama.cpp (fixtures/, made by make_llama_cpp_fixture.py), and clear
errors for files that can't be used."""
import json
import lzma
import os
import tempfile
import unittest

import gguf
from tokenizers.pre_tokenizers import ByteLevel

from trainer.text.errors import DataError
from trainer.text.tokenizer import load_tokenizer

HERE = os.path.dirname(os.path.abspath(__file__))
FIXTURE = os.path.join(HERE, "fixtures", "llama_cpp_ids.json.xz")
MODEL = os.path.join(HERE, "../../../.deps/models/SmolLM2-135M-Instruct.Q4_1.gguf")


def write_gguf(path: str, **changes) -> None:
    """A small GGUF with a tokenizer, written by the gguf package. A change to None leaves the key out."""
    tokens = ["<s>", "</s>", "<|user|>"] + sorted(ByteLevel.alphabet()) + ["ab", "Ġab"]
    values = {"model": "gpt2", "pre": "gpt-2", "tokens": tokens, "types": [3, 3, 4] + [1] * 258,
              "merges": ["a b", "Ġ ab"], "bos": 0, "eos": 1, "add_bos": True, "template": "{{ bos_token }}x"} | changes
    writer = gguf.GGUFWriter(path, "llama")
    for name, add in (("model", writer.add_tokenizer_model), ("pre", writer.add_tokenizer_pre),
                      ("tokens", writer.add_token_list), ("types", writer.add_token_types),
                      ("merges", writer.add_token_merges), ("bos", writer.add_bos_token_id),
                      ("eos", writer.add_eos_token_id), ("add_bos", writer.add_add_bos_token),
                      ("template", writer.add_chat_template)):
        if values[name] is not None:
            add(values[name])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()


class LlamaCpp(unittest.TestCase):
    @classmethod
    def setUpClass(cls) -> None:
        if not os.path.exists(MODEL):
            raise AssertionError(f"{MODEL} is missing: run tests/run.sh or launch/quickstart.sh, which get it")
        cls.tokenizer = load_tokenizer(MODEL)
        with lzma.open(FIXTURE, "rt", encoding="ascii") as file:
            cls.fixture = json.load(file)

    def test_gives_the_same_tokens(self) -> None:
        lines, ids = self.fixture["lines"], self.fixture["ids"]
        self.assertGreaterEqual(self.fixture["num_real"], 10000)
        self.assertGreaterEqual(len(lines) - self.fixture["num_real"], 3000)
        different = [line for line, encoding, want in zip(lines, self.tokenizer.encode(lines), ids, strict=True)
                     if encoding.ids != want]
        self.assertEqual(different, [])

    def test_offsets_cover_the_text_in_order(self) -> None:
        for line, encoding in zip(self.fixture["lines"], self.tokenizer.encode(self.fixture["lines"])):
            starts = [begin for begin, _ in encoding.offsets]
            self.assertEqual(starts, sorted(starts), line)
            self.assertTrue(all(0 <= begin < end <= len(line) for begin, end in encoding.offsets), line)

    def test_decodes_what_it_encodes(self) -> None:
        # SmolLM2's vocabulary lacks some control characters; special tokens are left out on purpose.
        absent = {character for character in map(chr, range(128)) if not self.tokenizer.encode([character])[0].ids}
        self.assertIn("\x1d", absent)
        special = self.tokenizer.special_ids
        compared = 0
        for line, encoding in zip(self.fixture["lines"], self.tokenizer.encode(self.fixture["lines"])):
            if not absent.intersection(line) and not special.intersection(encoding.ids):
                self.assertEqual(self.tokenizer.decode(encoding.ids), line)
                compared += 1
        self.assertGreater(compared, 12000)

    def test_knows_what_ends_an_answer(self) -> None:
        self.assertEqual((self.tokenizer.eos_id, self.tokenizer.stop_ids, self.tokenizer.prefix_ids), (2, [2], []))

    def test_reads_the_chat_template(self) -> None:
        self.assertEqual(
            self.tokenizer.render([{"role": "system", "content": "S"}, {"role": "user", "content": "U"}],
                                  add_generation_prompt=True),
            "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\nU<|im_end|>\n<|im_start|>assistant\n")


class SmallFiles(unittest.TestCase):
    def setUp(self) -> None:
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.path = os.path.join(folder.name, "small.gguf")

    def error(self, **changes) -> str:
        write_gguf(self.path, **changes)
        with self.assertRaises(DataError) as raised:
            load_tokenizer(self.path)
        self.assertIn("small.gguf: ", str(raised.exception))
        return str(raised.exception)

    def test_reads_special_tokens_and_bos(self) -> None:
        write_gguf(self.path)
        tokenizer = load_tokenizer(self.path)
        self.assertEqual(tokenizer.prefix_ids, [0])
        self.assertEqual(tokenizer.special_ids, {0, 1})
        vocab = tokenizer.tokenizer.get_vocab()
        self.assertEqual(tokenizer.encode(["ab ab</s><|user|>"])[0].ids, [vocab["ab"], vocab["Ġab"], 1, 2])
        self.assertEqual(tokenizer.render([]), "<s>x")
        self.assertEqual(tokenizer.decode([1, 2, vocab["ab"]]), "<|user|>ab")

    def test_whether_bos_is_added_follows_the_key_and_then_the_pre_tokenizer(self) -> None:
        for pre, add_bos, want in (("gpt-2", None, []), ("llama-bpe", None, [0]), ("llama-bpe", False, []),
                                   ("qwen2", None, []), ("qwen2", True, [0])):
            write_gguf(self.path, pre=pre, add_bos=add_bos)
            self.assertEqual(load_tokenizer(self.path).prefix_ids, want, (pre, add_bos))

    def test_splits_digits_as_the_pre_tokenizer_says(self) -> None:
        for pre, pieces in (("gpt-2", ["x", "1234", " 5"]), ("smollm", ["x", "1", "2", "3", "4", " ", "5"]),
                            ("llama-bpe", ["x", "123", "4", " ", "5"]), ("qwen2", ["x", "1", "2", "3", "4", " ", "5"])):
            write_gguf(self.path, pre=pre)
            split = load_tokenizer(self.path).tokenizer.pre_tokenizer.pre_tokenize_str("x1234 5")
            self.assertEqual(["x1234 5"[begin:end] for _, (begin, end) in split], pieces, pre)

    def test_a_piece_that_is_a_token_goes_before_the_merges_where_the_pre_tokenizer_says(self) -> None:
        for pre, want in (("gpt-2", ["ab", "c"]), ("llama-bpe", ["abc"])):
            tokens = ["<s>", "a", "b", "c", "ab", "abc"]
            write_gguf(self.path, pre=pre, tokens=tokens, types=[3] + [1] * 5, merges=["a b"], bos=0, eos=0)
            ids = load_tokenizer(self.path).encode(["abc"])[0].ids
            self.assertEqual([tokens[token] for token in ids], want, pre)

    def test_refuses_by_name_what_it_does_not_know(self) -> None:
        self.assertIn("tokenizer.ggml.pre 'deepseek-llm' is not supported", self.error(pre="deepseek-llm"))
        self.assertIn("tokenizer.ggml.pre 'default' is not supported", self.error(pre=None))
        self.assertIn("tokenizer.ggml.model 'llama' is not supported", self.error(model="llama"))

    def test_names_the_key_that_is_wrong(self) -> None:
        self.assertIn("tokenizer.ggml.model is missing", self.error(model=None))
        self.assertIn("tokenizer.ggml.tokens is missing", self.error(tokens=None, types=None))
        self.assertIn("tokenizer.ggml.token_type: 2 values", self.error(types=[1, 1]))
        self.assertIn("tokenizer.ggml.merges: 'ab' is no pair", self.error(merges=["ab"]))
        self.assertIn("tokenizer.ggml.merges: ", self.error(merges=["no pe"]))
        self.assertIn("tokenizer.ggml.eos_token_id: 261, want less than 261", self.error(eos=261))
        self.assertIn("there is no bos_token_id", self.error(bos=None))
        self.assertIn("a token stands twice", self.error(tokens=["a"] * 261))
        self.assertIn("the chat template can't be read", self.error(template="{% if %}"))

    def test_refuses_a_file_cut_at_any_byte(self) -> None:
        write_gguf(self.path, tokens=["<s>", "a", "b", "ab"], types=[3, 1, 1, 1], merges=["a b"], bos=0, eos=0)
        load_tokenizer(self.path)
        with open(self.path, "rb") as file:
            whole = file.read()
        # The writer pads the metadata; what is cut off there is not missed.
        used = whole.rindex(b"{{ bos_token }}x") + len("{{ bos_token }}x")
        for size in range(used):
            with open(self.path, "wb") as file:
                file.write(whole[:size])
            with self.assertRaises(DataError, msg=str(size)):
                load_tokenizer(self.path)

    def test_survives_hostile_lengths(self) -> None:
        write_gguf(self.path)
        with open(self.path, "rb") as file:
            whole = file.read()
        for at in range(4, 400, 5):
            for value in (b"\xff" * 8, b"\xff" * 7 + b"\x7f", b"\0" * 8):
                with open(self.path, "wb") as file:
                    file.write(whole[:at] + value + whole[at + 8:])
                try:
                    load_tokenizer(self.path)
                except DataError:
                    pass

    def test_a_missing_file_is_an_error(self) -> None:
        with self.assertRaisesRegex(DataError, "does not exist; want a .gguf file or a Hugging Face folder"):
            load_tokenizer(self.path)


if __name__ == "__main__":
    unittest.main()
