"""`datafree` and `python -m datafree`, the command line; interrupted while it loads, too, it ends in one line."""

import sys


def main() -> int:
    try:
        from datafree.app.cli import main as command_line

        return command_line()
    except KeyboardInterrupt:
        sys.stderr.write("error: interrupted\n")
        return 130


if __name__ == "__main__":
    sys.exit(main())
