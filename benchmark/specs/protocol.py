"""Protocols: how subjects are measured, as data, with an id for people and a hash for tables."""

import hashlib
import json
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from benchmark.specs import registry
from benchmark.specs.recipes import protocols, read_yaml
from benchmark.specs.schema import Strict, checked
from methods.errors import InputError, nearest

GENERAL = "standard-v3"
"""The standard protocol for a data set or a threat model that has none of its own."""


class Protocol(Strict):
    """Everything that decides a measurement besides the subject and the data.

    A published protocol is never edited: a change of it gets a new id. Rows whose :attr:`hash` differs never
    share a table.
    """

    id: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
    role: Literal["standard", "authors", "custom"] = "custom"
    """Standard: the headline table. Authors: how a paper's own code evaluates, for explaining gaps."""
    description: str = ""
    dataset: str | None = None
    """The one data set it is for; None: any."""
    threat: str
    """Such as ``Linf:8/255``; eps in [0, 1] pixel units."""
    noise: Annotated[float, Field(ge=0)] = 0
    """Standard deviation of Gaussian noise on the test images before anything is measured, in [0, 1] pixel units and
    not clamped: the standard protocols have none."""
    shard: Annotated[int, Field(ge=1)] = 100
    """Images that are measured and stored together, and that share random streams."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Root of every random stream."""
    metrics: Annotated[dict[str, dict[str, Any]], Field(min_length=1)]
    """Metric -> settings that differ from its defaults."""

    def config(self, metric: str) -> Any:
        """Return the settings of ``metric``, defaults filled in, as an instance of its ``Config``.

        Raises:
            InputError: the protocol has no such metric, or its settings are wrong.
        """
        if metric not in self.metrics:
            have = ", ".join(self.metrics)
            hint = nearest(metric, self.metrics)
            raise InputError(f'The protocol "{self.id}" has no metric "{metric}" (it has {have}).{hint}')
        module = registry.get(metric)
        return checked(module.Config, self.metrics[metric], f'The protocol "{self.id}", metrics.{metric}')

    @property
    def resolved(self) -> dict[str, Any]:
        """Everything that decides a number: this protocol with every default and every metric's version."""
        # Without the key where there is no noise: the protocols from before there could be any keep their hashes.
        content = self.model_dump(exclude={"description"} if self.noise else {"description", "noise"})
        content["metrics"] = {
            name: {"version": registry.get(name).VERSION, "config": self.config(name).model_dump(mode="json")}
            for name in self.metrics
        }
        return content

    @property
    def hash(self) -> str:
        """Twelve hex digits of the SHA-256 of :attr:`resolved`: a default changed in the code changes it."""
        return hashlib.sha256(json.dumps(self.resolved, sort_keys=True).encode()).hexdigest()[:12]


def default(dataset: str, threat: str | None = None) -> str:
    """Return the id of the newest standard protocol for a data set, and for a threat model where one is given."""
    from methods.primitives.threat import ThreatModel

    wanted = None if threat is None else ThreatModel.parse(threat)
    for name, path in reversed(protocols().items()):
        content = read_yaml(path)
        own = content.get("role") == "standard" and content.get("dataset") == dataset
        if own and wanted in (None, ThreatModel.parse(str(content["threat"]))):
            return name
    return GENERAL


def threat_of(name: str | Path) -> str | None:
    """Return the threat model a protocol fixes; None where it leaves it open.

    Raises:
        InputError: no such protocol.
    """
    threat = read_yaml(_path(name)).get("threat")
    return None if threat is None else str(threat)


def load(name: str | Path, threat: str | None = None) -> Protocol:
    """Load a protocol by its id, or from a YAML file.

    Args:
        name: an id, or the path of a file.
        threat: the threat model, where the protocol leaves it open. Where it does not and this is another,
            the result is a custom protocol.

    Raises:
        InputError: no such protocol, or a wrong one; the sentence says what is wrong.
    """
    from methods.primitives.threat import ThreatModel

    path = _path(name)
    content = read_yaml(path)
    own = content.get("threat")
    if own is None and threat is None:
        raise InputError(f'The protocol "{path.stem}" is for any threat model: name one, such as --threat Linf:8/255.')
    chosen = ThreatModel.parse(threat if threat is not None else str(own))
    if own is not None and chosen != ThreatModel.parse(str(own)):
        content["role"] = "custom"
    settings = content.get("metrics")
    if isinstance(settings, dict):
        content["metrics"] = {metric: {} if value is None else value for metric, value in settings.items()}
    protocol = checked(Protocol, content | {"threat": str(chosen)}, f"The protocol {path}")
    for metric in protocol.metrics:
        protocol.config(metric)
        for needed in getattr(registry.get(metric), "NEEDS", ()):
            if needed not in protocol.metrics:
                raise InputError(f'The protocol {path}: the metric "{metric}" needs "{needed}" beside it.')
    return protocol


def _path(name: str | Path) -> Path:
    text = str(name)
    if text.endswith((".yaml", ".yml")) or "/" in text:
        return Path(name)
    known = protocols()
    if text not in known:
        raise InputError(f'There is no protocol "{text}" (there are {", ".join(known)}).{nearest(text, known)}')
    return known[text]
