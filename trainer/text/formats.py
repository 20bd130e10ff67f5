"""What a record of a data file means: each format turns it into a Chat or a Completion. docs/data.md shows them."""
from dataclasses import dataclass, field
from typing import Any, Callable

from .errors import ConfigError, DataError, escaped
from .records import Record

ALPACA_WITH_INPUT = (
    "Below is an instruction that describes a task, paired with an input that provides further context. "
    "Write a response that appropriately completes the request.")
ALPACA_WITHOUT_INPUT = (
    "Below is an instruction that describes a task. Write a response that appropriately completes the request.")

SHAREGPT_ROLES = {"system": "system", "human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant",
                  "model": "assistant", "tool": "tool", "observation": "tool"}


@dataclass
class Chat:
    """Trained on: what the assistant says in the messages from `first_trained` on."""
    where: str
    messages: list[dict]
    tools: list[dict] | None = None
    first_trained: int = 0

    def user_prompt(self) -> str | None:
        """What the user says, when that is all of one turn."""
        said = [message.get("content") for message in self.messages if message["role"] == "user"]
        return said[0] if len(said) == 1 and isinstance(said[0], str) else None


@dataclass
class Completion:
    """Trained on: `completion` and the EOS after it."""
    where: str
    prompt: str
    completion: str
    question: str | None = field(default=None)

    def user_prompt(self) -> str | None:
        return self.question


Sample = Chat | Completion


def _string(record: Record, key: str, where: str, default: str | None = None) -> str:
    value = record.get(key, default)
    if value is None:
        raise DataError(f"{where}: {key} is missing")
    if not isinstance(value, str):
        raise DataError(f"{where}: {key}: got {type(value).__name__}, want a string")
    return value


def _message(value: Any, where: str) -> dict:
    if not isinstance(value, dict):
        raise DataError(f"{where}: got {type(value).__name__}, want an object with role and content")
    message = {key: item for key, item in value.items() if item is not None}
    _string(message, "role", where)
    content = message.get("content")
    if isinstance(content, list):
        for part in content:
            if not isinstance(part, dict) or part.get("type") != "text" or not isinstance(part.get("text"), str):
                raise DataError(f"{where}: content: want a string, or a list of {{type: text, text}} only")
    elif not isinstance(content, str) and not (content is None and message.get("tool_calls")):
        raise DataError(f"{where}: content: got {type(content).__name__}, want a string")
    return message


def _messages(value: Any, key: str, where: str) -> list[dict]:
    if not isinstance(value, list) or not value:
        raise DataError(f"{where}: {key}: want a list of messages, at least one")
    return [_message(item, f"{where}: {key}[{number}]") for number, item in enumerate(value)]


def _tools(record: Record, where: str) -> list[dict] | None:
    tools = record.get("tools")
    if tools is not None and not (isinstance(tools, list) and all(isinstance(tool, dict) for tool in tools)):
        raise DataError(f"{where}: tools: want a list of objects (JSON schemas)")
    return tools


def _from_messages(record: Record, where: str) -> Sample:
    return Chat(where, _messages(record.get("messages"), "messages", where), _tools(record, where))


def _from_sharegpt(record: Record, where: str) -> Sample:
    turns = record.get("conversations")
    if not isinstance(turns, list) or not turns:
        raise DataError(f"{where}: conversations: want a list of {{from, value}}, at least one")
    messages = []
    if record.get("system"):
        messages.append({"role": "system", "content": _string(record, "system", where)})
    for number, turn in enumerate(turns):
        place = f"{where}: conversations[{number}]"
        if not isinstance(turn, dict):
            raise DataError(f"{place}: got {type(turn).__name__}, want an object with from and value")
        speaker = _string(turn, "from", place)
        if speaker not in SHAREGPT_ROLES:
            raise DataError(f"{place}: from: '{escaped(speaker)}', want one of {', '.join(SHAREGPT_ROLES)}")
        messages.append({"role": SHAREGPT_ROLES[speaker], "content": _string(turn, "value", place)})
    return Chat(where, messages, _tools(record, where))


def _from_prompt_completion(record: Record, where: str) -> Sample:
    if isinstance(record.get("prompt"), list):
        prompt = _messages(record["prompt"], "prompt", where)
        completion = _messages(record.get("completion"), "completion", where)
        return Chat(where, prompt + completion, _tools(record, where), first_trained=len(prompt))
    prompt = _string(record, "prompt", where)
    return Completion(where, prompt, _string(record, "completion", where), question=prompt)


def _from_alpaca(record: Record, where: str) -> Sample:
    if record.get("history"):
        raise DataError(f"{where}: history: alpaca records with a history are not supported; write them as messages")
    instruction = _string(record, "instruction", where)
    context = _string(record, "input", where, default="")
    preface = _string(record, "system", where, default="") or (ALPACA_WITH_INPUT if context else ALPACA_WITHOUT_INPUT)
    middle = f"### Instruction:\n{instruction}\n\n" + (f"### Input:\n{context}\n\n" if context else "")
    return Completion(where, f"{preface}\n\n{middle}### Response:\n", _string(record, "output", where),
                      question=f"{instruction}\n{context}" if context else instruction)


def _from_text(record: Record, where: str) -> Sample:
    return Completion(where, "", _string(record, "text", where))


@dataclass(frozen=True)
class Format:
    name: str
    needs: tuple[str, ...]
    may_have: tuple[str, ...]
    convert: Callable[[Record, str], Sample]


# In the order in which `auto` tries them.
_IN_ORDER = (
    Format("chat_template", ("messages",), ("tools",), _from_messages),
    Format("sharegpt", ("conversations",), ("system", "tools"), _from_sharegpt),
    Format("prompt_completion", ("prompt", "completion"), ("tools",), _from_prompt_completion),
    Format("alpaca", ("instruction", "output"), ("input", "system", "history"), _from_alpaca),
    Format("text", ("text",), (), _from_text),
)
FORMATS = {form.name: form for form in _IN_ORDER} | {"completion": _IN_ORDER[-1]}


def choose_format(type_name: str, record: Record, where: str) -> Format:
    """The format called `type_name`; auto: the first whose columns the record has.
    Errors: ConfigError for an unknown name; DataError with the columns found when they don't fit."""
    if type_name != "auto" and type_name not in FORMATS:
        raise ConfigError(f"datasets: type '{escaped(type_name)}': want auto, {', '.join(FORMATS)}")
    candidates = _IN_ORDER if type_name == "auto" else (FORMATS[type_name],)
    for form in candidates:
        if all(key in record for key in form.needs):
            return form
    wanted = " or ".join("+".join(form.needs) for form in candidates)
    found = ", ".join(escaped(key) for key in record) or "none"
    raise DataError(f"{where}: columns found: {found}; want {wanted}")


def ignored_columns(form: Format, record: Record) -> list[str]:
    return [key for key in record if key not in form.needs + form.may_have]
