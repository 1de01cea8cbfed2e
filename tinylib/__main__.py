"""`python -m tinylib`, the same as the console script `tinylib`."""

import sys

from tinylib.cli import main

if __name__ == "__main__":
    sys.exit(main())
