"""`datafree` and `python -m datafree`, the command line; stopped while it loads, too, it ends in one line."""

import sys

from datafree.app.allocator import give_back_freed_memory, keep_freed_memory
from datafree.app.stopping import how_stopped, stop_on_sigterm


def main() -> int:
    try:
        stop_on_sigterm()
        is_limited = any(argument.startswith("--memory") for argument in sys.argv)
        give_back_freed_memory() if is_limited else keep_freed_memory()
        from datafree.app.cli import main as command_line

        return command_line()
    except KeyboardInterrupt:
        code, word = how_stopped()
        sys.stderr.write(f"error: {word}\n")
        return code


if __name__ == "__main__":
    sys.exit(main())
