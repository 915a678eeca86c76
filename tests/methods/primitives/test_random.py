import pytest
import torch

from methods.primitives.random import derive, generator, normal_like, rows_generator, uniform_like


def test_derive_is_stable_for_ever() -> None:
    assert derive(0, "attack", 3) == 7097946167161890647
    assert derive(0) == 7520536977032167579


@pytest.mark.parametrize(
    ("first", "second"),
    [((0, "a", "bc"), (0, "ab", "c")), ((0, "1"), (0, 1)), ((1, "a"), (0, "a")), ((0, "a"), (0, "a", 0))],
)
def test_derive_separates_names(first: tuple, second: tuple) -> None:
    assert derive(*first) != derive(*second)


def test_derive_fits_every_generator() -> None:
    assert all(0 <= derive(seed, "x") < 2**63 for seed in range(100))


def test_streams_are_reproducible_and_do_not_shift_each_other() -> None:
    first = torch.rand(3, generator=generator(7, "attack", 0))
    other = generator(7, "noise", 0)
    torch.rand(100, generator=other)
    assert torch.equal(first, torch.rand(3, generator=generator(7, "attack", 0)))
    assert not torch.equal(first, torch.rand(3, generator=generator(7, "attack", 1)))


def test_draws_take_shape_and_dtype_and_leave_the_global_stream_alone() -> None:
    x = torch.zeros(2000, 3, dtype=torch.float64)
    before = torch.get_rng_state()
    normal, uniform = normal_like(x, generator(0, "n")), uniform_like(x, generator(0, "u"))
    assert torch.equal(before, torch.get_rng_state())
    assert normal.shape == uniform.shape == x.shape and normal.dtype == uniform.dtype == x.dtype
    assert abs(normal.mean()) < 0.05 and abs(normal.std() - 1) < 0.05
    assert uniform.min() >= 0 and uniform.max() < 1 and abs(uniform.mean() - 0.5) < 0.02


def test_a_share_of_a_batch_gets_the_numbers_of_its_rows() -> None:
    x = torch.zeros(7, 2, 3)
    for draw in (normal_like, uniform_like):
        whole = generator(0, "attack", 5)
        expected = torch.cat([draw(x, whole), draw(x, whole)], dim=1)
        for rows in (slice(0, 3), slice(3, 7), slice(4, 4)):
            own = rows_generator(0, "attack", 5, device="cpu", rows=rows, of=7)
            found = torch.cat([draw(x[rows], own), draw(x[rows], own)], dim=1)
            assert torch.equal(found, expected[rows])


def test_a_share_of_a_batch_draws_nothing_else() -> None:
    own = rows_generator(0, "attack", 5, device="cpu", rows=slice(0, 3), of=7)
    with pytest.raises(RuntimeError, match="4 rows were asked for of a generator of 3"):
        normal_like(torch.zeros(4), own)
