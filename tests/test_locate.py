"""Where a number stops being finite, in compiled programs: against `inspect` and planted faults."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from campaign_locate import W, X, told, trial

from jaxbackprop import inspect, locate


def masked(x):
    return jnp.sum(jnp.where(x > 0, jnp.sqrt(x), 0.0))


def repaired(x):
    return jnp.sum(jnp.where(x > 0, jnp.sqrt(jnp.where(x > 0, x, 1.0)), 0.0))


def padded(w, x):
    def step(h, x):
        h = jnp.tanh(w @ h + x)
        return h, jnp.linalg.norm(h)

    return jnp.mean(jax.lax.scan(step, jnp.zeros(3), x)[1])


def classifier(w, x):
    return -jnp.log(jax.nn.softmax(300 * w @ x))[2]


def attention(x, mask):
    return jnp.sum(jax.nn.softmax(jnp.where(mask, x, -jnp.inf)) ** 2)


def angle(x):
    return jnp.sum(jnp.arccos(x * 2))


def exploding(w, x):
    h, _ = jax.lax.scan(lambda h, _: (jnp.exp(w @ h), None), x, None, length=6)
    return jnp.sum(h)


@jax.custom_jvp
def size(x):
    return jnp.abs(x)


@size.defjvp
def _(primals, tangents):
    (x,), (t,) = primals, tangents
    return jnp.abs(x), t * x / jnp.abs(x)


def in_branch(x):
    return jax.lax.cond(x[0] < 0.5, lambda x: jnp.sum(jnp.log(x - 0.3)), jnp.sum, x)


def in_nested_scans(w, x):
    def outer(h, i):
        def inner(h, j):
            distance = jnp.sqrt((i - 1.0) ** 2 + (j - 2.0) ** 2 + 0 * h[0])
            return jnp.tanh(w @ h) + distance, None

        return jax.lax.scan(inner, h, jnp.arange(4.0))[0], None

    return jnp.sum(jax.lax.scan(jax.checkpoint(outer), x, jnp.arange(3.0))[0])


@jax.custom_vjp
def length(x):
    return jnp.sqrt(jnp.sum(x**2))


def _length_back(x, ct):
    size = jnp.sqrt(jnp.sum(x**2))
    masked = jnp.where(x > -1, x, jnp.log(x - x))  # not finite where it is not taken: no harm
    return (ct * masked / size,)


length.defvjp(lambda x: (length(x), x), _length_back)


def lengths(x):
    return jax.lax.scan(lambda c, row: (c + length(row), None), 0.0, jnp.stack([x, x - X]))[0]


MESH = jax.sharding.Mesh(np.array(jax.devices()[:1]), ("d",))
ALONG = jax.sharding.PartitionSpec("d")


def on_devices(masked):
    """1/√, of what a mask without harm leaves."""

    def body(x):
        kept = jnp.where(x > -9, x, jnp.log(x - x)) if masked else x
        size = jnp.sqrt(kept * kept)
        return size + jax.lax.psum(1 / jnp.sum(size + masked), "d")

    mapped = jax.shard_map(body, mesh=MESH, in_specs=ALONG, out_specs=ALONG)
    return lambda x: jnp.sum(mapped(x))


def begins_at_inf(w):
    """A sum of probabilities from none at all, whose own result is -Inf besides."""
    step = lambda a, x: (jnp.logaddexp(a, a[::-1]) + x, None)  # noqa: E731
    return jnp.sum(jax.lax.scan(step, jnp.full(3, -jnp.inf), w, reverse=True)[0])


ROWS = jnp.array([[0.0, 0.0, 0.0], [1.0, 0.5, 0.1], [0.2, 0.1, 0.0]])
MASK = jnp.array([[True, False, True], [False, False, False]])
TRAPS = {
    "0 ∞ in a branch not taken": (masked, (jnp.array([4.0, 0.0, 1.0]),)),
    "a root of -1, masked": (masked, (jnp.array([4.0, -1.0, 1.0]),)),
    "a norm of zeros in a scan": (padded, (W, ROWS)),
    "log of a softmax": (classifier, (W, X)),
    "a row of -Inf": (attention, (jnp.ones((2, 3)), MASK)),
    "arccos beyond 1": (angle, (X,)),
    "exp of exp": (exploding, (W, X)),
    "in a branch": (in_branch, (X,)),
    "given": (lambda x: jnp.sum(x**2), (jnp.array([1.0, jnp.nan]),)),
    "given, beside the parameters": (lambda w, x: jnp.sum(w @ x), (W, X.at[1].set(jnp.nan))),
    "in a rule of one's own": (lambda x: jnp.sum(jax.jit(size)(x - X)), (X,)),
    "in a backward rule of one's own": (lengths, (X,)),
    "on a device, forward": (on_devices(False), (0 * X,)),
    "on a device, backward": (on_devices(True), (X - X[0],)),
    "with a repair of the line of its caller": (lambda x: jnp.sum(jnp.linalg.norm(x - X)), (X,)),
    "NaN of Inf, and Inf besides": (begins_at_inf, (W[:2],)),
    "in nested scans, computed again": (in_nested_scans, (W, X)),
}


@pytest.mark.parametrize("name", TRAPS)
def test_the_origin_is_the_inspectors(name):
    f, args = TRAPS[name]
    expected = inspect(f)(*args).origin()
    assert expected is not None
    assert told(locate(f)(*args)) == told(expected)


def test_the_step_of_each_scan_and_the_operands_numbers_are_told():
    found = locate(in_nested_scans)(W, X)
    assert (found.operation, found.scan_steps, found.direction) == ("sqrt", (1, 2), "backward")
    assert found.line.text.startswith("distance = jnp.sqrt(")
    assert found.operand == 0
    assert float(found.operands[0]) == 0
    assert np.isinf(found.local_gradient)


def test_in_a_backward_rule_it_is_the_rules_own_line():
    found = locate(lengths)(X)
    assert (found.operation, found.direction, found.scan_steps) == ("div", "backward", (1,))
    assert found.line.text.startswith("return (ct * masked / size,)")
    assert "value           nan" in str(found)


@pytest.mark.parametrize(
    ("masked", "direction", "line"),
    [(False, "forward", "return size + "), (True, "backward", "size = jnp.sqrt(")],
)
def test_on_a_device_it_is_the_bodys_own_line(masked, direction, line):
    found = locate(on_devices(masked))((X - X[0]) * masked)
    assert (found.operation, found.direction) == ("div", direction)
    assert found.line.text.startswith(line)


SOUND = {
    "repaired": (repaired, (jnp.array([4.0, 0.0, 1.0]),)),
    "masks of -Inf": (attention, (jnp.ones((2, 3)), MASK.at[1, 0].set(True))),
    "a mask by a logarithm": (
        lambda x, m: jax.nn.logsumexp(x + jnp.log(m)),
        (X, jnp.array([1.0, 0.0, 1.0])),
    ),
}


@pytest.mark.parametrize("name", SOUND)
def test_nothing_is_told_where_value_and_gradients_are_finite(name):
    f, args = SOUND[name]
    assert locate(f)(*args) is None


def test_a_harmless_mask_is_not_taken_for_the_cause():
    """The first number that is not finite is the mask's; what spoils the result comes later."""

    def f(x, mask):
        p = jax.nn.softmax(x + jnp.log(mask))
        return jnp.sum(jnp.sqrt(p))  # at p = 0 its slope is infinite

    found = locate(f)(X, jnp.array([1.0, 0.0, 1.0]))
    assert (found.operation, found.direction) == ("sqrt", "backward")


