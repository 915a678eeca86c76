"""Probes: what a model does that an evaluation relies on, one measurement each.

A probe takes a model, images ``x`` [N,C,H,W] in [0,1] and, where it needs them, labels ``y`` [N]. It looks at the model
as it is, in the mode it is in, and leaves it, its buffers and torch's random streams as it found them. It raises what
the model raises; :func:`probe` runs them all and turns even that into a finding.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.func import functional_call

from methods.errors import reason
from methods.primitives.modes import mode
from methods.primitives.random import generator, normal_like, uniform_like

Severity = Literal["problem", "doubt", "fine"]

FEW = 16
"""Images for every probe but that of the input domain."""
REPEATED = 1e-5
"""Difference of two passes on the same images, relative to the largest output, above which it is more than rounding."""
MIXED = 1e-3
"""The same for an image alone and in a batch, where other kernels round differently."""
ZERO_GRADIENTS = 0.02
"""Share of images whose gradient may be exactly zero."""
WRONG_GRADIENTS = 0.1
"""Share of images on which autograd and finite differences may disagree."""
SATURATED = 0.01
"""Share of images on which the cross-entropy's gradient may underflow."""
PRECISION = 1e-2
"""Difference of float32 and float64 outputs, relative to the largest, above which rounding decides."""
ALPHA = 1e-3
"""Level of the sign test by which another input domain must beat [0,1]."""
_UNDERFLOW = -math.log(torch.finfo(torch.float32).tiny)
"""Difference of two logits, 87.3, beyond which the smaller one's probability underflows in float32."""


@dataclass(frozen=True)
class Finding:
    """What one probe measured, held against its bound."""

    name: str
    severity: Severity
    """A problem makes measurements wrong; a doubt may."""
    measured: float | None
    bound: float | None
    """What ``measured`` is held against."""
    sentence: str
    """What was seen: a clause without capital and full stop, as the flags of a subject are."""

    @property
    def fine(self) -> bool:
        """Whether nothing speaks against the model."""
        return self.severity == "fine"


@dataclass(frozen=True)
class Domain:
    """Units a network takes its input in: (pixel - mean) / std, pixels in [0,1], one value for all channels or each."""

    name: str
    mean: tuple[Fraction, ...] = (Fraction(0),)
    std: tuple[Fraction, ...] = (Fraction(1),)

    @property
    def identity(self) -> bool:
        """Whether these are the pixels themselves."""
        return set(self.mean) == {Fraction(0)} and set(self.std) == {Fraction(1)}

    def __call__(self, x: Tensor) -> Tensor:
        """Convert images [B,C,H,W] in [0,1]."""
        # Times 1/std: 255 is a float and 1/255 is none, and networks that cut to bytes would see 254.
        mean, scale = ([float(value) for value in values] for values in (self.mean, [1 / std for std in self.std]))
        return (x - x.new_tensor(mean).view(-1, 1, 1)) * x.new_tensor(scale).view(-1, 1, 1)

    def before(self, model: nn.Module) -> nn.Module:
        """Return ``model`` behind this conversion, from pixels to logits; its modules are shared."""
        return model if self.identity else _Converted(self, model)


class _Converted(nn.Module):
    def __init__(self, domain: Domain, model: nn.Module) -> None:
        super().__init__()
        self.domain, self.model = domain, model
        self.training = model.training

    def forward(self, x: Tensor) -> Any:
        return self.model(self.domain(x))


def _domain(name: str, mean: str, std: str) -> Domain:
    values = (tuple(Fraction(value) for value in text.split()) for text in (mean, std))
    return Domain(name, *values)


PIXELS = Domain("[0,1]")
SYMMETRIC = _domain("[-1,1]", "1/2", "1/2")
BYTES = _domain("[0,255]", "0", "1/255")
NORMALISED = (
    _domain("CIFAR-10 normalisation", "0.4914 0.4822 0.4465", "0.2470 0.2435 0.2616"),
    _domain("CIFAR-100 normalisation", "0.5071 0.4865 0.4409", "0.2673 0.2564 0.2762"),
    _domain("ImageNet normalisation", "0.485 0.456 0.406", "0.229 0.224 0.225"),
)
"""Mean and standard deviation per channel as they are commonly written, of images with three channels."""


