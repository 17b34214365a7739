"""How the suite compiles, and how users do.

Most of the suite's time is XLA's making of machine code. What a program computes, and how many
bytes it needs, is decided before that, so the code may be plain. What is not decided before is the
last bit of a number that XLA computes in two loops: a test of that compiles as users do.

(Newer jaxlibs do not know these flags: there the suite compiles as users do; so it does where
XLA_FLAGS is set, also to nothing.)
"""

import importlib.metadata

import jax

KNOWN = importlib.metadata.version("jaxlib").startswith("0.10.")
PLAIN = {
    "xla_backend_optimization_level": 0,
    "xla_llvm_disable_expensive_passes": True,
    "xla_cpu_use_fusion_emitters": False,
    "xla_cpu_parallel_codegen_split_count": 1,
}
USERS = (
    {
        "xla_backend_optimization_level": 3,
        "xla_llvm_disable_expensive_passes": False,
        "xla_cpu_use_fusion_emitters": True,
        "xla_cpu_parallel_codegen_split_count": 32,
    }
    if KNOWN
    else {}
)
QUICK = {"xla_backend_optimization_level": 0}  # what runs once: the compiler need not try hard


def plain_flags() -> str:
    return " ".join(f"--{name}={str(value).lower()}" for name, value in PLAIN.items())


def as_users_do(f, *args):
    """The value of f, compiled as without any flags."""
    return jax.jit(f).lower(*args).compile(USERS)(*args)
