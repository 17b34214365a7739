"""The benchmark compares equal work: all peers have one gradient and make one step."""

import pathlib
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent / "scripts"))
import benchmark
import graph_benchmark
import peers

import jaxbackprop
from jaxbackprop import loss

WORKS = [
    peers.Work("wide", (7, 9, 8, 5), "relu", 16, 1),
    peers.Work("deep", (6,) * 20, "tanh", 4, 1),
]
# torch.compile takes half a minute; the benchmark itself checks it before it measures.
OTHERS = [name for name in peers.PEERS if name not in ("jaxbackprop", "torch.compile")]


def close(found, reference):
    """To a few roundings of the largest number of each array."""
    for ours, theirs in zip(reference, found, strict=True):
        for a, b in zip(ours, theirs, strict=True):
            assert a.shape == b.shape
            np.testing.assert_allclose(b, a, rtol=1e-4, atol=1e-5 * np.abs(a).max())


@pytest.mark.parametrize("work", WORKS, ids=lambda work: work.name)
@pytest.mark.parametrize("name", OTHERS)
def test_every_peer_computes_the_same_gradient(name, work):
    package, gradient, _ = peers.PEERS[name]
    pytest.importorskip(package)
    given = peers.material(work, work.batch)
    run, own = gradient(work, *given), peers.PEERS["jaxbackprop"][1](work, *given)
    close(run.read(run.call()), own.read(own.call()))


@pytest.mark.parametrize("rule", ["sgd", "adam"])
@pytest.mark.parametrize("name", OTHERS)
def test_every_peer_makes_the_same_step(name, rule):
    package, _, epoch = peers.PEERS[name]
    pytest.importorskip(package)
    work, given = WORKS[0], peers.material(WORKS[0], WORKS[0].batch)
    run, own = epoch(work, *given, rule), peers.PEERS["jaxbackprop"][2](work, *given, rule)
    if run is None:
        pytest.skip(f"{name} has no {rule}")
    after, expected = run.read(run.call()), own.read(own.call())
    close(after, expected)
    assert not np.array_equal(after[0][0], given[0][0][0])


def test_different_work_is_refused():
    weights = [(np.ones((3, 2)), np.zeros((3, 1)))]
    wrong = [(np.ones((3, 2)) / 2, np.zeros((3, 1)))]
    benchmark.agree({"jaxbackprop": weights, "a": weights})
    with pytest.raises(SystemExit, match="a has another gradient than jaxbackprop in layer 1"):
        benchmark.agree({"jaxbackprop": weights, "a": wrong})


def test_flops_are_those_that_the_compiler_counts_in_the_products():
    work = WORKS[0]
    weights, X, Y = peers.material(work, work.batch)
    args = (peers.as_params(weights), X.T, Y.T)
    f = lambda *args: jax.value_and_grad(loss, argnums=1)(work.network, *args)  # noqa: E731
    text = str(jax.make_jaxpr(f)(*args))
    assert text.count("dot_general") == 3 * (len(work.sizes) - 1) - 1
    assert work.flops == 2 * 16 * (2 * 7 * 9 + 3 * 9 * 8 + 3 * 8 * 5)


def compiled(gradient):
    return graph_benchmark.instructions(jax.jit(gradient).lower(np.ones(3)).compile().as_text())


def test_two_programs_are_the_same_when_their_instructions_are():
    one, two, other = (lambda x: x * jnp.sin(x)), (lambda y: y * jnp.sin(y)), jnp.sin
    assert compiled(one) == compiled(two) != compiled(other)


def test_the_walk_of_the_mlp_is_compiled_to_the_program_of_jax_grad():
    params, loss = graph_benchmark.mlp(graph_benchmark.nnx.Rngs(0))
    ours, theirs = (
        graph_benchmark.instructions(jax.jit(grad(loss)).lower(params).compile().as_text())
        for grad in (jaxbackprop.grad, jax.grad)
    )
    assert ours == theirs
