"""Names of devices: those that exist, those that are absent, and those that mean nothing."""

from collections.abc import Callable
from contextlib import AbstractContextManager

import pytest
import torch

from methods.data import ImageSet
from methods.errors import InputError
from methods.training.config import Experiment
from methods.training.devices import placed, select_device, uses_bf16

Make = Callable[..., Experiment]
Crash = Callable[[int], AbstractContextManager[None]]

CPU = torch.device("cpu")


@pytest.mark.parametrize("name", ["gpu", "", "cuda:x", "mps", "meta", "cpu cuda"])
def test_unknown_devices(name: str) -> None:
    with pytest.raises(InputError, match=r"auto, cpu, cuda or cuda:N") as caught:
        select_device(name)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["cuda", "cuda:0", "cuda:7"])
def test_cuda_asked_for_and_absent(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(InputError, match=f'"{name}" was asked for'):
        select_device(name)
    assert select_device("auto") == select_device("cpu") == CPU


def test_cuda_devices_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert select_device("cuda:1") == torch.device("cuda:1")
    assert select_device("auto").type == "cuda"
    with pytest.raises(InputError, match="no such CUDA device"):
        select_device("cuda:2")


def test_precision_is_automatic_on_gpus_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = torch.device("cuda")
    for supported in (True, False):
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda supported=supported: supported)
        assert uses_bf16("auto", gpu) == supported
        assert not uses_bf16("auto", CPU)
    for device in (CPU, gpu):
        assert uses_bf16("bf16", device)
        assert not uses_bf16("float32", device)


@pytest.mark.parametrize(("free", "moved"), [(40, True), (39, False)])
def test_images_move_to_a_gpu_of_which_they_take_at_most_half(
    free: int, moved: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = ImageSet(torch.zeros(20, 1, 1, 1, dtype=torch.uint8), torch.zeros(20).long())
    asked: list[torch.device] = []
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free, 100))
    monkeypatch.setattr(ImageSet, "to", lambda self, device: asked.append(device) or self)
    placed(images, torch.device("cuda"))
    assert asked == [torch.device("cuda")] * moved
