"""Compiled passes: as many graphs as there are situations, the same numbers, and no surprise on the way."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch._dynamo.backends.debugging import aot_eager
from torch._dynamo.utils import counters
from torch._inductor import config as inductor
from torch._inductor.cpu_vec_isa import pick_vec_isa
from torch._inductor.utils import fresh_cache

from methods.backbones import Classifier
from methods.data import Dataset
from methods.errors import InputError
from methods.primitives.modes import first_statistics, fixed_statistics, frozen, mode
from methods.training import compiled, setup, trainer
from methods.training.compiled import Compiled
from methods.training.config import Experiment, TrainConfig
from methods.training.method import Batch, Method
from methods.training.optim import Updater, optimizer
from methods.training.run_folder import run_folder
from methods.training.trainer import train

Network = Callable[..., Classifier]
Make = Callable[..., Experiment]
MakeMethod = Callable[..., Method]

CPU = torch.device("cpu")
EPOCH = 3
"""Steps of an epoch of 96 images in batches of 40; its last batch has 16."""
SUM = 576 * 2**-24
"""Rounding of the network's longest sums in float32: 576 products, each by 2^-24."""
_LITERAL = {"negatives": {"sampler": {"steps": 3, "inner_steps": 2, "step_size": 0.05}}}


class Counting:
    """A backend that runs what it is given, after noting that it was asked."""

    def __init__(self) -> None:
        self.asked = 0

    def __call__(self, graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Callable[..., Any]:
        self.asked += 1
        return graph.forward


@pytest.fixture
def counting(monkeypatch: pytest.MonkeyPatch) -> Counting:
    """Let trainings compile with a backend that counts."""
    backend = Counting()
    monkeypatch.setattr(setup, "Compiled", partial(Compiled, backend=backend))
    counters.clear()
    return backend


def experiment_of(make_experiment: Make, method: str, options: dict[str, Any], **train: Any) -> Experiment:
    return make_experiment(method, options, epochs=2, batch_size=40, select_attack={"steps": 1}, **train)


# One of each: the loss's pass; the input gradients of an attack, or of chains; a clean prediction, forward only; the
# loss under fixed statistics. PYLD's literal loop has the first layer forward only, and its gradient, and the rest.
@pytest.mark.parametrize(
    ("method", "options", "graphs"),
    [
        ("trades", {}, 3),
        ("jempp", _LITERAL, 4),
        ("ebjdat", {"host": "sadajem"}, 4),
        *(
            pytest.param(method, {}, graphs, marks=pytest.mark.slow)
            for method, graphs in {"standard": 1, "pgd_at": 2, "awp": 3, "jempp": 2, "sadajem": 3, "ebjdat": 3}.items()
        ),
    ],
)
def test_a_situation_is_compiled_once(
    method: str,
    options: dict[str, Any],
    graphs: int,
    counting: Counting,
    make_experiment: Make,
    digits: Dataset,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen: list[int] = []
    step = trainer._Training._step

    def watched(self: Any, number: int) -> Any:
        done = step(self, number)
        seen.append(counting.asked - 1)  # without that of the trifle
        return done

    monkeypatch.setattr(trainer._Training, "_step", watched)
    train(experiment_of(make_experiment, method, options, compile=True), digits, tmp_path, CPU)
    assert seen == [graphs] * 2 * EPOCH
    assert graphs <= compiled.GRAPHS
    assert not counters["recompile_limit"]
    assert not counters["graph_break"]
    assert counters["stats"]["unique_graphs"] == graphs + 1


@pytest.mark.usefixtures("counting")
def test_checkpoint_and_resume_are_those_of_a_training_that_is_not_compiled(
    make_experiment: Make, digits: Dataset, tmp_path: Path
) -> None:
    method = "sadajem"
    plain = train(experiment_of(make_experiment, method, {}), digits, tmp_path / "plain", CPU)
    chosen = experiment_of(make_experiment, method, {}, compile=True, checkpoint_seconds=0.0)
    straight = train(chosen, digits, tmp_path / "straight", CPU)
    found, expected = (load_file(folder / "weights.safetensors") for folder in (straight, plain))
    assert found.keys() == expected.keys()
    # The backend runs the operations of the plain training: here the bits are the same. Where a processor takes another
    # kernel for another layout, sums of 576 products rounded by 2^-24 go into six steps, none of which takes a sign.
    for key, value in expected.items():
        torch.testing.assert_close(found[key], value, rtol=6 * SUM, atol=SUM)

    original = trainer._Training._step
    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):

        def interrupted(self: Any, number: int) -> Any:
            if number == EPOCH + 1:
                raise KeyboardInterrupt
            return original(self, number)

        patch.setattr(trainer._Training, "_step", interrupted)
        train(chosen, digits, tmp_path / "resumed", CPU)
    resumed = train(chosen, digits, tmp_path / "resumed", CPU)
    assert (resumed / "weights.safetensors").read_bytes() == (straight / "weights.safetensors").read_bytes()


def test_flags_are_those_of_the_call(network: Network, batch: Batch) -> None:
    """Statistics move, stay, or are replaced as they do without a graph, whatever was compiled before."""
    plain, backend = network(), Counting()
    view = Compiled(network(), [16], backend)
    situations = [
        lambda model: mode(model, training=True),
        lambda model: fixed_statistics(model),
        lambda model: first_statistics(model),
        lambda model: mode(model, training=False),
        lambda model: frozen(model, training=True),
        lambda model: mode(model, training=True),
    ]
    odd = [module for module in plain.modules() if isinstance(module, nn.BatchNorm2d)][1]
    twin = [module for module in view.modules() if isinstance(module, nn.BatchNorm2d)][1]
    for eval_one in (False, True):
        for norm in (odd, twin):
            norm.train(not eval_one)
        for situation in situations:
            with situation(plain), situation(view):
                torch.testing.assert_close(view(batch.x), plain(batch.x), rtol=SUM, atol=SUM)
        for key, value in plain.state_dict().items():
            torch.testing.assert_close(view.state_dict()[key], value, rtol=SUM, atol=SUM)
    # The trifle; then train, fixed, eval and frozen; with one norm in eval mode, those that do not set the mode.
    assert backend.asked == 1 + 4 + 1


def test_other_shapes_and_too_many_situations_run_uncompiled(
    network: Network, batch: Batch, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compiled, "GRAPHS", 2)
    backend = Counting()
    model = network()
    view = Compiled(model, [16], backend)
    for part, images in (("forward", 16), ("forward", 3), ("features", 16), ("maps", 16)):
        getattr(view, part)(batch.x[:images])
    assert backend.asked == 1 + 2
    view.eval()
    torch.testing.assert_close(view(batch.x[:3]), model(batch.x[:3]))


def test_passes_in_train_mode_can_stay_uncompiled(network: Network, batch: Batch) -> None:
    backend = Counting()
    view = Compiled(network(), [16], backend, train_mode=False)
    view(batch.x)
    assert backend.asked == 1
    with frozen(view):
        view(batch.x)
    assert backend.asked == 2


def test_layouts_of_the_input_share_a_graph(network: Network, batch: Batch) -> None:
    backend = Counting()
    view = Compiled(network(), [16], backend).eval()
    plain = view(batch.x)
    for x in (
        batch.x.contiguous(memory_format=torch.channels_last),
        batch.x.transpose(2, 3).contiguous().transpose(2, 3),
        batch.x.as_strided(batch.x.shape, (64, 1, 8, 1)),
        batch.x.expand(16, 1, 8, 8).requires_grad_(False),
    ):
        torch.testing.assert_close(view(x), plain)
    assert backend.asked == 2


def test_drop_in_for_the_classifier(network: Network, batch: Batch) -> None:
    model = network(energy_head=True)
    view = Compiled(model, [16], Counting())
    assert view.state_dict().keys() == model.state_dict().keys()
    assert all(a is b for a, b in zip(view.parameters(), model.parameters(), strict=True))
    assert all(a is b for a, b in zip(view.buffers(), model.buffers(), strict=True))
    assert view.num_features == model.num_features
    for part in ("forward", "first", "maps", "features", "scalar_energy"):
        with fixed_statistics(model):
            torch.testing.assert_close(getattr(view, part)(batch.x), getattr(model, part)(batch.x))
    with fixed_statistics(model):
        torch.testing.assert_close(view.rest(view.first(batch.x)), model(batch.x))
        torch.testing.assert_close(view.from_maps(view.maps(batch.x)), model(batch.x))


@pytest.mark.parametrize("method", ["agr", "tdat"])
def test_several_backward_passes_of_one_forward(
    method: str, make_method: MakeMethod, network: Network, batch: Batch
) -> None:
    def total(view: Callable[[Classifier], Classifier]) -> Tensor:
        model = network().double()
        made = make_method(method, {"start": 0.0} if method == "agr" else {}).double()
        return made.step(view(model), doubled(batch), updater(model)).total

    found = total(lambda model: Compiled(model, [16], aot_eager))
    # Logits agree up to 1e-13 before they are rounded to float32; a loss of 16 images adds 26 terms.
    torch.testing.assert_close(found, total(lambda model: model), rtol=26 * 2**-24, atol=0)


def updater(model: nn.Module) -> Updater:
    return Updater(optimizer(model.parameters(), TrainConfig(lr=0.01)), None)


@pytest.fixture
def small() -> Callable[[], Classifier]:
    """Make a network that compiles in seconds: one channel of 8x8 -> 10 logits, always the same, in train mode."""

    def make() -> Classifier:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            convolution = [nn.Conv2d(1, 8, 3, 2, bias=False), nn.BatchNorm2d(8), nn.LeakyReLU(0.2)]
            layers = nn.Sequential(*convolution, nn.Flatten(), nn.Linear(72, 10))
            return Classifier(layers, 10, (1, 8, 8), (0.5,), (0.25,))

    return make


def doubled(batch: Batch) -> Batch:
    """Return a batch in float64, with as many images for p(x) as labelled ones."""
    return replace(batch, x=batch.x.double(), x_density=batch.x.flip(0).double())


def a_pass(model: Classifier, batch: Batch, training: bool) -> list[Tensor]:
    """Return loss, statistics and the gradients of images and weights."""
    x = batch.x.clone().requires_grad_()
    with mode(model, training=training):
        loss = nn.functional.cross_entropy(model(x), batch.y)
    gradients = torch.autograd.grad(loss, [x, *model.parameters()])
    return [loss.detach(), *gradients, *(value.clone() for value in model.buffers())]


def an_attack(model: Classifier, batch: Batch, training: bool) -> list[Tensor]:
    """Return logits, statistics and the gradient of the images, with the weights frozen."""
    x = batch.x.clone().requires_grad_()
    with frozen(model, training=training):
        logits = model(x)
        (gradient,) = torch.autograd.grad(logits.logsumexp(1).sum(), x)
    return [logits.detach(), gradient, *(value.clone() for value in model.buffers())]


# In float64, where sums in another order differ by 1e-13. Logits are cast to float32 behind the graph: one that lies
# on the edge of two may differ by 2^-24 of its size, and what follows from it by as much.
@pytest.mark.xdist_group("compiler")
@pytest.mark.parametrize(
    ("passed", "training"),
    [
        (a_pass, True),
        *(
            pytest.param(*case, marks=pytest.mark.slow)
            for case in ((a_pass, False), (an_attack, True), (an_attack, False))
        ),
    ],
)
def test_real_compiler_gives_the_same_numbers(
    passed: Callable[..., list[Tensor]], training: bool, small: Callable[[], Classifier], batch: Batch
) -> None:
    plain, even = small().double(), doubled(batch)
    view = Compiled(small().double(), [16])
    found, expected = (passed(model, even, training) for model in (view, plain))
    for value, other in zip(found, expected, strict=True):
        torch.testing.assert_close(value, other, rtol=2**-22, atol=2**-22 * float(other.abs().max()))


@pytest.mark.slow
@pytest.mark.xdist_group("compiler")
def test_real_compiler_gives_the_same_numbers_in_float32(small: Callable[[], Classifier], batch: Batch) -> None:
    plain, view = small(), Compiled(small(), [16])
    for value, other in zip(*(a_pass(model, batch, training=True) for model in (view, plain)), strict=True):
        # The longest sums, of a weight's gradient, are of 16 images at 9 places: 144 terms rounded by 2^-24, and a
        # sum may be a tenth of its terms.
        torch.testing.assert_close(value, other, rtol=0, atol=1440 * 2**-24 * float(other.abs().max()))


@pytest.mark.slow
@pytest.mark.xdist_group("compiler")
@pytest.mark.parametrize("name", ["trades", "jempp", "ebjdat"])
def test_real_compiler_gives_the_step_of_a_method(
    name: str, small: Callable[[], Classifier], make_method: MakeMethod, batch: Batch
) -> None:
    """The whole step, attack and chains included: in float64 no sign of a gradient turns."""
    totals = [
        make_method(name, density_batch=16).double().step(network, doubled(batch), updater(network)).total
        for network in (small().double(), Compiled(small().double(), [16]))
    ]
    torch.testing.assert_close(*totals, rtol=2**-20, atol=0)


@pytest.mark.xdist_group("compiler")
def test_graphs_of_another_processor_are_not_taken_up(
    small: Callable[[], Classifier], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The compiler's cache knows them apart by the vector width, which its configuration must state."""
    monkeypatch.setattr(inductor.cpp, "simdlen", None)
    Compiled(small(), [16], Counting())
    assert inductor.cpp.simdlen is None
    Compiled(small(), [16])
    assert inductor.cpp.simdlen == (pick_vec_isa().bit_width() or None)


def test_without_a_compiler_no_training_begins(make_experiment: Make, digits: Dataset, tmp_path: Path) -> None:
    chosen = experiment_of(make_experiment, "standard", {}, compile=True)
    with (
        fresh_cache(),
        inductor.patch({"cpp.cxx": ("/nowhere/c++",)}),
        pytest.raises(InputError, match=r"^train.compile needs a working compiler for cpu \(.*\); set it to false\.$"),
    ):
        train(chosen, digits, tmp_path, CPU)
    assert not run_folder(tmp_path, chosen, digits).exists()


def test_network_that_cannot_be_compiled_is_refused_in_a_sentence(batch: Batch) -> None:
    class Undecided(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.flatten(1) if x.sum() > 0 else -x.flatten(1)

    view = Compiled(Classifier(Undecided(), 10, (1, 8, 8), (0.5,), (0.25,)), [16], Counting())
    with pytest.raises(InputError, match=r"^train\.compile cannot compile this network"):
        view(batch.x)