def candidates(channels: int) -> tuple[Domain, ...]:
    """Return the domains to try on images of so many channels, [0,1] first."""
    return (PIXELS, SYMMETRIC, BYTES, *(NORMALISED if channels == 3 else ()))


@dataclass(frozen=True, eq=False)
class Trial:
    """A model on the same images in one domain."""

    domain: Domain
    correct: Tensor
    """bool [N]."""

    @property
    def accuracy(self) -> float:
        """Percentage of the images that it classifies correctly."""
        return 100 * self.correct.double().mean().item()

    @property
    def beatable(self) -> bool:
        """Whether any other trial can beat it: it leaves enough images for the sign test."""
        return 2.0 ** -int((~self.correct).sum()) < ALPHA

    def beats(self, other: Trial) -> bool:
        """Whether it is right on more images than binomial noise explains: exact one-sided sign test at ALPHA."""
        won, lost = self._duel(other)
        tails = sum(math.comb(won + lost, k) for k in range(won, won + lost + 1))
        return tails < ALPHA * 2 ** (won + lost)

    def leads(self, other: Trial) -> bool:
        """Whether it is right on more images by over one standard deviation of that noise."""
        won, lost = self._duel(other)
        return won - lost > math.sqrt(won + lost)

    def _duel(self, other: Trial) -> tuple[int, int]:
        return int((self.correct & ~other.correct).sum()), int((other.correct & ~self.correct).sum())


@contextmanager
def _undisturbed(model: nn.Module, x: Tensor) -> Iterator[Callable[[Tensor], Tensor]]:
    """Yield the model's function, images to float32 logits, for probing it without a trace.

    The images are copied before every pass, torch's streams seeded, and they and the model's buffers put back. As in an
    evaluation, convolutions are deterministic and in full float32, lest rounding pass for dependence on the batch.
    """
    cudnn = torch.backends.cudnn
    buffers = [
        (module, name, buffer, buffer.clone())
        for module in model.modules()
        for name, buffer in module.named_buffers(recurse=False)
    ]
    with (
        torch.random.fork_rng(devices=[x.device] if x.device.type == "cuda" else []),
        cudnn.flags(enabled=cudnn.enabled, benchmark=False, deterministic=True, allow_tf32=False),
    ):
        torch.manual_seed(0)
        try:
            yield lambda images: model(images.clone()).float()
        finally:
            with torch.no_grad():
                for module, name, buffer, before in buffers:
                    setattr(module, name, buffer.copy_(before))


def _scale(logits: Tensor) -> float:
    return max(1.0, float(logits.abs().max()))


def try_domains(
    model: nn.Module, x: Tensor, y: Tensor, domains: Sequence[Domain] | None = None, batch_size: int = 100
) -> list[Trial]:
    """Classify ``x`` in every domain; what is not finite, or stops the model, counts as wrong.

    Args:
        model: any unit to logits [B,K].
        x: [N,C,H,W] in [0,1].
        y: [N].
        domains: by default :func:`candidates`.
        batch_size: images a forward pass.
    """

    def correct(domain: Domain, run: Callable[[Tensor], Tensor]) -> Tensor:
        try:
            logits = torch.cat([run(domain(batch)) for batch in x.split(batch_size)])
            return (logits.argmax(1) == y) & logits.isfinite().all(1)
        except Exception:
            return torch.zeros_like(y, dtype=torch.bool)

    with _undisturbed(model, x) as run, torch.no_grad():
        return [Trial(domain, correct(domain, run).cpu()) for domain in domains or candidates(x.shape[1])]


