"""trainer/text on Hugging Face folders: the same tokens and the same rendered chats as transformers."""
import json
import lzma
import os
import tempfile
import unittest

import jinja2
import tokenizers
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from gguf_tokenizer_test import MODEL, write_gguf
from trainer.text.chat_template import ChatTemplate
from trainer.text.errors import DataError, StorageError
from trainer.text.export import export_tokenizer
from trainer.text.tokenizer import load_tokenizer

FIXTURE = os.path.join(os.path.dirname(os.path.abspath(__file__)), "fixtures", "llama_cpp_ids.json.xz")

CHATML = ("{% for message in messages %}<|im_start|>{{ message['role'] + '\\n' + message['content'] }}<|im_end|>\n"
          "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}")

# What real templates use, one thing or two each.
TEMPLATES = {
    "chatml": CHATML,
    "headers and bos": """{{ bos_token }}{% for message in messages %}
    {%- set content = '<|start|>' + message['role'] + '<|end|>\n\n' + message['content'] | trim + eos_token %}
    {{- content }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|start|>assistant<|end|>\n\n' }}{% endif %}""",
    "alternation": """{% if messages[0]['role'] == 'system' %}{% set system = messages[0]['content'] %}
{% set rest = messages[1:] %}{% else %}{% set system = '' %}{% set rest = messages %}{% endif %}
{% for m in rest %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}
{{ raise_exception('Roles must alternate: ' ~ m.role) }}{% endif %}
{% if m['role'] == 'user' %}[INST] {{ (system + '\n' if loop.first and system else '') + m['content'] }} [/INST]
{% else %} {{ m['content'] + eos_token }}{% endif %}{% endfor %}""",
    "indented blocks": """{% for m in messages %}
    {% if m.role == 'user' %}
        {{ m.content }}
    {% else %}
        [{{ m.content }}]
    {% endif %}
    {# nothing #}
{% endfor %}""",
    "generation blocks": """{% for m in messages %}{% if m.role == 'assistant' %}<a>{% generation %}{{ m.content }}</s>
{% endgeneration %}{% else %}<{{ m.role[0] }}>{{ m.content }}{% endif %}{% endfor %}""",
    "namespace and loop controls": """{% set ns = namespace(seen=false, n=0) %}
{% for m in messages %}{% if m.role == 'system' %}{% continue %}{% endif %}
{% set ns.n = ns.n + 1 %}{{ ns.n }}:{{ m.content.strip().split('\n')[0] }}|{% if ns.n > 3 %}{% break %}{% endif %}
{% endfor %}{{ messages | length }} {{ messages[-1].role.upper() }} {{ dict(a=1).items() | list }}""",
    "tools and tojson": """{% if tools %}{% for tool in tools %}{{ tool | tojson(indent=2) }}
{% endfor %}{% endif %}{{ messages | tojson }}{{ "<&>'é" | tojson }}""",
    "macros and tests": """{% macro turn(m, last=false) %}{{ m.role }}={{ m.content if m.content is string else '-' }}
{%- if last %}!{% endif %}{% endmacro %}{% for m in messages %}{{ turn(m, loop.last) }}{% endfor %}
{{- messages | selectattr('role', 'equalto', 'user') | map(attribute='content') | join(', ') }}
{% if documents is none and custom is not defined %}none{% endif %}""",
    "reasoning": """{% for m in messages %}{{ m.role }}:{{ m.reasoning_content | default('') }}/{{ m.thinking }}/{{ m.content }}
{% endfor %}""",
    "date": "{{ strftime_now('%Y') | length }}{{ bos_token }}{{ eos_token }}{{ pad_token }}{{ unk_token }}",
}
CHATS = [
    [{"role": "user", "content": "Hi"}],
    [{"role": "system", "content": "Be brief.\n"}, {"role": "user", "content": " 2 + 2 = ? "},
     {"role": "assistant", "content": "4\n\n"}, {"role": "user", "content": "<|im_end|>é\u2028\U0001f600 {{ x }}"}],
    [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b", "reasoning": "c"},
     {"role": "user", "content": "d"}, {"role": "assistant", "content": ""}],
    [{"role": "assistant", "content": "I begin"}, {"role": "user", "content": "&lt;'\""}],
]
TOOLS = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object", "z": 1, "a": [True, None]}}}]


