#!/usr/bin/env python3
"""tests/summarize.py counts what ctest, GoogleTest and unittest printed. The texts are shortened copies of theirs."""
import pathlib
import subprocess
import sys
import tempfile
import unittest
from xml.sax.saxutils import escape

SUMMARIZE = pathlib.Path(__file__).resolve().parents[1] / "summarize.py"

GTEST = """\
[ RUN      ] A.Passes
[       OK ] A.Passes (0 ms)
[ RUN      ] A.Fails
g.cc:4: Failure
[  FAILED  ] A.Fails (0 ms)
[ RUN      ] A.Skips
g.cc:5: Skipped
needs root
or so

[  SKIPPED ] A.Skips (0 ms)
[ RUN      ] P.Fails/1
[  FAILED  ] P.Fails/1, where GetParam() = 2 (0 ms)
[  PASSED  ] 1 test.
[  SKIPPED ] 1 test, listed below:
[  SKIPPED ] A.Skips
[  FAILED  ] 2 tests, listed below:
[  FAILED  ] A.Fails
[  FAILED  ] P.Fails/1, where GetParam() = 2
"""
RANK = "[ RUN      ] B.Passes\n[       OK ] B.Passes (0 ms)\n[  PASSED  ] 4 tests.\n"
UNITTEST = """\
test_a (__main__.T.test_a) ... ok
test_b (__main__.T.test_b) ... skipped 'no disk'
test_c (__main__.T.test_c) ... FAIL
======================================================================
FAIL: test_c (__main__.T.test_c)
----------------------------------------------------------------------
Ran 3 tests in 0.001s

FAILED (failures=1, skipped=1)
"""
QUIET_UNITTEST = "..s\n-----\nRan 3 tests in 0.1s\n\nOK (skipped=1)\n"


def entry(name: str, status: str, text: str = "", inside: str = "") -> str:
    return f'<testcase name="{name}" status="{status}">{inside}<system-out>{escape(text)}</system-out></testcase>'


class SummarizeTest(unittest.TestCase):
    def summary(self, *entries: str, failed_builds: str = "") -> tuple[int, list[str]]:
        with tempfile.TemporaryDirectory() as folder:
            pathlib.Path(folder, "cpu.xml").write_text(f"<testsuite>{''.join(entries)}</testsuite>", encoding="utf-8")
            if failed_builds:
                pathlib.Path(folder, "failed-builds").write_text(failed_builds, encoding="utf-8")
            run = subprocess.run([sys.executable, SUMMARIZE, folder], capture_output=True, text=True, check=False)
        self.assertEqual(run.stderr, "")
        return run.returncode, run.stdout.splitlines()

    def test_counts_the_cases_of_googletest(self) -> None:
        status, lines = self.summary(entry("g", "fail", GTEST, '<failure message="Failed"/>'))
        self.assertEqual(status, 1)
        self.assertEqual(lines, ["cpu: 1 passed, 2 failed, 1 skipped", "Skipped:", "  cpu: g: A.Skips: needs root or so",
                                 "Failed:", "  cpu: g: A.Fails", "  cpu: g: P.Fails/1",
                                 "1 passed, 2 failed, 1 skipped"])

    def test_counts_the_cases_of_several_ranks_once(self) -> None:
        self.assertEqual(self.summary(entry("mpi", "run", RANK * 3))[1][-1], "4 passed, 0 failed, 0 skipped")

    def test_counts_the_cases_of_unittest(self) -> None:
        status, lines = self.summary(entry("py", "fail", UNITTEST, '<failure message="Failed"/>'))
        self.assertEqual(status, 1)
        self.assertIn("  cpu: py: test_b: no disk", lines)
        self.assertIn("  cpu: py: test_c", lines)
        self.assertEqual(lines[-1], "1 passed, 1 failed, 1 skipped")

    def test_counts_skips_without_a_reason(self) -> None:
        status, lines = self.summary(entry("py", "run", QUIET_UNITTEST))
        self.assertEqual(status, 0)
        self.assertIn("  cpu: py: no reason printed", lines)
        self.assertEqual(lines[-1], "2 passed, 0 failed, 1 skipped")

    def test_takes_an_entry_of_another_form_for_one_test(self) -> None:
        status, lines = self.summary(
            entry("plain", "run"), entry("device", "notrun", "skipped: no device\n", '<skipped message="SKIP_RETURN_CODE=77"/>'))
        self.assertEqual(status, 0)
        self.assertIn("  cpu: device: skipped: no device", lines)
        self.assertEqual(lines[-1], "1 passed, 0 failed, 1 skipped")

    def test_a_crash_after_passing_cases_is_a_failure(self) -> None:
        status, lines = self.summary(entry("g", "fail", RANK, '<failure message="SEGFAULT"/>'))
        self.assertEqual(status, 1)
        self.assertIn("  cpu: g: SEGFAULT", lines)
        self.assertEqual(lines[-1], "4 passed, 1 failed, 0 skipped")

    def test_what_could_not_be_started_or_built_is_a_failure(self) -> None:
        status, lines = self.summary(entry("plain", "run"),
                                     entry("gone", "notrun", "", '<skipped message="Unable to find executable"/>'),
                                     failed_builds="cpu\n")
        self.assertEqual(status, 1)
        self.assertEqual(lines[-1], "1 passed, 2 failed, 0 skipped")

    def test_an_entry_without_any_case_is_a_failure(self) -> None:
        self.assertEqual(self.summary(entry("g", "run", "[  PASSED  ] 0 tests.\n"))[1][-1], "0 passed, 1 failed, 0 skipped")

    def test_no_result_at_all_is_no_success(self) -> None:
        status, lines = self.summary()
        self.assertEqual((status, lines[-1]), (1, "0 passed, 0 failed, 0 skipped"))


if __name__ == "__main__":
    unittest.main(verbosity=2)
