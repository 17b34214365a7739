"""What a compiler makes of an operation, by the operation's name.

`VIEWS` and `STRETCHED` values are no arrays of their own; elementwise ones (`CHEAP` and
`TRANSCENDENTAL`) and those that are `MOVED` are one loop with what reads them, if that can be. What
is cheap, the compiler would rather compute again in each reader than keep.
"""


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


VIEWS = _names(
    """reshape squeeze expand_dims transpose optimization_barrier copy copy_p sharding_constraint
    device_put split reduce_precision"""
)
STRETCHED = _names("broadcast_in_dim iota broadcast")
TRANSCENDENTAL = _names(
    """exp exp2 expm1 log log1p tanh logistic erf erfc erf_inv sin cos tan asin acos atan atan2 sinh
    cosh asinh acosh atanh pow cbrt lgamma digamma rsqrt sqrt div rem"""
)
CHEAP = _names(
    """add add_any sub mul neg abs max min square integer_pow select_n clamp sign floor ceil round
    convert_element_type bitcast_convert_type is_finite eq ne lt le gt ge eq_to lt_to le_to and or
    not xor shift_left shift_right_logical shift_right_arithmetic nextafter real imag complex conj
    stop_gradient population_count clz"""
)
MOVED = _names("slice dynamic_slice pad concatenate rev gather tile")
REDUCTIONS = _names(
    "reduce_sum reduce_max reduce_min reduce_prod reduce_and reduce_or argmax argmin"
)
SORTING = _names("sort random_bits threefry2x32 cumsum cumprod cummax scatter scatter-add")
RANDOM = _names(
    "random_bits threefry2x32 random_wrap random_unwrap random_seed random_fold_in random_split"
)
COLLECTIVE = _names(
    """psum psum_invariant pmax pmin ppermute all_gather all_gather_invariant all_to_all
    reduce_scatter psum_scatter pbroadcast pgather unreduced_psum unreduced_reduce_scatter"""
)
ON_A_MESH = _names("pvary pcast axis_index")
LOOP = CHEAP | TRANSCENDENTAL | STRETCHED | VIEWS | MOVED
FUSING = LOOP | REDUCTIONS  # these read what is virtual
# Made of arguments alone, these run early unless they are told when.
SHALLOW = LOOP | RANDOM | {"scatter", "scatter-add"}
