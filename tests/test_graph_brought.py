"""Operations that bring their own rule: of other libraries, and of jax's higher-order kind."""

import jax
import jax.extend.core as jex
import jax.numpy as jnp
import pytest
from jax import lax
from jax.experimental import hijax, sparse
from jax.interpreters import ad, batching, mlir

from jaxbackprop.graph import UnsupportedPrimitive, grad

X = jnp.arange(1, 4) / 4
HigherOrder = getattr(hijax, "HiPrim", None) or hijax.VJPHiPrimitive


def primitive(name, function):
    made = jex.Primitive(name)
    made.def_impl(function)
    made.def_abstract_eval(lambda x, *others: x)
    mlir.register_lowering(made, mlir.lower_fun(function, multiple_results=False))
    return made


def times_square(rules):
    """x y², under a name of jax's."""
    made = primitive("mul", lambda x, y: x * y * y)
    ad.defjvp(made, *rules)
    return made


BY_X, BY_Y = lambda t, x, y: t * y * y, lambda t, x, y: 2 * t * x * y
NAMED_AS_JAXS = times_square((BY_X, BY_Y))
THRICE = primitive("thrice", lambda x: 3 * x)
ad.deflinear2(THRICE, lambda ct, x: [THRICE.bind(ct)])
batching.defvectorized(THRICE)
UNKNOWN = primitive("unknown", lambda x: 3 * x)


class Sine(HigherOrder):
    """Its rule is twice as steep as the sine, so that one sees that it is asked."""

    def __init__(self, aval):
        self.in_avals, self.out_aval, self.params = (aval,), aval, {}
        super().__init__()

    def expand(self, x):
        return jnp.sin(x)

    def vjp_fwd(self, nonzero, x):
        return self(x), x

    def vjp_bwd_retval(self, x, ct):
        return (2 * ct * jnp.cos(x),)


def root(x):
    """y³ + y = x."""

    def solve(f, y):
        return lax.fori_loop(0, 20, lambda i, y: y - f(y) / (3 * y * y + 1), y)

    y = lax.custom_root(
        lambda y: y**3 + y - x, jnp.zeros(3), solve, lambda g, b: b / g(jnp.ones_like(b))
    )
    return jnp.sum(y**2)


FUNCTIONS = {
    "a name of jax's": lambda x: NAMED_AS_JAXS.bind(x, jnp.sin(x)).sum(),
    "linear": lambda x: (THRICE.bind(x) * x).sum(),
    "in a scan": lambda x: lax.scan(
        lambda c, _: (THRICE.bind(jnp.sin(c)), None), x, None, length=3
    )[0].sum(),
    "in a checkpoint": lambda x: jax.checkpoint(lambda x: THRICE.bind(x) ** 2)(x).sum(),
    "under vmap": lambda x: jax.vmap(lambda v: THRICE.bind(v) * v)(x).sum(),
    "higher order": lambda x: Sine(jax.typeof(x))(x).sum() * x[0],
    "frexp and ldexp": lambda x: jnp.sum(jnp.frexp(x)[0] * x + jnp.ldexp(x, 3)),
    "custom_root": root,
    "searchsorted": lambda x: jnp.searchsorted(jnp.sort(x), 0.4) * x.sum(),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_an_operation_with_a_rule_of_its_own_has_jaxs_gradient_in_any_nesting(name):
    f = FUNCTIONS[name]

    def slope(gradient):
        return lambda x: jnp.vdot(gradient(f)(x), jnp.cos(x))

    expected = jax.jit(jax.grad(f))(X), jax.jit(jax.grad(slope(jax.grad)))(X)
    for once in (grad(f), jax.jit(grad(f))):
        assert jnp.allclose(once(X), expected[0], rtol=1e-5)
    for outer, inner in ((grad, grad), (jax.grad, grad), (grad, jax.grad)):
        assert jnp.allclose(jax.jit(outer(slope(inner)))(X), expected[1], rtol=1e-4)


def test_a_wrong_rule_of_a_library_is_seen_in_the_gradient():
    wrong = times_square((BY_X, lambda t, x, y: t * x * y))
    found = grad(lambda x: wrong.bind(x, jnp.sin(x)).sum())(X)
    assert not jnp.allclose(found, jax.grad(FUNCTIONS["a name of jax's"])(X), rtol=1e-2)


def test_a_primitive_without_a_rule_is_refused_by_name():
    with pytest.raises(UnsupportedPrimitive, match="'unknown'"):
        grad(lambda x: UNKNOWN.bind(x).sum())(X)


PLACES = jnp.array([[0, 1], [1, 2], [2, 2], [3, 0]])
DENSE = jnp.arange(16.0).reshape(4, 4) / 10
NUMBERS = jnp.array([0.3, -0.7, 1.1, 0.5])


def entries(numbers):
    return sparse.BCOO((numbers, PLACES), shape=(4, 4))


SPARSE = {
    "by its numbers": lambda x: jnp.sum((entries(x) @ DENSE) ** 2),
    "by the dense one": lambda x: jnp.sum(jnp.sin(entries(NUMBERS) @ (DENSE * x))),
    "from the right": lambda x: jnp.sum((DENSE @ entries(x)) ** 2),
    "transposed": lambda x: jnp.sum(jnp.sin(entries(x).T @ x)),
    "from a dense one": lambda x: jnp.sum((sparse.BCOO.fromdense(DENSE * x, nse=16) @ x) ** 2),
    "made dense": lambda x: jnp.sum(entries(x).todense() ** 3 * DENSE),
    "by rows": lambda x: jnp.sum(sparse.BCSR.from_bcoo(entries(x).sort_indices()) @ DENSE),
    "a function made sparse": lambda x: jnp.sum(
        sparse.sparsify(lambda a, x: jnp.sin(a @ x))(entries(x), x) ** 2
    ),
    "in a scan": lambda x: jnp.sum(
        lax.scan(lambda c, _: (jnp.tanh(entries(x) @ c), None), x, length=3)[0]
    ),
}


@pytest.mark.parametrize("name", SPARSE)
def test_sparse_arrays_bring_their_rules(name):
    f = SPARSE[name]

    def slope(gradient):
        return lambda x: jnp.vdot(gradient(f)(x), jnp.cos(x))

    right, second = jax.grad(f)(NUMBERS), jax.grad(slope(jax.grad))(NUMBERS)
    assert jnp.allclose(grad(f)(NUMBERS), right, rtol=1e-5, atol=1e-6)
    rows = jax.jit(jax.vmap(grad(f)))(jnp.stack([NUMBERS, NUMBERS]))
    assert jnp.allclose(rows, right, rtol=1e-5, atol=1e-6)
    assert jnp.allclose(grad(slope(grad))(NUMBERS), second, rtol=1e-5, atol=1e-5)
