from hypothesis import given
from hypothesis import strategies as st

from pdarts_tune.study.sweep import MOST_TRIALS, gpu_fraction, trials_that_fit

GIGABYTE = 10**9


def test_small_trials_share_a_gpu_and_large_ones_have_it_alone():
    assert trials_that_fit(3 * GIGABYTE, 16 * GIGABYTE) == 3  # 3 x (3.75 + 0.6) is 13.05, a fourth would make 17.4
    assert gpu_fraction(3 * GIGABYTE, 16 * GIGABYTE) == 0.3333
    assert gpu_fraction(9 * GIGABYTE, 16 * GIGABYTE) == 1.0
    assert trials_that_fit(14 * GIGABYTE, 16 * GIGABYTE) == 0
    assert gpu_fraction(14 * GIGABYTE, 16 * GIGABYTE) == 1.0
    assert trials_that_fit(1, 80 * GIGABYTE) == MOST_TRIALS


@given(needed=st.integers(0, 100 * GIGABYTE), gpu_bytes=st.integers(GIGABYTE, 200 * GIGABYTE))
def test_trials_that_share_a_gpu_fit_on_it_with_headroom(needed, gpu_bytes):
    fraction = gpu_fraction(needed, gpu_bytes)
    together = int(1 / fraction)
    assert 0 < fraction <= 1
    assert together <= MOST_TRIALS
    assert together == 1 or together * 1.25 * needed <= gpu_bytes
