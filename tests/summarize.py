#!/usr/bin/env python3
"""Sums up the test results that tests/run.sh left in a folder: JUnit files of ctest, and the file failed-builds.

Counts single GoogleTest and unittest cases where an entry of ctest holds many; an entry of another form is one
test. Prints what failed and what was skipped with its reason, then `N passed, N failed, N skipped` as the last line.
Exit status: 0 if nothing failed and something passed.
"""
import argparse
import pathlib
import re
import sys
import xml.etree.ElementTree as ElementTree
from dataclasses import dataclass, field

GTEST_PASSED = re.compile(r"^\[  PASSED  \] (\d+) tests?\.", re.M)
GTEST_FAILED = re.compile(r"^\[  FAILED  \] (\d+) tests?, listed below", re.M)
GTEST_FAILED_NAME = re.compile(r"^\[  FAILED  \] (\S+\.\S+?),? .*\(\d+ ms\)", re.M)
GTEST_SKIPPED_COUNT = re.compile(r"^\[  SKIPPED \] (\d+) tests?, listed below", re.M)
GTEST_SKIPPED = re.compile(
    r"^\[ RUN      \] (\S+)\r?$(?:(?!^\[ RUN).)*?: Skipped\r?\n(.*?)\r?\n\[  SKIPPED \] \1", re.M | re.S)
UNITTEST_RAN = re.compile(r"^Ran (\d+) tests? in", re.M)
UNITTEST_BAD = re.compile(r"^FAILED \((.*)\)", re.M)
UNITTEST_COUNT = re.compile(r"(failures|errors|unexpected successes|skipped)=(\d+)")
UNITTEST_FAILED_NAME = re.compile(r"^(?:FAIL|ERROR): (\S+)", re.M)
UNITTEST_SKIPPED = re.compile(r"^(\S+) \(.*\.\.\. skipped ['\"](.*)['\"]$", re.M)
UNITTEST_OK_SKIPPED = re.compile(r"^OK \(skipped=(\d+)\)", re.M)


@dataclass
class Outcome:
    """What an entry of ctest, or all of them, came to."""
    passed: int = 0
    failed: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)

    def add(self, other: "Outcome") -> None:
        self.passed += other.passed
        self.failed += other.failed
        self.skipped += other.skipped


def names(entry: str, count: int, known: list[str]) -> list[str]:
    """`count` lines for the report, as many with a case's name as are known."""
    known = list(dict.fromkeys(known))[:count]
    return [f"{entry}: {name}" for name in known] + [entry] * (count - len(known))


def most(pattern: re.Pattern, text: str) -> int:
    """The largest count: every rank of an MPI test prints the summary of the same cases."""
    return max(map(int, pattern.findall(text)), default=0)


def gtest_outcome(entry: str, text: str) -> Outcome:
    reasons = dict(GTEST_SKIPPED.findall(text))
    skipped = [f"{entry}: {case}: {' '.join(reason.split())}" for case, reason in reasons.items()]
    skipped += [f"{entry}: no reason printed"] * (most(GTEST_SKIPPED_COUNT, text) - len(skipped))
    return Outcome(most(GTEST_PASSED, text),
                   names(entry, most(GTEST_FAILED, text), GTEST_FAILED_NAME.findall(text)), skipped)


def unittest_outcome(entry: str, text: str) -> Outcome:
    counts = {kind: int(number) for kind, number in UNITTEST_COUNT.findall(" ".join(UNITTEST_BAD.findall(text)))}
    skips = counts.pop("skipped", most(UNITTEST_OK_SKIPPED, text))
    bad = sum(counts.values())
    skipped = [f"{entry}: {case}: {reason}" for case, reason in UNITTEST_SKIPPED.findall(text)]
    skipped += [f"{entry}: no reason printed"] * (skips - len(skipped))
    ran = sum(map(int, UNITTEST_RAN.findall(text)))
    return Outcome(ran - bad - len(skipped), names(entry, bad, UNITTEST_FAILED_NAME.findall(text)), skipped)


def entry_outcome(preset: str, case: ElementTree.Element) -> Outcome:
    entry = f"{preset}: {case.get('name')}"
    text = case.findtext("system-out") or ""
    ok = case.get("status") == "run"
    if case.find("skipped") is not None and case.get("status") != "fail":
        if case.find("skipped").get("message", "").startswith("SKIP"):
            return Outcome(skipped=[f"{entry}: {text.strip().splitlines()[-1] if text.strip() else 'no reason printed'}"])
        return Outcome(failed=[f"{entry}: not run: {case.find('skipped').get('message')}"])
    if GTEST_PASSED.search(text) or GTEST_FAILED.search(text):
        outcome = gtest_outcome(entry, text)
    elif UNITTEST_RAN.search(text):
        outcome = unittest_outcome(entry, text)
    else:
        outcome = Outcome(passed=int(ok))
    if not ok and not outcome.failed:
        message = case.find("failure").get("message") if case.find("failure") is not None else ""
        outcome.failed = [f"{entry}: {message or 'failed'}"]
    if ok and outcome.failed:
        outcome.failed = [f"{line} (but its exit status was 0)" for line in outcome.failed]
    if ok and outcome == Outcome():
        outcome.failed = [f"{entry}: holds no test"]
    return outcome


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("results", type=pathlib.Path)
    results = parser.parse_args().results

    total = Outcome()
    failed_builds = results / "failed-builds"
    if failed_builds.exists():
        total.failed += [f"{preset}: configure or build" for preset in failed_builds.read_text().split()]
    for file in sorted(results.glob("*.xml")):
        part = Outcome()
        for case in ElementTree.parse(file).getroot().iter("testcase"):
            part.add(entry_outcome(file.stem, case))
        print(f"{file.stem}: {part.passed} passed, {len(part.failed)} failed, {len(part.skipped)} skipped")
        total.add(part)
    for heading, lines in (("Skipped", total.skipped), ("Failed", total.failed)):
        if lines:
            print(f"{heading}:")
            for line in lines:
                print(f"  {line}")
    print(f"{total.passed} passed, {len(total.failed)} failed, {len(total.skipped)} skipped")
    return 0 if total.passed and not total.failed else 1


if __name__ == "__main__":
    sys.exit(main())
