"""Runs a penstock command that ends with the process that started it, however that ends.

python -m penstock.local.tether PARENT_PID COMMAND [FLAGS]
"""

import sys

from penstock.cli import main
from penstock.worker.lifetime import die_with_parent

if __name__ == "__main__":
    die_with_parent(int(sys.argv[1]))
    sys.exit(main(sys.argv[2:]))
