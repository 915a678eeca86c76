"""The trainer's own loop, watched from step to step and left before it saves."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest.mock import patch

import torch

from methods.data.images import Dataset
from methods.training import trainer
from methods.training.config import Experiment


class Enough(Exception):
    """Raised behind a step, it ends the training."""


def train(
    experiment: Experiment,
    data: Dataset,
    device: torch.device,
    behind: Callable[[], object],
    before: Callable[[], object] = lambda: None,
) -> None:
    """Train into a folder that is thrown away.

    Args:
        experiment: what is trained.
        data: on what.
        device: where.
        behind: called behind each step, in place of the progress bar; it ends the training by raising :class:`Enough`.
        before: called once between set-up and the first step.
    """

    def advance(completed: int, status: str = "") -> None:
        behind()

    @contextmanager
    def shown(*arguments: Any, **named: Any) -> Iterator[Callable[..., None]]:
        before()
        yield advance

    with TemporaryDirectory() as folder, patch.object(trainer, "progress", shown), suppress(Enough):
        trainer.train(experiment, data, Path(folder), device)
