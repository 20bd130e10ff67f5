"""Renders chats with a model's Jinja template exactly as Hugging Face transformers does: the same environment,
filters and globals (transformers.utils.chat_template_utils, 5.23). Templates come with models, from anybody, so they
run in Jinja's sandbox with the same extra guards."""
import json
from datetime import datetime
from typing import Any

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.sandbox

from .errors import DataError, escaped

REASONING_KEYS = ("reasoning_content", "thinking", "reasoning")


class _Generation(jinja2.ext.Extension):
    """{% generation %} ... {% endgeneration %}: marks what the assistant says; its body is rendered as it stands."""
    tags = {"generation"}

    def parse(self, parser: Any) -> jinja2.nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(["name:endgeneration"], drop_needle=True)
        return jinja2.nodes.CallBlock(self.call_method("_body"), [], [], body).set_lineno(line)

    def _body(self, caller: Any) -> str:
        return caller()


class _Dict:
    """The name `dict` in templates: without the attributes of the real type."""

    def __call__(self, *args: Any, **kwargs: Any) -> dict:
        return dict(*args, **kwargs)

    def fromkeys(self, *args: Any, **kwargs: Any) -> dict:
        return dict.fromkeys(*args, **kwargs)


class _Namespace(jinja2.utils.Namespace):
    """A namespace without attributes that begin with an underscore."""

    def __init__(*args: Any, **kwargs: Any):  # pylint: disable=no-method-argument
        self, args = args[0], args[1:]
        attributes = dict(*args, **kwargs)
        for name in attributes:
            _Namespace._check(name)
        jinja2.utils.Namespace.__init__(self, attributes)

    def __setitem__(self, name: Any, value: Any) -> None:
        _Namespace._check(name)
        jinja2.utils.Namespace.__setitem__(self, name, value)

    @staticmethod
    def _check(name: Any) -> None:
        if isinstance(name, str) and name.startswith("_"):
            raise jinja2.exceptions.SecurityError(f"attribute {name!r} of a namespace")


def _raise_exception(message: str) -> None:
    raise jinja2.exceptions.TemplateError(message)


def _tojson(value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None,
            sort_keys: bool = False) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _said(error: Exception) -> str:
    return escaped(error) or type(error).__name__


def _strftime_now(form: str) -> str:
    return datetime.now().strftime(form)


def _with_reasoning_aliases(message: dict) -> dict:
    reasoning = next((message[key] for key in REASONING_KEYS if message.get(key) is not None), None)
    return message if reasoning is None else {"thinking": reasoning, **message, "reasoning_content": reasoning}


class ChatTemplate:
    """A compiled template. `variables` are those that transformers passes besides the messages: bos_token and so
    on."""

    def __init__(self, source: str, where: str, variables: dict[str, str]):
        self.source = source
        self.where = where
        self.variables = variables
        environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, jinja2.ext.loopcontrols])
        environment.filters["tojson"] = _tojson
        environment.globals["raise_exception"] = _raise_exception
        environment.globals["strftime_now"] = _strftime_now
        environment.globals["dict"] = _Dict()
        environment.globals["namespace"] = _Namespace
        try:
            self._template = environment.from_string(source)
        except Exception as error:  # As below; too many nested blocks are a SyntaxError of Python's.
            raise DataError(f"{where}: the chat template can't be read: {_said(error)}") from None

    def render(self, messages: list[dict], tools: list[dict] | None = None, add_generation_prompt: bool = False) -> str:
        """Errors: DataError with what the template (raise_exception) or Jinja says."""
        try:
            return self._template.render(
                messages=[_with_reasoning_aliases(dict(message)) for message in messages], tools=tools, documents=None,
                add_generation_prompt=add_generation_prompt, **self.variables)
        except Exception as error:  # What a template can raise is up to whoever wrote it.
            raise DataError(f"the chat template of {self.where} refuses the messages: {_said(error)}") from None
