"""RobustBench's own generators of its tables, run on model_info files as they would be there."""

import contextlib
import io
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

from torch import nn

from benchmark.models.robustbench_import import imported
from benchmark.models.zoo import registered
from methods.errors import InputError, reason
from methods.primitives.threat import ThreatModel

_TEMPLATE = """\
<table id="{{ dataset }}_leaderboard_{{ threat_model }}">
<tr><th>Rank</th><th>Method</th><th>Standard accuracy</th><th>AutoAttack robust accuracy</th>\
<th>Best known robust accuracy</th><th>Potentially unreliable</th><th>Extra data</th><th>Architecture</th>\
<th>Venue</th></tr>
{%- for model in models %}
<tr><td>{{ loop.index }}</td><td><a href="{{ model.link }}">{{ model.name }}</a>\
{% if model.footnote is defined and model.footnote is not none %}<br>{{ model.footnote }}{% endif %}</td>\
<td>{{ model.clean_acc }}%</td><td>{{ model[acc_field] }}%</td><td>{{ model.external or model[acc_field] }}%</td>\
<td>{{ "unknown" if model.unreliable is not defined else "yes" if model.unreliable else "no" }}</td>\
<td>{{ "yes" if model.additional_data else "no" }}</td><td>{{ model.architecture }}</td><td>{{ model.venue }}</td></tr>
{%- endfor %}
</table>
"""


def consume(model_info: Path, dataset: str, threat: ThreatModel) -> dict[str, str]:
    """Run RobustBench's own generators on a folder of model_info files.

    The folder holds ``<dataset>/<norm>/<model id>.json``, where the data set has RobustBench's name.

    Returns:
        Generator -> its text: ``list_available_models`` (Markdown), ``bibtex``, ``latex``, and ``leaderboard`` (HTML;
        where the release lacks its template, by one of this project with the same fields).

    Raises:
        InputError: a generator fails; the sentence names it.
    """
    folder = Path(dataset) / threat.norm
    ids = [path.stem for path in sorted((model_info / folder).glob("*.json"))]
    if not ids:
        raise InputError(f"There is no model_info file in {model_info / folder}.")
    with imported() as robustbench, tempfile.TemporaryDirectory() as place:
        shutil.copytree(model_info / folder, Path(place) / "model_info" / folder)
        utils, template = robustbench.utils, robustbench.leaderboard.template
        consumers: dict[str, Callable[[], Any]] = {
            "list_available_models": lambda: utils.list_available_models(dataset, threat.norm),
            "bibtex": lambda: "".join(sorted(utils.get_leaderboard_bibtex(dataset, threat.norm)[0])),
            "latex": lambda: utils.get_leaderboard_latex(dataset, threat.norm),
            "leaderboard": lambda: template.generate_leaderboard(dataset, threat.norm, "model_info"),
        }
        made = {}
        # They look for ./model_info, list what is in the zoo, and print.
        with (
            contextlib.chdir(place),
            registered(robustbench, dict.fromkeys(ids, nn.Identity), dataset, threat),
            patch.object(template, "PackageLoader", _with_template(template.PackageLoader)),
        ):
            for name, consumer in consumers.items():
                with contextlib.redirect_stdout(io.StringIO()) as printed:
                    try:
                        made[name] = consumer() or printed.getvalue()
                    except Exception as error:
                        raise InputError(
                            f"RobustBench's {name} fails on {model_info / folder}: {reason(error)}."
                        ) from error
        return made


def _with_template(loader: type[Any]) -> type[Any]:
    """Return a loader of RobustBench's HTML template, or of :data:`_TEMPLATE` where the release lacks it."""

    class Loader(loader):
        def get_source(self, environment: Any, template: str) -> Any:
            try:
                return super().get_source(environment, template)
            except LookupError:
                return _TEMPLATE, None, None

    return Loader
