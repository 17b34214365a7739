"""Our gradients on the cases that jax ships for its own primitives.

By default a sample, spread over each primitive's list; JAXBACKPROP_ALL_HARNESSES=1 takes them all.
"""

import os

import jax.numpy as jnp
import numpy as np
import pytest
from harnesses import REFUSED, SAME, WRONG, harnesses, judge, report, sample
from harnesses_twice import judge_twice
from nestings import NESTINGS
from worker_memory import let_go_if_full

from jaxbackprop.graph import vjp

# The harnesses ask for float64 whether it is on or not, and jax warns of it.
pytestmark = pytest.mark.filterwarnings("ignore")

ALL = bool(os.environ.get("JAXBACKPROP_ALL_HARNESSES"))


@pytest.fixture(scope="module")
def outcomes():
    found = []
    for harness in harnesses() if ALL else sample(1):
        let_go_if_full()
        found.append(judge(harness))
    return found


def test_no_harness_gets_a_wrong_value(outcomes):
    assert [o for o in outcomes if o.verdict == WRONG] == []


def test_ninety_nine_of_a_hundred_harnesses_are_supported(outcomes):
    print("\n" + report(outcomes))
    same, refused = (sum(o.verdict == v for o in outcomes) for v in (SAME, REFUSED))
    assert same >= 0.99 * (same + refused)


def test_what_is_refused_is_named(outcomes):
    assert all("'" in o.why for o in outcomes if o.verdict == REFUSED)


def test_second_derivatives_in_all_four_nestings_are_jaxs():
    """By default of five; of the harnesses in two precisions, which are the same operations."""
    single = [h for h in harnesses() if np.dtype(h.dtype) in (np.float32, np.complex64)]
    few = ("eigh", "cumprod", "dot_general", "scatter_mul", "select_and_gather_add")
    found = []
    for harness in single if ALL else [h for h in sample(1) if h.group_name in few]:
        let_go_if_full()
        found += judge_twice(harness)
    print("\n" + report(found))
    assert [o for o in found if o.verdict in (WRONG, REFUSED)] == []
    assert any(o.verdict == SAME for o in found)


def test_a_wrong_second_derivative_would_be_seen():
    harness = next(h for h in harnesses() if h.group_name == "tanh")
    ours, jaxs = NESTINGS["grad(grad)"]
    too_much = {"1.001 of it": (lambda *args: [1.001 * g for g in ours(*args)], jaxs)}
    assert [o.verdict for o in judge_twice(harness, too_much)] == [WRONG]


@pytest.mark.parametrize("of", ["acosh float32", "acosh complex64", "sign complex64"])
def test_second_derivatives_are_fs_where_jaxs_first_is_not(of):
    """Before 0.12: a complex sign is not flat, nor has acosh that slope left of 0, or below 1."""
    name, dtype = of.split()
    harness = next(h for h in harnesses() if (h.group_name, np.dtype(h.dtype)) == (name, dtype))
    assert {o.verdict for o in judge_twice(harness)} == {SAME}
    ours, jaxs = NESTINGS["grad(grad)"]
    too_much = {"1.1 of it": (lambda *args: [1.1 * g for g in ours(*args)], jaxs)}
    assert [o.verdict for o in judge_twice(harness, too_much)] == [WRONG]


def scaled(f, *primals):
    out, pullback = vjp(f, *primals)
    return out, lambda ct: tuple(1.001 * c for c in pullback(ct))


def zeros(f, *primals):
    out, _ = vjp(f, *primals)
    return out, lambda ct: tuple(map(jnp.zeros_like, primals))


def negated(f, *primals):
    out, pullback = vjp(f, *primals)
    return out, lambda ct: tuple(-c for c in pullback(ct))


@pytest.mark.parametrize("wrong", [scaled, zeros, negated])
@pytest.mark.parametrize("name", ["sin", "tanh", "dot_general", "cumprod"])
def test_a_wrong_gradient_would_be_seen(wrong, name):
    single = (h for h in harnesses() if np.dtype(h.dtype) == np.float32)  # half would not see 0.1 %
    harness = next(h for h in single if h.group_name == name)
    assert judge(harness).verdict == SAME
    assert judge(harness, wrong).verdict == WRONG
