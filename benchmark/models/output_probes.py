"""Probes of a model's outputs: whether they are logits, and a function of the image alone."""

import math
from typing import Any

import torch
from torch import Tensor, nn

from benchmark.models.finding import REPEATED, Finding, in_double, output_scale, undisturbed
from methods.primitives.random import generator, normal_like

MIXED = 1e-3
"""Difference of an image's outputs alone and in a batch, relative to the largest output, above which it is more than
rounding: other kernels round differently."""
PRECISION = 1e-2
"""Difference of float32 and float64 outputs, relative to the largest, above which rounding decides."""


def training_mode(model: nn.Module) -> Finding:
    """Count the modules that are in training mode."""
    count = sum(module.training for module in model.modules())
    if count == 0:
        return Finding("training mode", "fine", 0.0, 0.0, "every module is in eval mode")
    return Finding("training mode", "problem", float(count), 0.0, "the model was in training mode")


@torch.no_grad()
def state(model: nn.Module, x: Tensor) -> Finding:
    """Count what a forward pass changes: buffers, such as BatchNorm's running statistics, and its own input."""
    with undisturbed(model, x):
        before = {name: buffer.clone() for name, buffer in model.named_buffers()}
        images = x.clone()
        model(images)
        moved = [name for name, buffer in model.named_buffers() if not _same(buffer, before.get(name))]
    if not _same(images, x):
        moved.insert(0, "the images it is given")
    if not moved:
        return Finding("state", "fine", 0.0, 0.0, "a forward pass leaves the model and the images as they were")
    more = f" and {len(moved) - 1} more" if len(moved) > 1 else ""
    sentence = f"a forward pass changes {moved[0]}{more} (BatchNorm that never enters eval mode, work in place?)"
    return Finding("state", "problem", float(len(moved)), 0.0, sentence)


def _same(a: Tensor, b: Tensor | None) -> bool:
    return b is not None and a.shape == b.shape and torch.equal(a.nan_to_num(), b.nan_to_num())


def output_shape(outputs: Any, n: int, num_classes: int, wanted_by: str) -> Finding:
    """Check that a forward pass on ``n`` images returned logits [n, num_classes]."""
    if not isinstance(outputs, Tensor):
        sentence = f"the model returns a {type(outputs).__name__}, not logits; let the factory wrap it"
        return Finding("output shape", "problem", None, None, sentence)
    measured = float(outputs.shape[-1]) if outputs.dim() else 0.0
    if list(outputs.shape) != [n, num_classes]:
        sentence = f"the model's outputs are {list(outputs.shape)}; {wanted_by} wants logits {[n, num_classes]}"
        return Finding("output shape", "problem", measured, float(num_classes), sentence)
    return Finding("output shape", "fine", measured, float(num_classes), f"outputs are logits {[n, num_classes]}")


@torch.no_grad()
def finite_outputs(model: nn.Module, x: Tensor) -> Finding:
    """Count the images with an output that is NaN or infinite; ``measured`` is their share."""
    with undisturbed(model, x) as run:
        share = 1 - run(x).isfinite().flatten(1).all(1).double().mean().item()
    if share == 0:
        return Finding("finite outputs", "fine", share, 0.0, "all outputs are finite")
    sentence = f"the model's outputs are not finite (NaN or infinite) on {100 * share:.0f} % of {len(x)} images"
    return Finding("finite outputs", "problem", share, 0.0, sentence)


@torch.no_grad()
def constant_outputs(model: nn.Module, x: Tensor) -> Finding:
    """Check that the outputs depend on the image; ``measured`` is their spread relative to the largest one."""
    with undisturbed(model, x) as run:
        logits = run(x)
    spread = float(((logits - logits[:1]) / logits.abs().max()).nan_to_num().abs().max())
    if len(x) > 1 and spread <= 1e-6:
        return Finding("constant outputs", "problem", spread, 1e-6, "outputs are the same for every image")
    return Finding("constant outputs", "fine", spread, 1e-6, "outputs depend on the image")


@torch.no_grad()
def probabilities(model: nn.Module, x: Tensor) -> Finding:
    """Check that the outputs are no probabilities, of which every row sums to 1, and no logarithms of such."""
    with undisturbed(model, x) as run:
        outputs = run(x)
    if float(outputs.min()) >= -1e-5:
        off = float((outputs.sum(1) - 1).abs().max())
        if off <= 1e-4:
            return Finding("probabilities", "problem", off, 1e-4, "outputs look like probabilities, not logits")
    off = float(outputs.logsumexp(1).abs().max())
    if off <= 1e-4:
        sentence = "outputs look like log-probabilities: good for attacks, but every marginal energy is 0"
        return Finding("probabilities", "doubt", off, 1e-4, sentence)
    return Finding("probabilities", "fine", off, 1e-4, "outputs are logits, and no probabilities")