def expected(trials: Sequence[Trial]) -> Trial:
    """Return the domain the model expects: ``trials[0]``, that of [0,1], unless it is beaten; then the most accurate.

    Of those it does not lead, which are as good as equal, the first is taken.
    """
    best = max(trials, key=lambda trial: trial.accuracy)
    return next(trial for trial in trials if not best.leads(trial)) if best.beats(trials[0]) else trials[0]


def judge_domain(trials: Sequence[Trial]) -> Finding:
    """Say which domain the model expects; ``trials[0]`` is that of [0,1], and what the best is held against."""
    given, best = trials[0], expected(trials)
    if best is given:
        sentence = f"no other input domain suits it better than [0,1], where it is right on {given.accuracy:.1f} %"
        return Finding("input domain", "fine", given.accuracy, best.accuracy, sentence)
    rivals = [trial.domain.name for trial in trials if trial not in (given, best) and not best.beats(trial)]
    alike = f"; these images do not tell it from {', '.join(rivals)}" if rivals else ""
    sentence = (
        f"the model expects {_input(best.domain)}, not [0,1]: "
        f"it is right on {best.accuracy:.1f} % there and on {given.accuracy:.1f} % in [0,1]{alike}"
    )
    return Finding("input domain", "problem", given.accuracy, best.accuracy, sentence)


def _input(domain: Domain) -> str:
    return f"inputs in {domain.name}" if domain.name.startswith("[") else f"inputs after {domain.name}"


def input_domain(model: nn.Module, x: Tensor, y: Tensor, domains: Sequence[Domain] | None = None) -> Finding:
    """Ask in which domain the model is clearly most accurate; ``measured`` is its accuracy in [0,1]."""
    return judge_domain(try_domains(model, x, y, domains))


def training_mode(model: nn.Module) -> Finding:
    """Count the modules that are in training mode."""
    count = sum(module.training for module in model.modules())
    if count == 0:
        return Finding("training mode", "fine", 0.0, 0.0, "every module is in eval mode")
    return Finding("training mode", "problem", float(count), 0.0, "the model was in training mode")


@torch.no_grad()
def state(model: nn.Module, x: Tensor) -> Finding:
    """Count what a forward pass changes: buffers, such as BatchNorm's running statistics, and its own input."""
    with _undisturbed(model, x):
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


def output_shape(outputs: Any, n: int, num_classes: int, wanted_by: str = "the data set") -> Finding:
    """Look whether a forward pass on ``n`` images returned logits [n, num_classes]."""
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
    with _undisturbed(model, x) as run:
        share = 1 - run(x).isfinite().flatten(1).all(1).double().mean().item()
    if share == 0:
        return Finding("finite outputs", "fine", share, 0.0, "all outputs are finite")
    sentence = f"the model's outputs are not finite (NaN or infinite) on {100 * share:.0f} % of {len(x)} images"
    return Finding("finite outputs", "problem", share, 0.0, sentence)


@torch.no_grad()
def constant_outputs(model: nn.Module, x: Tensor) -> Finding:
    """Look whether the outputs depend on the image; ``measured`` is their spread relative to the largest one."""
    with _undisturbed(model, x) as run:
        logits = run(x)
    spread = float(((logits - logits[:1]) / logits.abs().max()).nan_to_num().abs().max())
    if len(x) > 1 and spread <= 1e-6:
        return Finding("constant outputs", "problem", spread, 1e-6, "outputs are the same for every image")
    return Finding("constant outputs", "fine", spread, 1e-6, "outputs depend on the image")


