"""The rules for the tests themselves: every random number that they draw is the same in every run."""

import ast
import random
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

TESTS = Path(__file__).resolve().parent

DRAWS = {
    "torch": {
        *("bernoulli", "multinomial", "normal", "poisson"),
        *("rand", "rand_like", "randint", "randint_like", "randn", "randn_like", "randperm"),
    },
    "numpy.random": {
        *("bytes", "choice", "normal", "permutation", "rand", "randint", "randn", "random", "shuffle", "uniform"),
        *("binomial", "exponential", "integers", "multinomial", "poisson", "random_sample", "standard_normal"),
    },
    "random": {
        *("betavariate", "choice", "choices", "expovariate", "gauss", "getrandbits", "normalvariate", "randbytes"),
        *("randint", "random", "randrange", "sample", "shuffle", "triangular", "uniform"),
    },
}
"""Functions that draw from a generator which conftest.py seeds before every test and fixture."""
UNSEEDED_WITHOUT_ARGUMENTS = {
    *("random.Random", "random.seed", "numpy.random.default_rng", "numpy.random.seed", "numpy.random.RandomState"),
    *("numpy.random.SeedSequence", "numpy.random.PCG64"),
}
GENERATORS = {"torch.Generator", "numpy.random.default_rng", "numpy.random.RandomState", "random.Random"}
UNSEEDED = {"random.SystemRandom", "os.urandom", "torch.seed", "torch.random.seed", "uuid.uuid4", "secrets"}


def names_of_imports(tree: ast.Module) -> dict[str, str]:
    """Return what each imported name of a file stands for, such as np: numpy."""
    known: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            known |= {item.asname or item.name.split(".")[0]: item.name for item in node.names if item.asname}
            known |= {item.name.split(".")[0]: item.name.split(".")[0] for item in node.names if not item.asname}
        elif isinstance(node, ast.ImportFrom):
            known |= {item.asname or item.name: f"{node.module}.{item.name}" for item in node.names}
    return known


def dotted(node: ast.expr, known: dict[str, str]) -> str:
    """Return the full name of what is called, such as numpy.random.rand; empty for anything but a name."""
    if isinstance(node, ast.Attribute):
        inside = dotted(node.value, known)
        return f"{inside}.{node.attr}" if inside else ""
    return known.get(node.id, "") if isinstance(node, ast.Name) else ""


def unseeded(source: str) -> Iterator[tuple[int, str]]:
    """Yield line and name of every call whose numbers another run of the tests would not draw again.

    Inside a function the global generators are seeded (conftest.py); code that runs on import draws from them before.
    A `torch.Generator` is seeded only by `manual_seed`. A generator that the tests of a file share is an offence, too:
    what one test draws from it depends on those before.
    """
    tree = ast.parse(source)
    known = names_of_imports(tree)

    def visit(node: ast.AST, inside: bool) -> Iterator[tuple[int, str]]:
        if isinstance(node, ast.Call):
            name = dotted(node.func, known)
            module, _, function = name.rpartition(".")
            given = bool(node.args) or bool(node.keywords)
            own = any(word.arg == "generator" for word in node.keywords)
            if (
                name in UNSEEDED
                or module == "secrets"
                or (name in UNSEEDED_WITHOUT_ARGUMENTS and not given)
                or (function in DRAWS.get(module, ()) and not inside and not own)
            ):
                yield node.lineno, name
            if name == "torch.Generator" and id(node) not in seeded:
                yield node.lineno, name
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            # Decorators and defaults are computed on import.
            for part in (*node.decorator_list, node.args):
                yield from visit(part, inside)
            for part in node.body:
                yield from visit(part, True)
            return
        if isinstance(node, ast.Lambda):
            yield from visit(node.args, inside)
            yield from visit(node.body, True)
            return
        for child in ast.iter_child_nodes(node):
            yield from visit(child, inside)

    # torch.Generator().manual_seed(0), or generator = torch.Generator() in a file that says generator.manual_seed(0).
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)]
    on = [call.func.value for call in calls if isinstance(call.func, ast.Attribute) and call.func.attr == "manual_seed"]
    named = {node.id for node in on if isinstance(node, ast.Name)}
    seeded = {id(node) for node in on}
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign) and any(isinstance(at, ast.Name) and at.id in named for at in node.targets):
            seeded.add(id(node.value))
    for node in tree.body:
        made = node.value if isinstance(node, ast.Assign) else None
        if isinstance(made, ast.Call) and {dotted(made.func, known), dotted_of_seeded(made, known)} & GENERATORS:
            yield node.lineno, "shared generator"
    yield from visit(tree, inside=False)


