"""Any image classifier of timm as a backbone: architecture ``timm:<name>``, always from random weights."""

from typing import Any

import timm
import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from methods.errors import InputError, nearest


def timm_network(name: str, num_classes: int, image_shape: tuple[int, int, int], norm_momentum: float) -> nn.Module:
    """Build timm's ``name``; normalised images [B,C,H,W] -> logits [B,K].

    Networks with a fixed input size (vision transformers) are built for the size of the data.
    ``norm_momentum`` is set on every batch normalisation, so that it means the same in each architecture.

    Raises:
        InputError: timm has no such model, the model does not take images of this shape, or its parameters
            have names that loaders which strip "model." and "module." would garble.
    """
    if not timm.is_model(name):
        raise InputError(f'timm has no model "{name}".{nearest(name, timm.list_models())}')
    channels, height, width = image_shape
    pretrained_cfg = timm.get_pretrained_cfg(name)
    options: dict[str, Any] = {"num_classes": num_classes, "in_chans": channels}
    if pretrained_cfg is not None and pretrained_cfg.fixed_input_size:
        options["img_size"] = (height, width)
    # An unsuitable size raises all kinds of exceptions, some of them only in the first forward pass.
    try:
        network: nn.Module = timm.create_model(name, pretrained=False, **options)
        device = next(network.parameters()).device
        with torch.no_grad():
            network.eval()(torch.zeros(1, channels, height, width, device=device))
    except Exception as error:
        reason = (str(error).strip().partition("\n")[0] or type(error).__name__).rstrip(".")
        shape = f"{channels}x{height}x{width}"
        raise InputError(f"timm:{name} does not take images of {shape} ({reason}).") from error
    garbled = [key for key in network.state_dict() if "model." in key or "module." in key]
    if garbled:
        raise InputError(
            f'timm:{name} is no backbone: loaders that strip "model." and "module." garble "{garbled[0]}".'
        )
    for module in network.modules():
        if isinstance(module, _BatchNorm):
            module.momentum = norm_momentum
    return network.train()
