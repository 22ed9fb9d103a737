"""`python -m vitlab VERB ...` is `vitlab VERB ...`."""

import sys

from vitlab.commands.cli import console

if __name__ == "__main__":
    sys.exit(console())
