"""Devices of a training: which one is meant by a name, its precision, and whether the images live on it."""

import torch

from methods.data import ImageSet
from methods.errors import InputError


def select_device(name: str) -> torch.device:
    """Return the device called "auto", "cpu", "cuda" or "cuda:N"; "auto" is CUDA where there is a GPU.

    Raises:
        InputError: an unknown name, or CUDA asked for where there is none.
    """
    available = torch.cuda.is_available()
    if name == "auto":
        return torch.device("cuda" if available else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise InputError(f'There is no device "{name}"; use auto, cpu, cuda or cuda:N.') from error
    if device.type not in ("cpu", "cuda"):
        raise InputError(f'The device "{name}" is not supported; use auto, cpu, cuda or cuda:N.')
    if device.type == "cuda" and not (available and (device.index or 0) < torch.cuda.device_count()):
        raise InputError(f'The device "{name}" was asked for, but this machine offers no such CUDA device.')
    return device


def uses_bf16(precision: str, device: torch.device) -> bool:
    """Tell whether the network computes in bfloat16; ``precision`` is "auto", "bf16" or "float32".

    "auto" is bfloat16 on GPUs that support it, and float32 elsewhere.
    """
    if precision == "auto":
        return device.type == "cuda" and torch.cuda.is_bf16_supported()
    return precision == "bf16"


def placed(images: ImageSet, device: torch.device) -> ImageSet:
    """Move images to the device, unless they would take more than half of a GPU's free memory."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        if images.images.nbytes > free / 2:
            return images
    return images.to(device)