def byte_level_tokenizer() -> tokenizers.Tokenizer:
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True),
                                                       pre_tokenizers.ByteLevel(add_prefix_space=False)])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=700, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
                                  special_tokens=["<s>", "</s>", "<|im_start|>", "<|im_end|>"], show_progress=False)
    tokenizer.train_from_iterator(LINES[:2000], trainer)
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=True)
    return tokenizer


def metaspace_tokenizer() -> tokenizers.Tokenizer:
    """As Llama 2's: spaces as U+2581, bytes as a fallback, BOS in front."""
    tokenizer = tokenizers.Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Prepend("▁"),
                                                 normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(),
                                           decoders.Strip(" ", 1, 0)])
    trainer = trainers.BpeTrainer(vocab_size=900, show_progress=False, special_tokens=["<unk>", "<s>", "</s>"] +
                                  [f"<0x{byte:02X}>" for byte in range(256)])
    tokenizer.train_from_iterator(LINES[:500], trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", pair="<s> $A <s> $B",
                                                             special_tokens=[("<s>", 1)])
    return tokenizer


with lzma.open(FIXTURE, "rt", encoding="ascii") as fixture_file:
    LINES = json.load(fixture_file)["lines"][::7]


class Folder(unittest.TestCase):
    def setUp(self) -> None:
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = folder.name

    def write(self, name: str, content: str) -> None:
        with open(os.path.join(self.folder, name), "w", encoding="utf-8") as file:
            file.write(content)

    def save(self, tokenizer: tokenizers.Tokenizer, **options) -> None:
        PreTrainedTokenizerFast(tokenizer_object=tokenizer, **options).save_pretrained(self.folder)


class Transformers(Folder):
    def compare_tokens(self) -> None:
        ours, theirs = load_tokenizer(self.folder), AutoTokenizer.from_pretrained(self.folder)
        self.assertEqual(ours.eos_id, theirs.eos_token_id)
        encodings = ours.encode(LINES)
        for line, encoding, want in zip(LINES, encodings, theirs(LINES, add_special_tokens=False)["input_ids"]):
            self.assertEqual(encoding.ids, want, line)
        for line, encoding, want in zip(LINES[:200], encodings, theirs(LINES[:200])["input_ids"]):
            self.assertEqual(ours.prefix_ids + encoding.ids, want, line)
        for encoding in encodings[:500]:
            self.assertEqual(ours.decode(encoding.ids), theirs.decode(encoding.ids, skip_special_tokens=True))

    def test_byte_level_tokens_are_the_same(self) -> None:
        self.save(byte_level_tokenizer(), eos_token="<|im_end|>", pad_token="<|im_end|>")
        self.compare_tokens()

    def test_metaspace_tokens_are_the_same(self) -> None:
        self.save(metaspace_tokenizer(), bos_token="<s>", eos_token="</s>", unk_token="<unk>")
        self.compare_tokens()
        self.assertEqual(load_tokenizer(self.folder).prefix_ids, [1])

    def test_added_tokens_are_the_same(self) -> None:
        tokenizer = byte_level_tokenizer()
        tokenizer.add_tokens([AddedToken("foo bar", normalized=False), AddedToken("hacker", single_word=True)])
        tokenizer.add_special_tokens([AddedToken("<tool>", lstrip=True, rstrip=True)])
        self.save(tokenizer, eos_token="</s>", extra_special_tokens=["<tool>"])
        LINES.append(" a foo bar  <tool>  hackers hacker x")
        self.addCleanup(LINES.pop)
        self.compare_tokens()

    def test_truncation_and_padding_of_the_file_are_not_applied(self) -> None:
        tokenizer = byte_level_tokenizer()
        tokenizer.enable_truncation(3)
        tokenizer.enable_padding(length=64)
        tokenizer.save(os.path.join(self.folder, "tokenizer.json"))
        self.assertGreater(len(load_tokenizer(self.folder).encode(["one two three four five six"])[0].ids), 5)
        self.assertEqual(len(load_tokenizer(self.folder).encode(["1"])[0].ids), 1)

    def test_chats_are_rendered_the_same(self) -> None:
        for name, template in TEMPLATES.items():
            self.save(byte_level_tokenizer(), bos_token="<s>", eos_token="</s>", pad_token="</s>",
                      chat_template=template)
            ours, theirs = load_tokenizer(self.folder), AutoTokenizer.from_pretrained(self.folder)
            for chat in CHATS:
                for tools in (None, TOOLS):
                    for prompt in (False, True):
                        try:
                            want = theirs.apply_chat_template(chat, tools=tools, add_generation_prompt=prompt,
                                                              tokenize=False)
                        except jinja2.TemplateError as error:
                            with self.assertRaisesRegex(DataError, str(error)):
                                ours.render(chat, tools, prompt)
                            continue
                        got = ours.render(chat, tools, prompt)
                        self.assertEqual(got, want, name)
                        ids = theirs.apply_chat_template(chat, tools=tools, add_generation_prompt=prompt,
                                                         tokenize=True, return_dict=True)["input_ids"]
                        self.assertEqual(ours.encode([got])[0].ids, ids, name)

    def test_a_template_in_the_config_is_used_and_a_file_goes_before_it(self) -> None:
        self.save(byte_level_tokenizer(), eos_token="</s>")
        path = os.path.join(self.folder, "tokenizer_config.json")
        with open(path, encoding="utf-8") as file:
            config = json.load(file)
        for template in ("one", [{"name": "default", "template": "one"}, {"name": "tool_use", "template": "tools"}]):
            self.write("tokenizer_config.json", json.dumps(config | {"chat_template": template}))
            self.assertEqual(load_tokenizer(self.folder).render([]), "one")
        self.assertEqual(load_tokenizer(self.folder).render([], tools=TOOLS), "tools")
        self.write("chat_template.jinja", "two")
        self.assertEqual(load_tokenizer(self.folder).render([]), "two")


