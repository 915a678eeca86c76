"""The command line: each command is a thin shell over the Python API of this package.

Exit status: 0 done; 2 bad usage or bad input, told in one sentence; 1 a training or a metric failed (the rest is kept).
Nothing heavy is imported before a command needs it: ``--help`` and ``list`` stay instant.
"""

from benchmark.cli.app import main

__all__ = ["main"]
