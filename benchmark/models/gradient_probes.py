"""Probes of input gradients, on which attacks rely: that they exist, are not zero, and are those of the outputs."""

import math

import torch
from torch import Tensor, nn

from benchmark.models.finding import REPEATED, Finding, in_double, output_scale, undisturbed
from methods.errors import reason
from methods.primitives.random import generator, uniform_like

ZERO_GRADIENTS = 0.02
"""Share of images whose gradient may be exactly zero."""
WRONG_GRADIENTS = 0.1
"""Share of images on which autograd and finite differences may disagree."""
SATURATED = 0.01
"""Share of images on which the cross-entropy's gradient may underflow."""
_UNDERFLOW = -math.log(torch.finfo(torch.float32).tiny)
"""Difference of two logits, 87.3, beyond which the smaller one's probability underflows in float32."""


def _difference(logits: Tensor, y: Tensor, rival: Tensor) -> Tensor:
    return (logits.gather(1, y[:, None]) - logits.gather(1, rival[:, None])).squeeze(1)


def _rival(logits: Tensor, y: Tensor) -> Tensor:
    """Return the most likely class besides ``y``, [B]."""
    return logits.scatter(1, y[:, None], -math.inf).argmax(1)


def gradients(model: nn.Module, x: Tensor, y: Tensor) -> Finding:
    """Look for input gradients that are missing, not finite or exactly zero; ``measured`` is the share of images.

    The gradients are those of the label's logit minus the largest other logit, which no confidence saturates.
    """
    with undisturbed(model, x):
        inputs = x.detach().clone().requires_grad_()
        try:
            logits = model(inputs)
            value = _difference(logits, y, _rival(logits.detach(), y)).sum()
            gradient = torch.autograd.grad(value, inputs, allow_unused=True)[0] if value.requires_grad else None
        except RuntimeError as error:
            sentence = f"the outputs cannot be differentiated ({reason(error)})"
            return Finding("gradients", "problem", 1.0, ZERO_GRADIENTS, sentence)
    if gradient is None:
        sentence = "no gradient reaches the input: the forward pass detaches it"
        return Finding("gradients", "problem", 1.0, ZERO_GRADIENTS, sentence)
    broken = 1 - gradient.isfinite().flatten(1).all(1).double().mean().item()
    if broken > 0:
        sentence = f"the input gradient is not finite (NaN or infinite) on {100 * broken:.0f} % of the images"
        return Finding("gradients", "problem", broken, 0.0, sentence)
    zero = (gradient == 0).flatten(1).all(1).double().mean().item()
    if zero > ZERO_GRADIENTS:
        sentence = f"the input gradient is exactly zero on {100 * zero:.0f} % of the images"
        return Finding("gradients", "problem", zero, ZERO_GRADIENTS, sentence)
    return Finding("gradients", "fine", zero, ZERO_GRADIENTS, "input gradients are finite and not zero")


def finite_differences(model: nn.Module, x: Tensor, y: Tensor) -> Finding:
    """Compare autograd's gradient with central differences of the forward pass.

    ``measured`` is the share of images on which they disagree. They do where the forward pass is piecewise constant or
    the backward pass is not its derivative: quantised or detached preprocessing, straight-through estimators, gradients
    that were replaced (Athalye et al. 2018). Slopes are taken along a random direction, at points beside the pixels'
    bytes, where ReLU and max-pooling have no kink; in float64 where the model can be run in it, so that steps are small
    enough for no quantiser to move.
    """
    name = "finite differences"
    draws = generator(0, "probe", "finite differences")
    near = (0.002 + 0.996 * x + 0.001 * (2 * uniform_like(x, draws) - 1)).detach()
    coins = 2.0 * (uniform_like(x, draws) < 0.5) - 1
    run, dtype = in_double(model), torch.float64
    # By how much a step should move the outputs, and what is lost in rounding, both relative to the largest output.
    change, noise_floor, tolerance = 1e-7, 1e-12, 0.1
    with undisturbed(model, x):
        try:
            if run(near.double()).dtype != torch.float64:
                raise TypeError("computes in float32")
        except Exception:
            run, dtype = model, torch.float32
            change, noise_floor, tolerance = 1e-4, 1e-5, 0.25
        near, coins = near.to(dtype), coins.to(dtype)

        def seeded(points: Tensor) -> Tensor:
            torch.manual_seed(0)
            return run(points).to(dtype)

        with torch.no_grad():
            logits = seeded(near)
            scale = output_scale(logits)
            if float((seeded(near) - logits).abs().max()) > REPEATED * scale:
                sentence = "does not apply: its noise does not follow torch's seed"
                return Finding(name, "fine", None, WRONG_GRADIENTS, sentence)
        rival = _rival(logits, y)
        inputs = near.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(_difference(seeded(inputs), y, rival).sum(), inputs)
        # Along random coins a gradient g has a slope of standard deviation |g|.
        typical = torch.linalg.vector_norm(gradient.flatten(1), dim=1)
        step = (change * scale / (2 * typical)).clamp(max=0.001)
        moved = step.view(-1, 1, 1, 1) * coins
        with torch.no_grad():
            ends = [_difference(seeded(near + side * moved), y, rival) for side in (1, -1)]
        slope = (ends[0] - ends[1]) / (2 * step)
        promised = (gradient * coins).flatten(1).sum(1)
        size = torch.stack([slope.abs(), promised.abs(), typical]).amax(0)
        counted = 2 * step * size > noise_floor * scale
        wrong = counted & ((slope - promised).abs() > tolerance * size)
    if not counted.any():
        return Finding(name, "fine", None, WRONG_GRADIENTS, "does not apply: the outputs are flat")
    share = (wrong.sum() / counted.sum()).item()
    if share > WRONG_GRADIENTS:
        sentence = (
            f"autograd's gradient is not the slope of the outputs on {100 * share:.0f} % of the images "
            "(quantised or detached preprocessing, a straight-through estimator?)"
        )
        return Finding(name, "problem", share, WRONG_GRADIENTS, sentence)
    return Finding(name, "fine", share, WRONG_GRADIENTS, "autograd's gradient is the slope of the outputs")


@torch.no_grad()
def saturated_logits(model: nn.Module, x: Tensor) -> Finding:
    """Look for logits so far apart that the cross-entropy has no gradient; ``measured`` is the share of images.

    Beyond a difference of 87.3 between the largest two, the other classes' probabilities underflow in float32; the
    loss itself is exactly 0 from 16.6 on.
    """
    with undisturbed(model, x) as run:
        largest = run(x).topk(2, dim=1).values
    gap = largest[:, 0] - largest[:, 1]
    share = (gap > _UNDERFLOW).double().mean().item()
    median = gap.median().item()
    if share > SATURATED:
        sentence = (
            f"the two largest logits lie {median:.3g} apart, so that the cross-entropy is exactly 0 "
            f"and its gradient vanishes on {100 * share:.0f} % of the images"
        )
        return Finding("saturated logits", "problem", share, SATURATED, sentence)
    sentence = f"the two largest logits lie {median:.3g} apart, and the cross-entropy has a gradient"
    return Finding("saturated logits", "fine", share, SATURATED, sentence)
