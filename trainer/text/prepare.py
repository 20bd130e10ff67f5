"""Makes a token cache from data files. Progress and result go to standard output, a JSON object a line."""
import importlib.metadata
import itertools
import json
import time
from dataclasses import dataclass, field
from typing import Any, Iterator

from .encoding import EncodedSample, encode_samples
from .errors import ConfigError, DataError, escaped
from .formats import Sample, choose_format, ignored_columns
from .records import read_records
from .token_cache import TokenCacheWriter
from .tokenizer import TextTokenizer, load_tokenizer

SAMPLES_AT_A_TIME = 256
SECONDS_BETWEEN_PROGRESS = 1.0
MAX_PROMPTS = 1000
MAX_PROMPT_CHARACTERS = 2000
EXCESS_LENGTH = ("drop", "truncate", "raise")


@dataclass(frozen=True)
class Spec:
    output: str
    tokenizer: str
    datasets: list[dict[str, str]]
    sequence_len: int
    excess_length: str = "drop"
    train_on_inputs: bool = False

    def __post_init__(self) -> None:
        if not self.datasets:
            raise ConfigError("datasets: empty; want at least one file")
        if self.sequence_len < 2:
            raise ConfigError(f"sequence_len: {self.sequence_len}, want at least 2")
        if self.excess_length not in EXCESS_LENGTH:
            raise ConfigError(f"excess_length_strategy: '{escaped(self.excess_length)}', want "
                              f"{', '.join(EXCESS_LENGTH)}")


@dataclass
class Counts:
    dropped_too_long: int = 0
    dropped_untrained: int = 0
    truncated: int = 0
    prompts: list[str] = field(default_factory=list)


def say(**message: Any) -> None:
    print(json.dumps(message), flush=True)


def peak_rss_bytes() -> int:
    """The largest resident set so far. (ru_maxrss would count what ran in this process before exec.)"""
    with open("/proc/self/status", encoding="ascii", errors="replace") as file:
        for line in file:
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return 0


def _samples(dataset: dict[str, str]) -> Iterator[Sample]:
    form = None
    for where, record in read_records(dataset["path"]):
        if form is None:
            form = choose_format(dataset.get("type", "auto"), record, where)
            ignored = ignored_columns(form, record)
            say(progress=f"{escaped(dataset['path'])}: read as {form.name}" +
                (f"; columns not used: {escaped(', '.join(ignored))}" if ignored else ""))
        yield form.convert(record, where)
    if form is None:
        raise DataError(f"{escaped(dataset['path'], 4096)}: holds no samples")


def _keep(sample: EncodedSample, spec: Spec, counts: Counts) -> bool:
    """Whether the sample goes into the cache; shortens it where it has to be."""
    length = len(sample.ids)
    if length > spec.sequence_len:
        if spec.excess_length == "raise":
            raise DataError(f"{sample.where}: {length} tokens, want at most {spec.sequence_len} (sequence_len); "
                            "excess_length_strategy: raise")
        if spec.excess_length == "drop":
            counts.dropped_too_long += 1
            return False
        del sample.ids[spec.sequence_len:], sample.trained[spec.sequence_len:]
    if not any(sample.trained):
        counts.dropped_untrained += 1
        return False
    counts.truncated += length > spec.sequence_len
    if (sample.prompt is not None and len(sample.prompt) <= MAX_PROMPT_CHARACTERS and len(counts.prompts) < MAX_PROMPTS):
        counts.prompts.append(sample.prompt)
    return True


def _write_samples(spec: Spec, tokenizer: TextTokenizer, writer: TokenCacheWriter, counts: Counts) -> None:
    samples = itertools.chain.from_iterable(map(_samples, spec.datasets))
    done, told = 0, time.monotonic()
    while batch := list(itertools.islice(samples, SAMPLES_AT_A_TIME)):
        for sample in encode_samples(tokenizer, batch, spec.train_on_inputs):
            if _keep(sample, spec, counts):
                writer.add(sample.ids, sample.trained)
        done += len(batch)
        if time.monotonic() - told >= SECONDS_BETWEEN_PROGRESS:
            told = time.monotonic()
            say(progress=f"{done} samples, {writer.num_tokens} tokens")


def prepare(spec: Spec) -> None:
    say(progress=f"loading the tokenizer of {escaped(spec.tokenizer)}")
    tokenizer = load_tokenizer(spec.tokenizer)
    counts = Counts()
    with TokenCacheWriter(spec.output) as writer:
        _write_samples(spec, tokenizer, writer, counts)
        if writer.num_samples == 0:
            raise DataError(
                f"{escaped(', '.join(dataset['path'] for dataset in spec.datasets), 4096)}: no sample is left: "
                f"{counts.dropped_too_long} are longer than sequence_len {spec.sequence_len}, "
                f"{counts.dropped_untrained} have no token to train on")
        metadata = {
            "dropped_too_long": counts.dropped_too_long,
            "dropped_untrained": counts.dropped_untrained,
            "truncated": counts.truncated,
            "prompts": counts.prompts,
            "settings": {"sequence_len": spec.sequence_len, "excess_length_strategy": spec.excess_length,
                         "train_on_inputs": spec.train_on_inputs},
            "versions": {name: importlib.metadata.version(name) for name in ("tokenizers", "jinja2")},
        }
        writer.commit(metadata)
    say(done={"samples": writer.num_samples, "tokens": writer.num_tokens, "trained": writer.num_trained,
              "peak_rss_bytes": peak_rss_bytes()})
