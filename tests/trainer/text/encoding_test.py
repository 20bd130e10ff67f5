"""What is trained on, and what `prepare` makes of whole files. A tokenizer that the test writes, one token a character,
makes every expected value readable."""
import io
import json
import os
import tempfile
import unittest
from array import array
from contextlib import redirect_stdout

import tokenizers
from tokenizers import AddedToken, decoders, models, pre_tokenizers, processors

from trainer.text.errors import ConfigError, DataError
from trainer.text.prepare import Spec, prepare
from trainer.text.encoding import encode_samples
from trainer.text.formats import Chat, Completion
from trainer.text.tokenizer import load_tokenizer

# <e> ends turns and is the pad token as well: that must not matter.
TEMPLATE = ("{% for m in messages %}<s>{{ m.role[0] }}:{{ m.content }}<e>\n{% endfor %}"
            "{% if add_generation_prompt %}<s>a:{% endif %}")
# Shows what an assistant thought in the last turn only, as reasoning models' templates do.
FORGETS = ("{% for m in messages %}{{ m.role[0] }}:{% if m.thought and loop.last %}({{ m.thought }}){% endif %}"
           "{{ m.content }}<e>{% endfor %}{% if add_generation_prompt %}a:{% endif %}")


def save_folder(folder: str, template: str | None, bos: bool = False, merges: tuple = (), trim: bool = False) -> None:
    vocab = {token: number for number, token in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    for left, right in merges:
        vocab[left + right] = len(vocab)
    tokenizer = tokenizers.Tokenizer(models.BPE(vocab=vocab, merges=list(merges)))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken("<s>"), AddedToken("<e>")])
    if bos:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<s> $A", special_tokens=[("<s>", tokenizer.token_to_id("<s>"))])
    if trim:
        tokenizer.post_processor = processors.ByteLevel(trim_offsets=True)
    tokenizer.save(os.path.join(folder, "tokenizer.json"))
    with open(os.path.join(folder, "tokenizer_config.json"), "w", encoding="utf-8") as file:
        json.dump({"bos_token": "<s>", "eos_token": "<e>", "pad_token": "<e>", "chat_template": template}, file)


def message(role: str, content: str, **more) -> dict:
    return {"role": role, "content": content} | more


class Folder(unittest.TestCase):
    def setUp(self) -> None:
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = folder.name

    def pieces(self, sample, template: str | None = TEMPLATE, train_on_inputs: bool = False, **options) -> str:
        """The tokens as text, each trained one followed by '."""
        save_folder(self.folder, template, **options)
        tokenizer = load_tokenizer(self.folder)
        encoded = encode_samples(tokenizer, [sample], train_on_inputs)[0]
        texts = [tokenizer.tokenizer.decode([token], skip_special_tokens=False) for token in encoded.ids]
        return "".join(text + "'" * trained for text, trained in zip(texts, encoded.trained, strict=True))


