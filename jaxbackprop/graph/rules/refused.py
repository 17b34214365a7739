"""What is refused, and why: no gradient is given rather than a guessed one."""

MUTABLE = (
    "a mutable array from outside of the function has no gradient: write lax.stop_gradient of what "
    "it is to hold, or make it inside by jax.new_ref"
)
INTO_RULES = "a mutable array is given to a function with a rule of its own: give it the value"
OUTSIDE = "what runs outside of JAX cannot be looked into: give it a rule by jax.custom_vjp"
PARTIAL = "an array that is partly reduced across devices has no rule: reduce it by lax.psum"
ACROSS_HOSTS = "it joins or parts the arrays of several hosts: do that outside of the function"

REFUSED = (
    dict.fromkeys(
        [
            "accum_grad_in_ref",
            "addupdate",
            "box_get",
            "box_set",
            "empty_ref",
            "free_ref",
            "freeze",
            "get",
            "get_global",
            "log_extend",
            "log_read",
            "masked_load",
            "masked_swap",
            "new_box",
            "new_log",
            "new_ref",
            "run_state",
            "swap",
        ],
        MUTABLE,
    )
    | dict.fromkeys(
        [
            "ffi_call",
            "io_callback",
            "mpmd_map",
            "pallas_call",
            "pure_callback",
        ],
        OUTSIDE,
    )
    | dict.fromkeys(
        [
            "all_gather_reduced",
            "unreduced_reduce_scatter",
        ],
        PARTIAL,
    )
    | {
        "dce_sink": "it only keeps a value alive",
        "from_edtype": "an array of an extended dtype has no gradient",
        "to_edtype": "an array of an extended dtype has no gradient",
        "with_memory_space_constraint": "a memory space cannot be asked for on the way back",
        "host_local_array_to_global_array": ACROSS_HOSTS,
        "global_array_to_host_local_array": ACROSS_HOSTS,
        "ragged_all_to_all": "ragged exchange has no rule: use lax.all_to_all",
        "remat_opt": "it is what optimize_remat makes of a custom_vjp: leave that out",
    }
)


def refusal(name: str, reason: str | None = None) -> str:
    """What is said of a primitive without a rule."""
    reason = reason or REFUSED.get(name)
    return f"no rule for the primitive '{name}'" + (f": {reason}" if reason else "")
