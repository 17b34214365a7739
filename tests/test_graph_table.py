"""Every primitive that jax itself knows how to differentiate has its place here."""

import fnmatch

import jax.experimental.pallas
import jax.experimental.sparse  # fills jax's tables with the primitives of its experiments
import jax.numpy as jnp
import pytest
from jax.interpreters import ad

from jaxbackprop import grad
from jaxbackprop.graph import UnsupportedPrimitive
from jaxbackprop.graph.rules import FLAT, RULES
from jaxbackprop.graph.walk import STRUCTURE

# Primitives without an output that could have a gradient: the walk does them and passes by.
EFFECTS = {"check", "debug_callback", "debug_print", "inspect_sharding", "dce_sink"}

REFUSED = {
    "a mutable array is written in place, and the walk's values are final": [
        *("get", "swap", "addupdate", "new_ref", "empty_ref", "free_ref", "freeze", "get_global"),
        *("accum_grad_in_ref", "masked_load", "masked_swap", "run_state", "array_ref"),
    ],
    "boxes and logs of jax's experimental higher-order types": [
        *("box_get", "box_set", "new_box", "log_extend", "log_read", "new_log"),
        "call_hi_primitive",
    ],
    "a kernel, or code of another language, whose derivative is a custom_vjp's": [
        *("pallas_call", "mpmd_map", "ffi_call", "pure_callback", "io_callback"),
    ],
    "jax.experimental.sparse": [
        *("bcoo_*", "bcsr_*", "coo_*", "csr_*", "todense", "spsolve"),
    ],
    "parts of sums between devices that are not made yet, in jax's experiments": [
        *("all_gather_reduced", "unreduced_reduce_scatter", "ragged_all_to_all"),
    ],
    "a dtype of its own, whose derivative only its rules know": ["to_edtype", "from_edtype"],
    "made by jax's own transformations, never by a user's function": ["remat_opt", "custom_lin"],
    "in kernels only": ["with_memory_space_constraint"],
}


def known():
    names = {p.name for table in (ad.primitive_jvps, ad.primitive_transposes) for p in table}
    ours = {"array_of_its_own", "one_at_a_time"}  # this project's own, told to jax as well
    return names - ours


def test_every_primitive_that_jax_differentiates_is_classified():
    classified = RULES.keys() | STRUCTURE.keys() | FLAT | EFFECTS
    patterns = [name for names in REFUSED.values() for name in names]
    missing = [
        name
        for name in sorted(known() - classified)
        if not any(fnmatch.fnmatch(name, pattern) for pattern in patterns)
    ]
    assert missing == [], "new in jax: give it a rule, a recorder, or a reason in REFUSED"


def test_what_is_refused_has_no_rule():
    assert not [name for names in REFUSED.values() for name in names if name in RULES]


def test_a_primitive_of_an_experiment_is_refused_by_name():
    def f(x):
        return jnp.sum(jax.experimental.sparse.BCOO.fromdense(x, nse=4).todense())

    with pytest.raises(UnsupportedPrimitive, match="'bcoo_"):
        grad(f)(jnp.eye(2))