class Export(Folder):
    def compare(self, source: str) -> None:
        ours = load_tokenizer(source)
        self.assertIn("tokenizer.json", export_tokenizer(ours, source, self.folder))
        theirs, again = AutoTokenizer.from_pretrained(self.folder), load_tokenizer(self.folder)
        self.assertEqual((again.prefix_ids, again.stop_ids, again.special_tokens),
                         (ours.prefix_ids, ours.stop_ids, ours.special_tokens))
        for encoding, want, more in zip(ours.encode(LINES), theirs(LINES)["input_ids"], again.encode(LINES)):
            self.assertEqual(ours.prefix_ids + encoding.ids, want)
            self.assertEqual(encoding.ids, more.ids)
        self.assertEqual(theirs.apply_chat_template(CHATS[1], tokenize=False), ours.render(CHATS[1]))

    def test_a_gguf_gives_transformers_the_same_tokens_and_chats(self) -> None:
        self.compare(MODEL)

    def test_the_bos_of_a_gguf_is_kept(self) -> None:
        source = os.path.join(self.folder, "m.gguf")
        write_gguf(source, pre="llama-bpe", add_bos=None, template="{{ bos_token }}{{ messages[0].content }}")
        self.compare(source)

    def test_a_folder_is_copied(self) -> None:
        self.save(metaspace_tokenizer(), bos_token="<s>", eos_token="</s>", unk_token="<unk>", chat_template=CHATML)
        source = self.folder
        self.folder = os.path.join(source, "copy")
        os.mkdir(self.folder)
        self.compare(source)

    def test_a_folder_that_is_not_there_is_a_storage_error(self) -> None:
        with self.assertRaisesRegex(StorageError, "nowhere/tokenizer.json"):
            export_tokenizer(load_tokenizer(MODEL), MODEL, os.path.join(self.folder, "nowhere"))


