"""Reads the files that the metrics writer makes with readers of its own: TensorBoard's record and protobuf formats
written out from their specification, the csv module, and transformers' TrainerState."""

import argparse
import csv
import glob
import json
import struct
import subprocess
import tempfile
from pathlib import Path


def crc32c(data: bytes) -> int:
    """CRC-32C by polynomial division, one bit at a time."""
    crc = 0xFFFFFFFF
    for byte in data:
        for bit in range(8):
            feedback = (crc ^ (byte >> bit)) & 1
            crc >>= 1
            if feedback:
                crc ^= int("{:032b}".format(0x1EDC6F41)[::-1], 2)
    return crc ^ 0xFFFFFFFF


def masked(crc: int) -> int:
    return ((((crc >> 15) | (crc << 17)) & 0xFFFFFFFF) + 0xA282EAD8) & 0xFFFFFFFF


def records(data: bytes) -> list[bytes]:
    out = []
    at = 0
    while at < len(data):
        (length,) = struct.unpack_from("<Q", data, at)
        (length_crc,) = struct.unpack_from("<I", data, at + 8)
        assert length_crc == masked(crc32c(data[at : at + 8])), "checksum of a length"
        body = data[at + 12 : at + 12 + length]
        (body_crc,) = struct.unpack_from("<I", data, at + 12 + length)
        assert body_crc == masked(crc32c(body)), "checksum of a record"
        out.append(body)
        at += 16 + length
    return out


def varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            return value, at


def fields(data: bytes) -> list[tuple[int, object]]:
    """Field number and value of each field of a protobuf message."""
    out: list[tuple[int, object]] = []
    at = 0
    while at < len(data):
        tag, at = varint(data, at)
        kind = tag & 7
        if kind == 0:
            value, at = varint(data, at)
        elif kind == 1:
            value, at = struct.unpack_from("<d", data, at)[0], at + 8
        elif kind == 2:
            length, at = varint(data, at)
            value, at = data[at : at + length], at + length
        elif kind == 5:
            value, at = struct.unpack_from("<f", data, at)[0], at + 4
        else:
            raise AssertionError(f"wire type {kind}")
        out.append((tag >> 3, value))
    return out


def read_events(folder: Path) -> dict[str, dict[int, float]]:
    """tag -> step -> value, as TensorBoard reads a folder: files by name, a session start purges later steps."""
    scalars: dict[str, dict[int, float]] = {}
    files = sorted(glob.glob(str(folder / "events.out.tfevents.*")))
    assert len(files) >= 1, "no event file"
    for name in files:
        events = [dict(fields(record)) for record in records(Path(name).read_bytes())]
        assert events[0][3] == b"brain.Event:2", "the first event is the file's version"
        for event in events[1:]:
            assert event[1] > 1.6e9, "wall time"
            step = event[2]
            if 7 in event:
                assert fields(event[7]) == [(1, 1)], "session log: status START"
                for values in scalars.values():
                    for late in [s for s in values if s >= step]:
                        del values[late]
            if 5 in event:
                for number, value in fields(event[5]):
                    entry = dict(fields(value))
                    assert number == 1 and set(entry) == {1, 2}
                    scalars.setdefault(entry[1].decode(), {})[step] = entry[2]
    return scalars


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("tool")
    args = parser.parse_args()
    assert crc32c(b"123456789") == 0xE3069283
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        subprocess.run([args.tool, name], check=True)

        lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        assert [line["step"] for line in lines] == [1, 2, 3, 4, 5]
        assert lines[4]["loss"] == 3.0 - 5 / 3 and lines[1]["eval_loss"] == 2.5 and "eval_loss" not in lines[0]
        assert lines[0]["phase_seconds"] == {"forward": 0.1, "backward": 0.2}

        scalars = read_events(folder)
        for line in lines:
            step = line["step"]
            for tag, key in [("train/loss", "loss"), ("train/grad_norm", "grad_norm"),
                             ("train/learning_rate", "learning_rate"), ("train/epoch", "epoch")]:
                assert scalars[tag][step] == struct.unpack("<f", struct.pack("<f", line[key]))[0], (tag, step)
        assert sorted(scalars["train/loss"]) == [1, 2, 3, 4, 5]
        assert scalars["eval/loss"] == {0: 4.0, 2: 2.5, 4: 2.5}
        assert scalars["time/backward"][5] == struct.unpack("<f", struct.pack("<f", 0.2))[0]

        with open(folder / "metrics.csv", newline="") as file:
            rows = list(csv.DictReader(file))
        assert [row["step"] for row in rows] == ["1", "2", "3", "4", "5"]
        for row, line in zip(rows, lines):
            assert float(row["loss"]) == line["loss"] and int(row["tokens"]) == line["tokens"]
            assert row["eval_loss"] == ("2.5" if "eval_loss" in line else "")
            assert None not in row and None not in row.values(), "a row with too many or too few cells"

        from transformers.trainer_callback import TrainerState

        state = TrainerState.load_from_json(str(folder / "trainer_state.json"))
        assert state.global_step == 5 and state.epoch == 1.25
        losses = [entry for entry in state.log_history if "loss" in entry]
        assert [entry["step"] for entry in losses] == [2, 4]
        assert [e["eval_loss"] for e in state.log_history if "eval_loss" in e] == [2.5, 2.5]
    print("ok")


if __name__ == "__main__":
    main()