def noise(model: nn.Module, x: Tensor) -> Finding:
    """Compare forward passes on the same images; ``measured`` is their difference relative to the largest output.

    The sentence gives the share of predictions that change among four passes, and the standard deviation of the
    Gaussian noise on the input that would move the outputs as much (:func:`input_noise`).
    """
    with undisturbed(model, x) as run, torch.no_grad():
        passes = [run(x) for _ in range(2)]
        difference = float((passes[0] - passes[1]).abs().max())
        measured = difference / output_scale(passes[0])
        if measured <= REPEATED:
            return Finding("noise", "fine", measured, REPEATED, "two forward passes give the same outputs")
        passes += [run(x) for _ in range(2)]
    predictions = torch.stack([logits.argmax(1) for logits in passes])
    changed = (predictions != predictions[:1]).any(0).double().mean().item()
    sigma = input_noise(model, x)
    like = "" if sigma is None else f", as Gaussian noise of sigma {sigma:.2g} on the pixels would make them"
    sentence = (
        f"two forward passes on the same images differ by {difference:.2g}{like}, "
        f"and {100 * changed:.0f} % of the predictions change (the model draws noise?)"
    )
    return Finding("noise", "problem", measured, REPEATED, sentence)


def input_noise(model: nn.Module, x: Tensor, passes: int = 16) -> float | None:
    """Return the standard deviation of the input noise that explains how a stochastic model's outputs vary.

    For x + sigma N(0, I) and small sigma, a linear functional of the logits has the variance sigma^2 |gradient|^2.
    None where there is no gradient to divide by.
    """
    with undisturbed(model, x) as run:
        inputs = x.detach().clone().requires_grad_()
        weights = None
        values, squares = [], []
        for _ in range(passes):
            logits = run(inputs)
            weights = normal_like(logits, generator(0, "probe", "noise")) if weights is None else weights
            value = (logits * weights).sum(1)
            if not value.requires_grad:
                return None
            (gradient,) = torch.autograd.grad(value.sum(), inputs, allow_unused=True)
            if gradient is None:
                return None
            values.append(value.detach())
            squares.append(gradient.flatten(1).square().sum(1))
    variance, square = torch.stack(values).var(0).mean(), torch.stack(squares).mean()
    sigma = float((variance / square).sqrt())
    return sigma if math.isfinite(sigma) else None


@torch.no_grad()
def batch_dependence(model: nn.Module, x: Tensor) -> Finding:
    """Compare an image's outputs alone, in a batch, beside other images and in another order.

    ``measured`` is the largest difference relative to the largest output; a model that draws noise is allowed three
    times what two equal passes differ by.
    """
    with undisturbed(model, x) as run:
        whole, again = run(x), run(x)
        half = max(1, len(x) // 2)
        ways = {
            "alone and in a batch": torch.cat([run(image) for image in x[:4].split(1)]) - whole[:4],
            "beside other images": run(torch.cat([x[:half], 1 - x[half:]]))[:half] - whole[:half],
            "in another order": run(x.flip(0)).flip(0) - whole,
        }
    scale = output_scale(whole)
    bound = max(MIXED, 3 * float((whole - again).abs().max()) / scale)
    differences = {way: float(difference.abs().max()) for way, difference in ways.items()}
    way = next((way for way, size in differences.items() if size > bound * scale), None)
    measured = max(differences.values()) / scale
    if way is None:
        return Finding("batch dependence", "fine", measured, bound, "an image's outputs do not depend on its batch")
    sentence = f"an image's outputs differ by {differences[way]:.2g} {way} (batch statistics?)"
    return Finding("batch dependence", "problem", measured, bound, sentence)


@torch.no_grad()
def precision(model: nn.Module, x: Tensor) -> Finding:
    """Compare the outputs in float32 and in float64, relative to the largest one."""
    with undisturbed(model, x) as run:
        single = run(x)
        try:
            double = in_double(model)(x.double())
        except Exception:
            return Finding("precision", "fine", None, PRECISION, "does not apply: the model does not run in float64")
    measured = float((double - single).abs().max()) / output_scale(single)
    if measured > PRECISION:
        sentence = f"outputs in float32 and float64 differ by {100 * measured:.2g} % of the largest: rounding decides"
        return Finding("precision", "doubt", measured, PRECISION, sentence)
    return Finding("precision", "fine", measured, PRECISION, "outputs in float32 and float64 agree")
