"""python -m SAUNetLib: the command `saunet`."""

import sys

from .cli import main

if __name__ == "__main__":
    sys.exit(main())
