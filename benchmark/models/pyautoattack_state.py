"""State that `pyautoattack` leaves in the process: its log, its count of gradient calls, the tracer it switches off.

AutoAttack's attacks (:mod:`benchmark.attacks.autoattack`) and the stand-in that RobustBench imports
(:mod:`benchmark.models.robustbench_import`) run the package inside :func:`contained`.
"""

import logging
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from pyautoattack import checks

_REPLACED = "Square Attack has decreased"
"""Beginning of the one warning that :mod:`benchmark.metrics.autoattack` replaces by its own."""


@contextmanager
def contained() -> Iterator[list[str]]:
    """Yield the package's warnings, which Python's join at the end, and undo what it does to the process.

    It switches any debugger or coverage tool off, and counts gradient calls in a global that is never reset, so that
    one dynamic defence would taint every later model. (:class:`benchmark.evaluation.shards.Shards` undoes its
    reseeding.)
    """
    messages: list[str] = []
    logger = logging.getLogger("auto-attack")
    before = logger.handlers, logger.level, logger.propagate, logger.disabled
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: messages.append(" ".join(record.getMessage().split()))
    handler.addFilter(lambda record: not record.getMessage().startswith(_REPLACED))
    tracer, calls = sys.gettrace(), dict(checks.funcs)
    try:
        logger.handlers, logger.propagate, logger.disabled = [handler], False, False
        logger.setLevel(logging.WARNING)
        checks.funcs.update(dict.fromkeys(checks.funcs, 0))
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            yield messages
        messages.extend(f"{warning.category.__name__}: {warning.message}" for warning in caught)
    finally:
        logger.handlers, level, logger.propagate, logger.disabled = before
        logger.setLevel(level)
        checks.funcs.update(calls)
        sys.settrace(tracer)
