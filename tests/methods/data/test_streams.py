import pytest
import torch

from methods.data.images import ImageSet
from methods.data.streams import Augment, MixedStream, Stream
from methods.errors import InputError

NONE = Augment()
FULL = Augment(padding=2, padding_mode="reflect", flip=True, noise=0.1)


def numbered(count: int = 10) -> ImageSet:
    """Make images whose every pixel is their number, and whose label is too."""
    numbers = torch.arange(count)
    return ImageSet(numbers.to(torch.uint8).view(-1, 1, 1, 1).repeat(1, 1, 8, 8), numbers)


def stream(augment: Augment = NONE, name: str = "train", seed: int = 0, drop_last: bool = False) -> Stream:
    return Stream(numbered(), 4, augment, seed, name, drop_last)


def labels(source: Stream, epoch: int) -> list[int]:
    steps = range(epoch * source.steps_per_epoch, (epoch + 1) * source.steps_per_epoch)
    return [label for step in steps for label in source.batch(step)[1].tolist()]


def test_an_epoch_shows_each_image_once() -> None:
    source = stream()
    assert source.steps_per_epoch == 3
    assert [len(source.batch(step)[1]) for step in range(3)] == [4, 4, 2]
    assert sorted(labels(source, 0)) == sorted(labels(source, 1)) == list(range(10))
    assert labels(source, 0) != labels(source, 1)


def test_drop_last_leaves_out_the_partial_batch() -> None:
    source = stream(drop_last=True)
    assert source.steps_per_epoch == 2
    assert [len(source.batch(step)[1]) for step in range(4)] == [4] * 4
    assert len(set(labels(source, 0))) == 8
    assert labels(source, 1) == labels(stream(), 1)[:8]


def test_a_batch_is_a_pure_function_of_its_step() -> None:
    forwards, backwards = stream(FULL), stream(FULL)
    ahead = [forwards.batch(step) for step in range(7)]
    for step in reversed(range(7)):
        x, y = backwards.batch(step)
        assert torch.equal(x, ahead[step][0])
        assert torch.equal(y, ahead[step][1])


def test_a_batch_leaves_the_global_generator_alone() -> None:
    before = torch.random.get_rng_state()
    stream(FULL).batch(0)
    assert torch.equal(before, torch.random.get_rng_state())


@pytest.mark.parametrize("other", [stream(FULL, name="energy"), stream(FULL, seed=1)])
def test_other_names_and_seeds_are_independent(other: Stream) -> None:
    own = stream(FULL)
    assert labels(own, 0) != labels(other, 0)
    noise = [source.batch(0)[0] - source.batch(0)[1].view(-1, 1, 1, 1) / 255 for source in (own, other)]
    correlation = torch.corrcoef(torch.stack([piece.flatten() for piece in noise]))[0, 1]
    assert abs(correlation.item()) < 0.2


def test_the_order_does_not_depend_on_the_augmentation() -> None:
    assert labels(stream(FULL), 0) == labels(stream(), 0)


def test_images_keep_their_labels_and_reach_the_unit_range() -> None:
    x, y = stream(Augment(padding=2, padding_mode="reflect", flip=True)).batch(1)
    assert (x.dtype, y.dtype) == (torch.float32, torch.int64)
    assert torch.equal(x, (y / 255).view(-1, 1, 1, 1).expand(4, 1, 8, 8))


def test_noise_has_its_deviation_and_is_not_clamped() -> None:
    source = Stream(numbered(2), 2, Augment(noise=0.03), 0, "train", False)
    x = torch.cat([source.batch(step)[0] for step in range(50)])
    assert x.min().item() < 0
    assert x.std().item() == pytest.approx(0.03, rel=0.05)


def test_float_images_pass_through() -> None:
    data = ImageSet(torch.rand(4, 3, 8, 8), torch.arange(4))
    x, y = Stream(data, 4, Augment(), 0, "train", True).batch(0)
    assert torch.equal(x, data.images[y])


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"padding": -1}, "padding"),
        ({"noise": -0.1}, "noise"),
        ({"noise": float("nan")}, "noise"),
        ({"padding_mode": "reflection"}, 'Did you mean "reflect"'),
    ],
)
def test_impossible_augmentation(fields: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Augment(**fields)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("count", "batch_size", "drop_last", "message"),
    [(10, 0, False, "at least 1"), (0, 4, False, "do not fill"), (3, 4, True, "do not fill a batch of 4")],
)
def test_impossible_batches(count: int, batch_size: int, drop_last: bool, message: str) -> None:
    with pytest.raises(InputError, match=message):
        Stream(numbered(count), batch_size, Augment(), 0, "train", drop_last)


def test_fewer_images_than_a_batch_are_one_batch() -> None:
    source = Stream(numbered(3), 4, Augment(), 0, "train", False)
    assert (source.steps_per_epoch, len(source.batch(0)[1])) == (1, 3)


def mixed(share: float = 0.7, batch_size: int = 8, augment: Augment = NONE, seed: int = 0) -> MixedStream:
    generated = ImageSet(torch.full((5, 1, 8, 8), 200, dtype=torch.uint8), torch.arange(100, 105))
    return MixedStream(numbered(20), generated, share, batch_size, augment, seed, "labelled")


@pytest.mark.parametrize(("share", "batch_size", "count"), [(0.7, 8, 5), (0.7, 10, 7), (0.5, 7, 3), (0.0, 8, 0)])
def test_a_share_of_every_batch_is_generated(share: float, batch_size: int, count: int) -> None:
    """adversarial-training.md, trap 14: int(share B) of them exactly, int64 labels."""
    source = mixed(share, batch_size)
    assert source.steps_per_epoch == -(-20 // batch_size)
    full = 20 // (batch_size - count)
    for step in range(3 * source.steps_per_epoch):
        x, y = source.batch(step)
        assert x.dtype == torch.float32
        assert y.dtype == torch.int64
        assert len(x) == len(y) == batch_size
        if step % source.steps_per_epoch < full:
            assert int((y >= 100).sum()) == count
        assert torch.equal(x[y >= 100], torch.full_like(x[y >= 100], 200 / 255))


def test_real_images_come_without_replacement_and_generated_ones_with() -> None:
    source = mixed()
    drawn = [source.batch(step)[1] for step in range(source.steps_per_epoch)]
    real = torch.cat([y[y < 100] for y in drawn]).tolist()
    assert len(real) == len(set(real)) == 3 * 3
    assert any(len(set(y[y >= 100].tolist())) < 5 for y in drawn)
    other = [source.batch(step)[1] for step in range(source.steps_per_epoch, 2 * source.steps_per_epoch)]
    assert torch.cat([y[y < 100] for y in other]).tolist() != real


def test_a_mixed_batch_is_a_pure_function_of_its_step() -> None:
    forwards, backwards = mixed(augment=FULL), mixed(augment=FULL)
    ahead = [forwards.batch(step) for step in range(7)]
    for step in reversed(range(7)):
        assert all(torch.equal(*pair) for pair in zip(backwards.batch(step), ahead[step], strict=True))
    assert not torch.equal(mixed(augment=FULL, seed=1).batch(0)[0], ahead[0][0])


def test_mixing_whole_numbers_with_floats() -> None:
    real = ImageSet(torch.rand(6, 1, 8, 8), torch.arange(6))
    generated = ImageSet(torch.full((2, 1, 8, 8), 51, dtype=torch.uint8), torch.zeros(2, dtype=torch.int64))
    x, _ = MixedStream(real, generated, 0.5, 4, NONE, 0, "labelled").batch(0)
    assert torch.allclose(x[2:], torch.tensor(0.2))
