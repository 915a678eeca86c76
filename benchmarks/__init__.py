"""Benchmarks of speed, overhead and memory: ``python -m benchmarks``. Not installed, and nothing imports them.

Every module here with a ``NAME`` and ``run(settings: Settings) -> Iterator[Row]`` is a benchmark; see
:mod:`benchmarks.timing` for both types, and ``benchmarks/results/`` for what was measured.
"""
