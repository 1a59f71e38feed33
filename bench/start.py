"""How long `penstock up`, `penstock demo` and, in a fresh clone, `make demo` take.

python -m bench.start [--rounds 3]
"""

import argparse
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

from bench.processes import ROOT, Tied, run
from bench.report import Report, compare
from penstock.listen import free_port

UP_LIMIT_S = 10.0
FRESH_LIMIT_S = 60.0
"""With packages cached by pip; 300 s when they must be downloaded."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3, help="rounds (default: 3)")
    rounds = parser.parse_args().rounds
    report = Report("start")
    ups = [up_s() for _ in range(rounds)]
    demos = [demo_s() for _ in range(rounds)]
    report.rows = [
        compare("penstock up, 1 prefill and 1 decode: command to ready, p50", "s", median(ups), limit=UP_LIMIT_S),
        compare("penstock demo: command to end, p50", "s", median(demos)),
        compare("make demo in a fresh clone: installing included", "s", fresh_clone_s(), limit=FRESH_LIMIT_S),
    ]
    report.finish()


def up_s() -> float:
    """Seconds until `penstock up` says that it is ready."""
    command = [sys.executable, "-m", "penstock.cli", "up", "--port", str(free_port())]
    begin = time.perf_counter()
    process = Tied(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, bufsize=1)
    assert process.stdout is not None
    said: list[str] = []
    for line in process.stdout:
        said.append(line)
        if re.search(r"^ready in .*http://", line.strip()):
            seconds = time.perf_counter() - begin
            os.kill(process.pid, signal.SIGINT)
            process.communicate()
            process.stop()
            return seconds
    raise SystemExit("penstock up ended before it was ready:\n" + "".join(said[-20:]))


def demo_s() -> float:
    begin = time.perf_counter()
    run([sys.executable, "-m", "penstock.cli", "demo"], limit_s=300)
    return time.perf_counter() - begin


def fresh_clone_s() -> float:
    """`make demo` where nothing is installed yet; pip takes packages from its cache as far as it has them."""
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        clone = Path(folder) / "penstock"
        subprocess.run(["git", "clone", "--quiet", str(ROOT), str(clone)], check=True)
        begin = time.perf_counter()
        run(["make", "demo"], limit_s=900, cwd=clone)
        return time.perf_counter() - begin


if __name__ == "__main__":
    main()