class FolderErrors(Folder):
    def error(self) -> str:
        with self.assertRaises(DataError) as raised:
            load_tokenizer(self.folder)
        self.assertIn(self.folder, str(raised.exception))
        return str(raised.exception)

    def test_files_that_are_missing_or_damaged_are_named(self) -> None:
        self.assertIn("has no tokenizer.json", self.error())
        self.write("tokenizer.json", "{")
        self.assertIn("tokenizer.json: ", self.error())
        byte_level_tokenizer().save(os.path.join(self.folder, "tokenizer.json"))
        load_tokenizer(self.folder)
        for name, content, message in (
                ("tokenizer_config.json", "[]", "want a JSON object"),
                ("tokenizer_config.json", '{"eos_token": "<nope>"}', "eos_token '<nope>' is not in tokenizer.json"),
                ("tokenizer_config.json", '{"eos_token": 5}', "eos_token: got int"),
                ("tokenizer_config.json", '{"chat_template": 5}', "chat_template: want"),
                ("tokenizer_config.json", '{"chat_template": "{% if %}"}', "the chat template can't be read"),
                ("tokenizer_config.json", '{"chat_template": [{"name": "a", "template": "b"}]}', "'default'"),
                ("tokenizer_config.json", '{"added_tokens_decoder": {"9": {"content": "zzz"}}}', "has the id 9"),
                ("generation_config.json", '{"eos_token_id": [1, 100000]}', "want ids below"),
                ("special_tokens_map.json", "{", "special_tokens_map.json: ")):
            self.write(name, content)
            self.assertIn(message, self.error())
            os.unlink(os.path.join(self.folder, name))

    def test_stop_tokens_come_from_all_places(self) -> None:
        byte_level_tokenizer().save(os.path.join(self.folder, "tokenizer.json"))
        self.write("special_tokens_map.json", '{"eos_token": {"content": "</s>"}}')
        self.assertEqual(load_tokenizer(self.folder).stop_ids, [1])
        self.write("generation_config.json", '{"eos_token_id": [2, 1]}')
        self.assertEqual(load_tokenizer(self.folder).stop_ids, [1, 2])
        # A base model that was trained on ChatML: its EOS never comes, the template's end of turn does.
        self.write("chat_template.jinja", CHATML)
        self.assertEqual(load_tokenizer(self.folder).stop_ids, [1, 2, 3])

    def test_a_model_without_a_template_says_so(self) -> None:
        byte_level_tokenizer().save(os.path.join(self.folder, "tokenizer.json"))
        with self.assertRaisesRegex(DataError, "has no chat template"):
            load_tokenizer(self.folder).render(CHATS[0])


class Sandbox(unittest.TestCase):
    def test_whatever_a_template_raises_is_an_error_with_its_name(self) -> None:
        for template, message in (("{{ '{5}'.format(1) }}", "index out of range"), ("{{ cycler() }}", "at least one item"),
                                  ("{{ ''.encode('none') }}", "unknown encoding: none"),
                                  ("{{ 'a' * 10 ** 18 }}", "MemoryError")):
            template = ChatTemplate(template, "model", {})
            with self.assertRaisesRegex(DataError, f"the chat template of model refuses the messages: .*{message}"):
                template.render([])
        for template in ("{% for a in b %}" * 25 + "{% endfor %}" * 25, "{{ " + "(" * 9999 + "1" + ")" * 9999 + " }}"):
            with self.assertRaisesRegex(DataError, "model: the chat template can't be read: .*(nested|recursion)"):
                ChatTemplate(template, "model", {})

    def test_a_template_reaches_nothing_outside(self) -> None:
        for source in ("{{ messages.__class__.__mro__ }}", "{{ ''.__class__ }}", "{{ dict.__globals__ }}",
                       "{% set ns = namespace(__class__=1) %}", "{{ messages.append(1) }}",
                       "{{ raise_exception.__globals__['json'] }}", "{% include '/etc/passwd' %}"):
            template = ChatTemplate(source, "m", {})
            with self.assertRaises(DataError, msg=source):
                rendered = template.render([{"role": "user", "content": "x"}])
                if rendered.strip() == "":  # An undefined attribute is no leak.
                    raise DataError("empty")


if __name__ == "__main__":
    unittest.main()
