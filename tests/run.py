"""Runs every suite of tests/ (one folder, one suite), fast tests first, and prints one line per suite and the totals.

`make test` is this file. Each suite is a pytest of its own: a crash of one (a native library may abort) cannot hide the
others. Two processes share a suite's tests, unless each test starts several of its own. `python tests/run.py engine
router` runs only those suites; `--fast` leaves out what is marked slow.
"""

import argparse
import os
import subprocess
import sys
import time
import xml.etree.ElementTree as ElementTree
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

TESTS = Path(__file__).parent
LOGS = TESTS.parent / "build" / "tests"
NO_TESTS = 5  # pytest's exit status when nothing was collected
MESSAGE_LENGTH = 300  # characters of a failed test's message that the totals repeat
LAST = ("house", "demo", "e2e", "cluster")  # suites that take longest; a mistake elsewhere shows before them
ALONE = ("local", "e2e", "cluster")  # one test at a time: each starts routers and workers
FAST, SLOW = ("", "not slow"), (" (slow)", "slow")


@dataclass
class Result:
    suite: str
    exit_status: int
    seconds: float
    counts: Counter[str] = field(default_factory=Counter)
    skips: Counter[str] = field(default_factory=Counter)
    """Why tests were skipped, and how many."""
    failures: list[str] = field(default_factory=list)
    """Each failed test with the beginning of its message."""

    @property
    def failed(self) -> bool:
        return self.exit_status not in (0, NO_TESTS)

    def line(self) -> str:
        parts = [f"{self.counts[what]} {what}" for what in ("passed", "failed", "skipped") if self.counts[what]]
        if self.failed and not self.counts["failed"]:
            parts.append(f"pytest ended with status {self.exit_status}")
        return f"{self.suite:<22} {', '.join(parts):<38} {self.seconds:6.1f} s"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("suites", nargs="*", help="folders of tests/ to run (default: all)")
    parser.add_argument("--fast", action="store_true", help="leave out what is marked slow")
    arguments = parser.parse_args()
    wanted: list[str] = arguments.suites
    suites = sorted((folder.name for folder in TESTS.iterdir() if next(folder.rglob("test_*.py"), None)), key=when)
    unknown = [suite for suite in wanted if suite not in suites]
    if unknown:
        parser.error(f"no suite {unknown[0]!r}; there are {', '.join(suites)}")
    LOGS.mkdir(parents=True, exist_ok=True)
    begin = time.perf_counter()
    results = []
    for suffix, marker in (FAST,) if arguments.fast else (FAST, SLOW):
        for suite in wanted or suites:
            result = run_suite(suite, suffix, marker)
            if result.exit_status != NO_TESTS:
                results.append(result)
                print(result.line(), flush=True)
                if result.failed:
                    print(tail(log_of(result.suite)), flush=True)
    return summarize(results, time.perf_counter() - begin)


def when(suite: str) -> tuple[int, str]:
    """The order in which suites run."""
    return (LAST.index(suite) + 1 if suite in LAST else 0), suite


def run_suite(suite: str, suffix: str, marker: str) -> Result:
    """Runs the tests of one folder that `marker` selects."""
    name = suite + suffix
    report = log_of(name).with_suffix(".xml")
    report.unlink(missing_ok=True)
    command = [sys.executable, "-m", "pytest", str(TESTS / suite), "-m", marker, "-q", f"--junitxml={report}"]
    if suite not in ALONE:
        command += ["--numprocesses=2", "--dist=worksteal"]
    begin = time.perf_counter()
    with log_of(name).open("w") as log:
        # One thread per process: with more, two cores spend their time waiting for each other.
        environment = {"OMP_NUM_THREADS": "1"} | os.environ
        status = subprocess.run(command, cwd=TESTS.parent, stdout=log, stderr=log, env=environment, check=False)
    result = Result(name, status.returncode, time.perf_counter() - begin)
    if report.exists():
        read_report(report, result)
    return result


def read_report(report: Path, result: Result) -> None:
    for case in ElementTree.parse(report).iter("testcase"):
        outcomes = {child.tag: child for child in case}
        failure = next((outcomes[tag] for tag in ("failure", "error") if tag in outcomes), None)
        if failure is not None:
            result.counts["failed"] += 1
            message = " ".join(failure.get("message", "").split())
            result.failures.append(f"{case.get('classname')}::{case.get('name')}: {message[:MESSAGE_LENGTH]}")
        elif "skipped" in outcomes:
            result.counts["skipped"] += 1
            result.skips[outcomes["skipped"].get("message", "")] += 1
        else:
            result.counts["passed"] += 1


def log_of(name: str) -> Path:
    return LOGS / (name.replace(" ", "-").replace("(", "").replace(")", "") + ".log")


def tail(log: Path, num_lines: int = 60) -> str:
    return "\n".join(log.read_text(errors="replace").splitlines()[-num_lines:])


def summarize(results: list[Result], seconds: float) -> int:
    """Prints the totals; returns the exit status."""
    total: Counter[str] = Counter()
    skips: Counter[str] = Counter()
    for result in results:
        total += result.counts
        skips += result.skips
    for reason, count in sorted(skips.items()):
        print(f"skipped {count}: {reason}")
    failed = [result.suite for result in results if result.failed]
    print(
        f"{total['passed']} passed, {total['failed']} failed, {total['skipped']} skipped "
        f"in {len(results)} suites, {seconds:.0f} s"
    )
    for failure in [failure for result in results for failure in result.failures]:
        print(f"failed: {failure}")  # again, because people and machines look at the end of a long log
    if failed:
        print(f"failed: {', '.join(failed)} (logs in {LOGS.relative_to(TESTS.parent)})")
    return 1 if failed or not results else 0


if __name__ == "__main__":
    sys.exit(main())