@torch.no_grad()
def probabilities(model: nn.Module, x: Tensor) -> Finding:
    """Look whether the outputs are probabilities, or their logarithms, of which every row sums to 1."""
    with _undisturbed(model, x) as run:
        outputs = run(x)
    if float(outputs.min()) >= -1e-5:
        off = float((outputs.sum(1) - 1).abs().max())
        if off <= 1e-4:
            sentence = "outputs look like probabilities, not logits"
            return Finding("probabilities", "problem", off, 1e-4, sentence)
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
    with _undisturbed(model, x) as run, torch.no_grad():
        passes = [run(x) for _ in range(2)]
        difference = float((passes[0] - passes[1]).abs().max())
        measured = difference / _scale(passes[0])
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
    with _undisturbed(model, x) as run:
        inputs = x.detach().clone().requires_grad_()
        weights: Tensor | None = None
        values, squares = [], []
        for _ in range(passes):
            logits = run(inputs)
            if weights is None:
                weights = normal_like(logits, generator(0, "probe", "noise"))
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
    with _undisturbed(model, x) as run:
        whole, again = run(x), run(x)
        half = max(1, len(x) // 2)
        ways = {
            "alone and in a batch": torch.cat([run(image) for image in x[:4].split(1)]) - whole[:4],
            "beside other images": run(torch.cat([x[:half], 1 - x[half:]]))[:half] - whole[:half],
            "in another order": run(x.flip(0)).flip(0) - whole,
        }
    scale = _scale(whole)
    bound = max(MIXED, 3 * float((whole - again).abs().max()) / scale)
    differences = {way: float(difference.abs().max()) for way, difference in ways.items()}
    way = next((way for way, size in differences.items() if size > bound * scale), None)
    measured = max(differences.values()) / scale
    if way is None:
        return Finding("batch dependence", "fine", measured, bound, "an image's outputs do not depend on its batch")
    sentence = f"an image's outputs differ by {differences[way]:.2g} {way} (batch statistics?)"
    return Finding("batch dependence", "problem", measured, bound, sentence)


def _difference(logits: Tensor, y: Tensor, rival: Tensor) -> Tensor:
    return (logits.gather(1, y[:, None]) - logits.gather(1, rival[:, None])).squeeze(1)


def _rival(logits: Tensor, y: Tensor) -> Tensor:
    """Return the most likely class besides ``y``, [B]."""
    return logits.scatter(1, y[:, None], -math.inf).argmax(1)


def gradients(model: nn.Module, x: Tensor, y: Tensor) -> Finding:
    """Look for input gradients that are missing, not finite or exactly zero; ``measured`` is the share of images.

    They are those of the label's logit minus its strongest rival's, which no confidence saturates.
    """
    with _undisturbed(model, x):
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
    """Hold autograd's gradient against central differences of the forward pass; ``measured`` is the share that is off.

    They part where the forward pass is piecewise constant or the backward pass is not its derivative: quantised or
    detached preprocessing, straight-through estimators, gradients that were replaced (Athalye et al. 2018). Along a
    random direction, at points beside the pixels' bytes, where ReLU and max-pooling have no kink; in float64 where the
    model can be run in it, so that steps are small enough for no quantiser to move.
    """
    name = "finite differences"
    draws = generator(0, "probe", "finite differences")
    near = (0.002 + 0.996 * x + 0.001 * (2 * uniform_like(x, draws) - 1)).detach()
    coins = 2.0 * (uniform_like(x, draws) < 0.5) - 1
    run, dtype = _in_double(model), torch.float64
    # By how much a step should move the outputs, and what is lost in rounding, both relative to the largest output.
    change, noise_floor, tolerance = 1e-7, 1e-12, 0.1
    with _undisturbed(model, x):
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
            scale = _scale(logits)
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


def _in_double(model: nn.Module) -> Callable[[Tensor], Tensor]:
    """Return the model's function in float64, on copies of its weights and buffers."""
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    doubled = {name: value.detach().double() if value.is_floating_point() else value for name, value in tensors.items()}
    return lambda x: functional_call(model, doubled, (x,))


@torch.no_grad()
def precision(model: nn.Module, x: Tensor) -> Finding:
    """Compare the outputs in float32 and in float64, relative to the largest one."""
    with _undisturbed(model, x) as run:
        single = run(x)
        try:
            double = _in_double(model)(x.double())
        except Exception:
            return Finding("precision", "fine", None, PRECISION, "does not apply: the model does not run in float64")
    measured = float((double - single).abs().max()) / _scale(single)
    if measured > PRECISION:
        sentence = f"outputs in float32 and float64 differ by {100 * measured:.2g} % of the largest: rounding decides"
        return Finding("precision", "doubt", measured, PRECISION, sentence)
    return Finding("precision", "fine", measured, PRECISION, "outputs in float32 and float64 agree")


@torch.no_grad()
def saturated_logits(model: nn.Module, x: Tensor) -> Finding:
    """Look for logits so far apart that the cross-entropy has no gradient; ``measured`` is the share of images.

    Beyond a difference of 87.3 between the largest two, the other classes' probabilities underflow in float32; the
    loss itself is exactly 0 from 16.6 on.
    """
    with _undisturbed(model, x) as run:
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


def probe(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    num_classes: int,
    *,
    domains: Sequence[Domain] | None = None,
    wanted_by: str = "the data set",
) -> list[Finding]:
    """Run every probe and never raise: what stops the model, or a probe, is a problem too.

    A consequence is not told beside its cause: outputs that are no logits end the examination, and the probes of what
    the model does run in the domain it expects.

    Args:
        model: images in [0,1] to logits, or so it should be; on the device of ``x``.
        x: test images [N,C,H,W] in [0,1]; all of them for the input domain, the first FEW for the rest.
        y: [N].
        num_classes: K of the data set.
        domains: to try, [0,1] first; by default :func:`candidates`.
        wanted_by: the data set's name.
    """
    findings = probe_outputs(model, x[:FEW], num_classes, wanted_by)
    if not all(finding.fine for finding in findings[1:]):
        return findings
    first, *others = domains or candidates(x.shape[1])
    with mode(model, training=False):
        trials = try_domains(model, x, y, [first])
        if trials[0].beatable:
            trials += try_domains(model, x, y, others)
    return [*findings, judge_domain(trials), *probe_behaviour(model, x[:FEW], y[:FEW], expected(trials).domain)]


def probe_outputs(model: nn.Module, x: Tensor, num_classes: int, wanted_by: str = "the data set") -> list[Finding]:
    """Look at the modes the model is in, then, in eval mode, whether it returns logits; what it does not ends it."""
    findings = [training_mode(model)]
    with mode(model, training=False):
        try:
            with _undisturbed(model, x), torch.no_grad():
                outputs = model(x.clone())
        except Exception as error:
            sentence = f"the model does not classify images {list(x.shape)}: {reason(error)}"
            return [*findings, Finding("forward pass", "problem", None, None, sentence)]
        findings.append(output_shape(outputs, len(x), num_classes, wanted_by))
        for look in (finite_outputs, constant_outputs):
            if findings[-1].fine:
                findings.append(_guarded(look, model, x))
    return findings


def probe_behaviour(model: nn.Module, x: Tensor, y: Tensor, domain: Domain = PIXELS) -> list[Finding]:
    """Look, in eval mode, at what the model does with images; its outputs have the right shape.

    Precision is asked of deterministic models, and slopes of those for which an image's outputs are its own.

    Args:
        model: images in ``domain`` to logits.
        x: [N,C,H,W] in [0,1].
        y: [N].
        domain: the model's.
    """
    with mode(model, training=False):
        findings = [_guarded(state, model, domain(x))]
        model = domain.before(model)
        findings += [_guarded(look, model, x) for look in (probabilities, saturated_logits, noise, batch_dependence)]
        fine = {finding.name: finding.fine for finding in findings}
        if fine["noise"]:
            findings.append(_guarded(precision, model, x))
        findings.append(_guarded(gradients, model, x, y))
        if findings[-1].fine and fine["batch dependence"]:
            findings.append(_guarded(finite_differences, model, x, y))
    return findings


def _guarded(look: Callable[..., Finding], *arguments: Any) -> Finding:
    """Return what a probe finds; its exception as a problem."""
    try:
        return look(*arguments)
    except Exception as error:
        name = look.__name__.replace("_", " ")
        return Finding(name, "problem", None, None, f"the model stopped the probe of {name}: {reason(error)}")
