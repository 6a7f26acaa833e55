"""`python -m tta_restore`: the command line; `info` also where the packages of other commands are missing."""

from __future__ import annotations

import sys


def main() -> int:
    """Run the command line and return its exit code."""
    if sys.argv[1:] == ["info"]:
        from tta_restore import show_config
        from tta_restore._core.streams import run_with_streams

        return run_with_streams(lambda: print(show_config()) or 0)
    from tta_restore.cli import main as command_line

    return command_line() or 0


if __name__ == "__main__":
    sys.exit(main())
