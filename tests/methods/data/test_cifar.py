import hashlib
import pickle
import urllib.request
from pathlib import Path
from typing import Any
from urllib.error import URLError

import numpy as np
import pytest
import torch
from torchvision.datasets import CIFAR10, CIFAR100

from methods.data import load
from methods.errors import InputError


def unreachable(*_: Any, **__: Any) -> None:
    raise URLError("no network")


def write(file: Path, content: dict[str, Any]) -> str:
    file.parent.mkdir(exist_ok=True)
    file.write_bytes(pickle.dumps(content))
    return hashlib.md5(file.read_bytes()).hexdigest()


def test_cifar_as_torchvision_lays_it_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (12, 3072), dtype=np.uint8)
    folder = tmp_path / CIFAR10.base_folder
    batches = [
        [name, write(folder / name, {"data": pixels[start : start + 4], "labels": [0, 1, 0, 1]})]
        for name, start in (("data_batch_1", 0), ("data_batch_2", 4), ("test_batch", 8))
    ]
    monkeypatch.setattr(CIFAR10, "train_list", batches[:2])
    monkeypatch.setattr(CIFAR10, "test_list", batches[2:])
    meta = write(folder / "batches.meta", {"label_names": ["cat", "dog"]})
    monkeypatch.setattr(CIFAR10, "meta", {"filename": "batches.meta", "key": "label_names", "md5": meta})

    dataset = load("cifar10", root=tmp_path, validation=2)
    assert dataset.classes == ("cat", "dog")
    assert dataset.image_shape == (3, 32, 32)
    assert torch.equal(dataset.test.images, torch.from_numpy(pixels[8:].reshape(4, 3, 32, 32)))
    assert dataset.test.labels.tolist() == [0, 1, 0, 1]
    assert (len(dataset.train), dataset.validation.labels.tolist()) == (6, [0, 1])


@pytest.mark.parametrize("source", [CIFAR10, CIFAR100])
def test_failed_download_says_what_to_place_where(
    source: type[CIFAR10], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(urllib.request, "urlopen", unreachable)
    with pytest.raises(InputError, match="no network") as caught:
        load(source.__name__.lower(), root=tmp_path)
    assert f"place {source.filename} in {tmp_path}" in str(caught.value)
