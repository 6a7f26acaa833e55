"""The command line: arguments in, a call into `engine`, an exit code out."""

from tta_restore.cli.main import main

__all__ = ["main"]
