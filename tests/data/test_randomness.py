"""Random numbers depend only on (seed, epoch, sample)."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from landmark.data.randomness import uniforms


@given(st.integers(0, 2**63), st.integers(0, 1000), st.lists(st.integers(0, 2**40), min_size=1, max_size=20))
def test_random_numbers_do_not_depend_on_the_other_samples(seed, epoch, samples):
    together = uniforms(seed, epoch, np.array(samples), 5)
    separate = np.concatenate([uniforms(seed, epoch, np.array([sample]), 5) for sample in samples])
    assert np.array_equal(together, separate)
    assert ((together >= 0) & (together < 1)).all()


def test_numbers_are_uniform_and_uncorrelated():
    numbers = uniforms(1, 2, np.arange(20_000), 4)
    assert np.allclose(numbers.mean(axis=0), 0.5, atol=0.01)
    assert np.allclose(numbers.var(axis=0), 1 / 12, atol=0.002)
    others = [uniforms(1, 3, np.arange(20_000), 4), uniforms(2, 2, np.arange(20_000), 4), np.roll(numbers, 1, axis=0)]
    for other in others:
        assert abs(np.corrcoef(numbers[:, 0], other[:, 0])[0, 1]) < 0.03
    assert abs(np.corrcoef(numbers.T) - np.eye(4)).max() < 0.03