def dotted_of_seeded(call: ast.Call, known: dict[str, str]) -> str:
    """Return what was called before .manual_seed(...)."""
    method = call.func
    if isinstance(method, ast.Attribute) and method.attr == "manual_seed" and isinstance(method.value, ast.Call):
        return dotted(method.value.func, known)
    return ""


def test_every_draw_is_seeded() -> None:
    found = [
        f"{path.relative_to(TESTS.parent)}:{line} {name}"
        for path in sorted(TESTS.rglob("*.py"))
        for line, name in unseeded(path.read_text(encoding="utf-8"))
    ]
    assert not found, "another run draws other numbers at:\n" + "\n".join(found)


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("import torch\nX = torch.rand(3)", "torch.rand"),
        ("import torch as t\n\nclass A:\n    x = t.randperm(3)", "torch.randperm"),
        ("import torch\n\ndef f(x=torch.randn(3)):\n    pass", "torch.randn"),
        ("import numpy as np\nX = np.random.rand(3)", "numpy.random.rand"),
        ("import numpy as np\n\ndef f():\n    np.random.default_rng()", "numpy.random.default_rng"),
        ("from numpy.random import default_rng\n\ndef f():\n    default_rng()", "numpy.random.default_rng"),
        ("import random\n\ndef f():\n    random.SystemRandom().randrange(9)", "random.SystemRandom"),
        ("import random\n\ndef f():\n    random.seed()", "random.seed"),
        ("from random import Random\n\ndef f():\n    return Random()", "random.Random"),
        ("import torch\n\ndef f():\n    torch.seed()", "torch.seed"),
        ("import torch\n\ndef f():\n    g = torch.Generator()\n    torch.rand(3, generator=g)", "torch.Generator"),
        ("import numpy as np\nRNG = np.random.default_rng(0)", "shared generator"),
        ("import torch\nRNG = torch.Generator().manual_seed(0)", "shared generator"),
        ("import secrets\n\ndef f():\n    secrets.randbelow(3)", "secrets.randbelow"),
    ],
)
def test_an_unseeded_draw_is_found(source: str, name: str) -> None:
    assert [found for _, found in unseeded(source)] == [name]


@pytest.mark.parametrize(
    "source",
    [
        "import torch\n\ndef f():\n    return torch.rand(3)",
        "import torch\nX = torch.rand(3, generator=torch.Generator().manual_seed(0))",
        "import torch\n\ndef f():\n    g = torch.Generator()\n    g.manual_seed(0)\n    torch.rand(3, generator=g)",
        "import numpy as np\nX = np.random.default_rng(0).random(3)",
        "import random\nF = lambda: random.Random(3)",
    ],
)
def test_a_seeded_draw_is_no_offence(source: str) -> None:
    assert list(unseeded(source)) == []


@pytest.fixture
def drawn() -> list[float]:
    return [float(torch.rand(())), float(np.random.rand()), random.random()]


@pytest.fixture(scope="module")
def seen() -> list[list[float]]:
    return []


@pytest.mark.parametrize("time", ["first", "second"])
@pytest.mark.xdist_group("seeds")
def test_a_test_draws_the_same_whatever_was_drawn_before(
    time: str, drawn: list[float], seen: list[list[float]]
) -> None:
    own = [float(torch.rand(())), float(np.random.rand()), random.random()]
    assert not set(own) & set(drawn)
    seen.append(own + drawn)
    assert seen == [seen[0]] * len(seen)