class Masking(Folder):
    def test_the_answer_and_its_end_of_turn_count(self) -> None:
        chat = Chat("w", [message("user", "Q"), message("assistant", "AB")])
        self.assertEqual(self.pieces(chat), "<s>u:Q<e>\n<s>a:A'B'<e>'\n")

    def test_every_answer_counts_and_nothing_between(self) -> None:
        chat = Chat("w", [message("system", "S"), message("user", "Q"), message("assistant", "A"),
                          message("user", "R"), message("assistant", "B"), message("user", "T")])
        self.assertEqual(self.pieces(chat), "<s>s:S<e>\n<s>u:Q<e>\n<s>a:A'<e>'\n<s>u:R<e>\n<s>a:B'<e>'\n<s>u:T<e>\n")

    def test_messages_of_the_prompt_do_not_count(self) -> None:
        chat = Chat("w", [message("user", "Q"), message("assistant", "A"), message("user", "R"),
                          message("assistant", "B")], first_trained=3)
        self.assertEqual(self.pieces(chat), "<s>u:Q<e>\n<s>a:A<e>\n<s>u:R<e>\n<s>a:B'<e>'\n")

    def test_an_empty_answer_is_its_end_of_turn(self) -> None:
        chat = Chat("w", [message("user", "Q"), message("assistant", "")])
        self.assertEqual(self.pieces(chat), "<s>u:Q<e>\n<s>a:<e>'\n")

    def test_special_tokens_in_what_a_user_says_stay_untrained(self) -> None:
        chat = Chat("w", [message("user", "<e>\n<s>a:X<e>"), message("assistant", "<e>A")])
        self.assertEqual(self.pieces(chat), "<s>u:<e>\n<s>a:X<e><e>\n<s>a:<e>'A'<e>'\n")

    def test_a_token_across_the_border_belongs_to_the_prompt(self) -> None:
        chat = Chat("w", [message("user", "Q"), message("assistant", "AA")])
        self.assertEqual(self.pieces(chat, merges=((":", "A"),)), "<s>u:Q<e>\n<s>a:AA'<e>'\n")

    def test_a_file_that_trims_offsets_moves_no_border(self) -> None:
        sample = Completion("w", "P ", "CD")
        for trim in (False, True):
            self.assertEqual(self.pieces(sample, merges=(("Ġ", "C"),), trim=trim), "P CD'<e>'")

    def test_all_bytes_of_one_character_are_treated_alike(self) -> None:
        chat = Chat("w", [message("user", "é"), message("assistant", "é")])
        self.assertEqual(self.pieces(chat).count("\ufffd'"), 2)
        self.assertEqual(self.pieces(chat).count("\ufffd"), 4)

    def test_a_template_without_special_tokens_trains_the_whole_turn(self) -> None:
        chat = Chat("w", [message("user", "Q"), message("assistant", "A")])
        template = "{% for m in messages %}{{ m.role[0] }}={{ m.content }};{% endfor %}{% if add_generation_prompt %}a={% endif %}"
        self.assertEqual(self.pieces(chat, template), "u=Q;a=A';'")

    def test_a_template_that_rewrites_history_is_refused_with_the_turn(self) -> None:
        chat = Chat("d.jsonl:7", [message("user", "Q"), message("assistant", "A", thought="T"), message("user", "R"),
                                  message("assistant", "B", thought="U")])
        with self.assertRaisesRegex(DataError, r"^d.jsonl:7: turn 2 \(assistant\): the chat template writes earlier"):
            self.pieces(chat, FORGETS)
        last = Chat("w", chat.messages, first_trained=3)
        self.assertEqual(self.pieces(last, FORGETS), "u:Q<e>a:A<e>u:R<e>a:('U')'B'<e>'")

    def test_a_generation_prompt_that_is_not_how_answers_begin_is_refused(self) -> None:
        chat = Chat("w", [message("user", "Q"), message("assistant", "A")])
        with self.assertRaisesRegex(DataError, r"^w: turn 2 \(assistant\)"):
            self.pieces(chat, TEMPLATE.replace("<s>a:", "<s>A:"))

    def test_what_the_template_refuses_has_file_and_line(self) -> None:
        chat = Chat("d.jsonl:7", [message("user", "Q")])
        with self.assertRaisesRegex(DataError, "^d.jsonl:7: the chat template of .* refuses the messages: no users"):
            self.pieces(chat, "{{ raise_exception('no users') }}")

    def test_completions_count_with_their_eos(self) -> None:
        self.assertEqual(self.pieces(Completion("w", "P:", "CD")), "P:C'D'<e>'")
        self.assertEqual(self.pieces(Completion("w", "", "CD")), "CD'<e>'")
        self.assertEqual(self.pieces(Completion("w", "", "CD"), bos=True), "<s>C'D'<e>'")
        self.assertEqual(self.pieces(Completion("w", "P", "")), "P<e>'")

    def test_train_on_inputs_counts_all_but_the_first(self) -> None:
        self.assertEqual(self.pieces(Completion("w", "PQ", "C"), train_on_inputs=True), "PQ'C'<e>'")
        chat = Chat("w", [message("user", "Q"), message("assistant", "A")])
        self.assertEqual(self.pieces(chat, train_on_inputs=True), "<s>u':'Q'<e>'\n'<s>'a':'A'<e>'\n'")

    def test_half_a_surrogate_pair_is_an_error_with_file_and_line(self) -> None:
        with self.assertRaisesRegex(DataError, "^w: character 1 is half of a surrogate pair"):
            self.pieces(Completion("w", "a\ud800", "C"))


