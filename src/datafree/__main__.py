"""`python -m datafree`, the command line."""

import sys

from datafree.app.cli import main

if __name__ == "__main__":
    sys.exit(main())
