"""Probes: what a model does that an evaluation relies on, one measurement each.

A probe takes a model, images ``x`` [N,C,H,W] in [0,1] and, where it needs them, labels ``y`` [N]. It looks at the model
as it is, in the mode it is in, and leaves it, its buffers and torch's random streams as it found them. It raises what
the model raises; :func:`probe` runs them all and turns even that into a finding.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from benchmark.models.finding import Finding, undisturbed
from benchmark.models.gradient_probes import finite_differences, gradients, saturated_logits
from benchmark.models.input_domain import Domain, candidates, domain_finding, expected, try_domains
from benchmark.models.output_probes import (
    batch_dependence,
    constant_outputs,
    finite_outputs,
    noise,
    output_shape,
    precision,
    probabilities,
    state,
    training_mode,
)
from methods.errors import reason
from methods.primitives.modes import mode

FEW = 16
"""Images for every probe but that of the input domain."""


def probe(model: nn.Module, x: Tensor, y: Tensor, num_classes: int, wanted_by: str = "the data set") -> list[Finding]:
    """Run every probe and never raise: an exception of the model, or of a probe, is a finding too.

    A consequence is not reported beside its cause: outputs that are no logits end the examination, and the probes of
    the model's behaviour run in the domain that it expects. ``x`` are test images [N,C,H,W] in [0,1], ``y`` [N]: all of
    them for the input domain, the first FEW for the rest. Sentences call the data set ``wanted_by``.
    """
    findings = probe_outputs(model, x[:FEW], num_classes, wanted_by)
    if not all(finding.fine for finding in findings[1:]):
        return findings
    first, *others = candidates(x.shape[1])
    with mode(model, training=False):
        trials = try_domains(model, x, y, [first])
        if trials[0].beatable:
            trials += try_domains(model, x, y, others)
    return [*findings, domain_finding(trials), *probe_behaviour(model, x[:FEW], y[:FEW], expected(trials).domain)]


def probe_outputs(model: nn.Module, x: Tensor, num_classes: int, wanted_by: str) -> list[Finding]:
    """Check the modes that the model is in and, in eval mode, that it returns logits; stop at the first problem."""
    findings = [training_mode(model)]
    with mode(model, training=False):
        try:
            with undisturbed(model, x), torch.no_grad():
                outputs = model(x.clone())
        except Exception as error:
            sentence = f"the model does not classify images {list(x.shape)}: {reason(error)}"
            return [*findings, Finding("forward pass", "problem", None, None, sentence)]
        findings.append(output_shape(outputs, len(x), num_classes, wanted_by))
        for look in (finite_outputs, constant_outputs):
            if findings[-1].fine:
                findings.append(_guarded(look, model, x))
    return findings


def probe_behaviour(model: nn.Module, x: Tensor, y: Tensor, domain: Domain) -> list[Finding]:
    """Run, in eval mode, the probes of a model that maps images in ``domain`` to logits, on ``x`` in [0,1].

    Precision is probed for deterministic models, and finite differences where an image's outputs depend on it alone.
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
    """Return the finding of a probe, or its exception as a problem."""
    try:
        return look(*arguments)
    except Exception as error:
        name = look.__name__.replace("_", " ")
        return Finding(name, "problem", None, None, f"the model stopped the probe of {name}: {reason(error)}")