class Prepare(Folder):
    def setUp(self) -> None:
        super().setUp()
        save_folder(self.folder, TEMPLATE)
        self.output = os.path.join(self.folder, "out.tokens")

    def dataset(self, records: list[dict], name: str = "d.jsonl") -> str:
        path = os.path.join(self.folder, name)
        with open(path, "w", encoding="utf-8") as file:
            file.writelines(json.dumps(record) + "\n" for record in records)
        return path

    def run_prepare(self, *paths: str, **options) -> list[dict]:
        spec = {"output": self.output, "tokenizer": self.folder, "sequence_len": 8,
                "datasets": [{"path": path, "type": "auto"} for path in paths]} | options
        said = io.StringIO()
        with redirect_stdout(said):
            prepare(Spec(**spec))
        return [json.loads(line) for line in said.getvalue().splitlines()]

    def read(self) -> tuple[list[int], list[int], dict]:
        """Lengths and trained tokens of the samples, and the metadata, by the layout in trainer/data/token_cache.h."""
        with open(self.output, "rb") as file:
            data = file.read()
        fields = array("q", data[16:88])
        words = array("I", data[128:128 + 4 * fields[2]])
        bounds = array("q", data[fields[6]:fields[7]])
        lengths = [end - begin for begin, end in zip(bounds, bounds[1:])]
        trained = [sum(word >> 31 for word in words[begin:end]) for begin, end in zip(bounds, bounds[1:])]
        self.assertEqual((fields[0], fields[1], fields[3], fields[5]),
                         (len(data), len(lengths), sum(trained), max(lengths)))
        return lengths, trained, json.loads(data[fields[7]:])

    def test_long_samples_are_dropped_cut_or_refused(self) -> None:
        path = self.dataset([{"text": "x" * length} for length in (7, 8, 20, 1)])
        self.run_prepare(path)
        lengths, trained, metadata = self.read()
        self.assertEqual((lengths, trained), ([8, 2], [7, 1]))
        self.assertEqual((metadata["dropped_too_long"], metadata["truncated"]), (2, 0))
        self.run_prepare(path, excess_length="truncate")
        lengths, trained, metadata = self.read()
        self.assertEqual((lengths, trained), ([8, 8, 8, 2], [7, 7, 7, 1]))
        self.assertEqual((metadata["dropped_too_long"], metadata["truncated"]), (0, 2))
        with self.assertRaisesRegex(DataError, "d.jsonl:2: 9 tokens, want at most 8"):
            self.run_prepare(path, excess_length="raise")

    def test_samples_with_nothing_left_to_train_on_are_dropped_and_counted(self) -> None:
        path = self.dataset([{"prompt": "x" * 8, "completion": "y"}, {"prompt": "x", "completion": "y"}])
        self.run_prepare(path, excess_length="truncate")
        lengths, trained, metadata = self.read()
        self.assertEqual((lengths, trained), ([3], [2]))
        self.assertEqual((metadata["dropped_untrained"], metadata["truncated"]), (1, 0))
        self.run_prepare(self.dataset([{"text": ""}, {"text": "a"}]))
        self.assertEqual(self.read()[2]["dropped_untrained"], 1)

    def test_no_sample_left_is_an_error_and_leaves_no_file(self) -> None:
        with self.assertRaisesRegex(DataError, "d.jsonl: no sample is left: 2 are longer than sequence_len 8, 1 have no"):
            self.run_prepare(self.dataset([{"text": "x" * 10}, {"text": "x" * 11}, {"text": ""}]))
        with self.assertRaisesRegex(DataError, "d.jsonl: holds no samples"):
            self.run_prepare(self.dataset([]))
        self.assertEqual([name for name in os.listdir(self.folder) if name.startswith("out")], [])

    def test_an_error_leaves_an_older_file_as_it_was(self) -> None:
        self.run_prepare(self.dataset([{"text": "abc"}]))
        with open(self.output, "rb") as file:
            before = file.read()
        with self.assertRaises(DataError):
            self.run_prepare(self.dataset([{"text": "abcd"}] * 1000 + [{"text": 5}]))
        with open(self.output, "rb") as file:
            self.assertEqual(file.read(), before)
        self.assertEqual([name for name in os.listdir(self.folder) if ".tmp" in name], [])

    def test_several_files_follow_one_another(self) -> None:
        said = self.run_prepare(self.dataset([{"text": "a", "id": 1}]),
                                self.dataset([{"prompt": "ab", "completion": "c"}], "e.jsonl"))
        self.assertEqual(self.read()[0], [2, 4])
        progress = " ".join(line.get("progress", "") for line in said)
        self.assertIn("d.jsonl: read as text; columns not used: id", progress)
        self.assertIn("e.jsonl: read as prompt_completion", progress)
        self.assertEqual({key: said[-1]["done"][key] for key in ("samples", "tokens", "trained")},
                         {"samples": 2, "tokens": 6, "trained": 3})

    def test_prompts_are_noted_where_the_user_speaks_once(self) -> None:
        chats = [[message("user", "Q"), message("assistant", "A")],
                 [message("user", "Q"), message("assistant", "A"), message("user", "R"), message("assistant", "B")],
                 [message("user", "x" * 3000), message("assistant", "A")]]
        self.run_prepare(self.dataset([{"messages": chat} for chat in chats]), sequence_len=4000)
        self.assertEqual(self.read()[2]["prompts"], ["Q"])

    def test_the_same_input_gives_the_same_bytes(self) -> None:
        path = self.dataset([{"text": "abc"}] * 1000)
        self.run_prepare(path)
        with open(self.output, "rb") as file:
            first = file.read()
        self.run_prepare(path)
        with open(self.output, "rb") as file:
            self.assertEqual(file.read(), first)

    def test_settings_out_of_range_are_errors(self) -> None:
        path = self.dataset([{"text": "abc"}])
        for options in ({"sequence_len": 1}, {"excess_length": "cut"}, {"datasets": []}):
            with self.assertRaises(ConfigError):
                self.run_prepare(path, **options)


if __name__ == "__main__":
    unittest.main()
