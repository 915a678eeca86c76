"""Architecture file of a submission: the model's network as a Python module that needs nothing of this project."""

import ast
import inspect
from collections.abc import Sequence
from types import ModuleType
from typing import get_args

from benchmark.robustbench.claim import Claim
from methods import errors
from methods.backbones import classifier, resnet, wide_resnet
from methods.backbones.classifier import TIMM_PREFIX, BackboneConfig, Classifier
from methods.primitives import splitting


def source(claim: Claim, model: Classifier, config: BackboneConfig) -> str:
    """Return the source of a module that needs nothing of this project, with a class that makes the model.

    It consists of the source that made the model here, so that the two cannot drift apart.
    """
    mean, std = ([float(value) for value in buffer.flatten()] for buffer in (model.mean, model.std))
    sources = [_Source(errors, ("InputError",)), _Source(splitting), _Source(wide_resnet)]
    sources.append(_Source(classifier, ("Classifier",)))
    if config.architecture.startswith(TIMM_PREFIX):
        from methods.backbones import timm_adapter

        sources += [_Source(errors, ("nearest",)), _Source(timm_adapter)]
        name = config.architecture.removeprefix(TIMM_PREFIX)
        network = f'timm_network("{name}", {model.num_classes}, {model.image_shape}, {config.norm_momentum})'
    elif config.architecture in get_args(resnet.Shape):
        sources.append(_Source(resnet))
        network = (
            f'ResNet("{config.architecture}", {config.widen}, {model.image_shape[0]}, {model.num_classes}, '
            f"{config.norm_momentum})"
        )
    else:
        network = (
            f'WideResNet("{config.architecture}", {config.depth}, {config.widen}, {model.image_shape[0]}, '
            f'{model.num_classes}, "{config.norm}", {config.norm_momentum}, {config.energy_head})'
        )
    parts = [
        f'{claim.comment}"""{claim.model_id}: {claim.architecture}, with its input normalisation.\n\n'
        'Trilemma (MIT licence) wrote it from the source that trained the model.\n"""\n\n'
        + "\n".join(["from __future__ import annotations", "", *_imports(sources)]),
        *(text for source in sources for text in source.definitions.values()),
        f"class {claim.factory}(Classifier):\n"
        f'    """The network as it was trained: images [B,C,H,W] in [0,1] to logits."""\n\n'
        "    def __init__(self) -> None:\n"
        f"        network = {network}\n"
        f"        super().__init__(network, {model.num_classes}, {model.image_shape}, {mean}, {std})",
    ]
    return "\n\n\n".join(parts) + "\n"


class _Source:
    """Definitions of a module: all of them, or those that are named."""

    def __init__(self, module: ModuleType, names: tuple[str, ...] = ()) -> None:
        text = inspect.getsource(module)
        lines, self.statements = text.splitlines(), ast.parse(text).body
        self.definitions: dict[ast.stmt, str] = {}
        for node in self.statements[1:]:  # below the docstring
            named = not names or getattr(node, "name", None) in names
            if named and not isinstance(node, ast.Import | ast.ImportFrom):
                self.definitions[node] = "\n".join(lines[node.lineno - 1 : node.end_lineno])


def _imports(sources: Sequence[_Source]) -> list[str]:
    """Return the import lines that the definitions of the modules need; imports of this project are left out."""
    used = {
        name.id
        for source in sources
        for node in source.definitions
        for name in ast.walk(node)
        if isinstance(name, ast.Name)
    }
    whole, parts = set[str](), dict[str, set[str]]()
    for node in (node for source in sources for node in source.statements):
        if isinstance(node, ast.Import):
            whole |= {f"import {alias.name}" for alias in node.names if alias.name in used}
        elif isinstance(node, ast.ImportFrom) and node.module and node.module.partition(".")[0] != "methods":
            needed = {ast.unparse(alias) for alias in node.names if (alias.asname or alias.name) in used}
            parts.setdefault(node.module, set()).update(needed)
    named = [f"from {module} import {', '.join(sorted(names))}" for module, names in sorted(parts.items()) if names]
    return [*sorted(whole), *named]
