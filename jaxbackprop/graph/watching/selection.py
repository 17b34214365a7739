"""Which of a function's values are watched: `of=`."""

import warnings
from collections.abc import Callable, Sequence

from jaxbackprop.graph.lines import stack
from jaxbackprop.graph.names import NothingMatches, scope, within
from jaxbackprop.graph.watching.labels import Label, label
from jaxbackprop.graph.watching.sites import PRODUCTS, Site

Of = str | Callable[[Label], bool]

MANY = 300  # statistics that take longer to compile than most steps do


def choose(
    of: Of, parameters: Sequence[Label], sites: Sequence[Site]
) -> tuple[list[int], list[Site]]:
    """The numbers of the chosen parameters, and the chosen sites.

    Raises `NothingMatches`, a ValueError, where nothing is chosen, with the nearest that there are.
    """
    whole = list(range(len(parameters)))
    if callable(of):
        numbers = [i for i in whole if of(parameters[i])]
        found = [site for site in sites if of(label(site))]
    elif of == "parameters":
        numbers, found = whole, []
    elif of == "products":
        numbers, found = [], [s for s in sites if s.equation.primitive.name in PRODUCTS]
    elif of == "scopes":
        numbers, found = [], ends_of_scopes(sites)
    elif of == "everything":
        numbers, found = whole, list(sites)
        _say_cost(found)
    elif not isinstance(of, str):
        raise TypeError(
            f"of is {of!r}, expected a name or a function of a Label; the arguments to "
            f"differentiate by are named: watch(f, argnums={of!r})"
        )
    else:
        numbers, found = by_name(of, parameters, sites)
    if not (numbers or found):
        raise _nothing(of, parameters, sites)
    return numbers, found


def by_name(
    name: str, parameters: Sequence[Label], sites: Sequence[Site]
) -> tuple[list[int], list[Site]]:
    """A line ("model.py:12"), a file; a scope, a checkpoint_name, a parameter, or parts of their
    paths that stand in a row."""
    numbers = [i for i, own in enumerate(parameters) if within(name, [own.scope])]
    on_line = [s for s in sites if any(name in own for own in lines_of(s))]
    scoped = [s for s in ends_of_scopes(sites) if within(name, [scope_of(s)])]
    return numbers, on_line or scoped


def scope_of(site: Site) -> str:
    return scope([around.equation for around in site.place])


def lines_of(site: Site) -> set[str]:
    """model.py:12, and model.py alone, of every line of the user's that the equation is under."""
    lines = stack([around.equation for around in site.place])
    users = [line for line in lines if line.is_users]
    return {str(line) for line in users} | {str(line).partition(":")[0] for line in users}


def ends_of_scopes(sites: Sequence[Site]) -> list[Site]:
    """Of each passage through a named scope the last value that has a gradient, or the last one."""
    open_: dict[str, Site] = {}
    ends: dict[tuple, Site] = {}
    for site in sites:
        parts = scope_of(site).split("/")
        prefixes = {"/".join(parts[: n + 1]) for n in range(len(parts))} - {""}
        for left in [name for name in open_ if name not in prefixes]:
            last = open_.pop(left)
            ends[last.key] = last
        for name in prefixes:
            before = open_.get(name)
            same = before is not None and before.equation is site.equation
            if before is None or (not same and site.active >= before.active):
                open_[name] = site
    ends |= {last.key: last for last in open_.values()}
    return [site for site in sites if site.key in ends]


def _say_cost(found: Sequence[Site]) -> None:
    if len(found) >= MANY:
        products = sum(s.equation.primitive.name in PRODUCTS for s in found)
        warnings.warn(
            f"everything is {len(found)} values and as many gradients: each adds two reductions, "
            "so that it compiles several times as long and a step takes about 1.3 times; "
            f'of="products" would be {products}',
            stacklevel=5,
        )


def _nothing(of: Of, parameters: Sequence[Label], sites: Sequence[Site]) -> ValueError:
    if callable(of):
        return ValueError(
            f"of={of} is true of none of {len(sites)} values and {len(parameters)} parameters"
        )
    if of == "products":
        kinds = sorted({site.equation.primitive.name for site in sites})
        return ValueError(
            f'of="products": there are none, the operations are {", ".join(kinds) or "none"}; '
            'of="everything" watches all of them'
        )
    if of == "scopes":
        return ValueError(
            'of="scopes": no operation is in a named scope; flax linen names its modules itself, '
            "other code with jax.named_scope"
        )
    names = {own.scope for own in parameters} | {scope_of(site) for site in sites} - {""}
    names |= {line for site in sites for line in lines_of(site)}
    return NothingMatches("line, scope, name or parameter", of, sorted(names))
