"""Runs a penstock command that ends with the process that started it, however that ends.

python -m penstock.local.tether PARENT_PID COMMAND [FLAGS]
"""

import runpy
import sys

from penstock.worker.lifetime import die_with_parent

if __name__ == "__main__":
    die_with_parent(int(sys.argv[1]))
    sys.argv = ["penstock", *sys.argv[2:]]
    runpy.run_module("penstock.cli", run_name="__main__", alter_sys=True)