def test_the_scopes_around_every_loop_are_told():
    def f(x):
        with jax.named_scope("encoder"):
            return jnp.sum(jax.lax.scan(lambda h, _: (jnp.log(h), None), x, None, length=4)[0])

    assert locate(f)(X).scope == "encoder"


def test_an_auxiliary_output_that_is_not_finite_is_no_fault():
    f = lambda x: (jnp.sum(x), jnp.log(x - x))  # noqa: E731
    assert locate(f, has_aux=True)(X) is None


def test_nothing_but_the_function_itself_is_compiled_where_all_is_well():
    with jax.log_compiles(False):
        traces = []

        def f(x):
            traces.append(x)
            return jnp.sum(jnp.sin(x))

        assert locate(f)(X) is None
        assert len(traces) == 1


def test_under_jit_it_is_refused():
    with pytest.raises(TypeError, match="outside of jit"):
        jax.jit(lambda x: locate(jnp.sum)(x) is None)(X)


def test_jaxs_own_alarms_do_not_go_off():
    with jax.debug_nans(True):
        assert locate(masked)(jnp.array([4.0, 0.0, 1.0])).operation == "sqrt"


# --- planted faults: python tests/campaigns.py locate --count 200 is the whole campaign ---


@pytest.mark.parametrize("seed", range(3))
def test_a_planted_fault_is_named_and_nothing_of_a_sound_program(seed):
    assert not trial(seed)
