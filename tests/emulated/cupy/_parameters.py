"""What CuPy's functions of arrays take, which is often less than NumPy's: the names of their parameters, in order.

tests/gpu/test_emulation.py compares them with the real ones. Functions that take any number of arrays have none here.
"""

PARAMETERS = {
    "all": "a axis out keepdims",
    "allclose": "a b rtol atol equal_nan",
    "any": "a axis out keepdims",
    "argwhere": "a",
    "array_equal": "a1 a2 equal_nan",
    "array_split": "ary indices_or_sections axis",
    "bincount": "x weights minlength",
    "broadcast_to": "array shape",
    "clip": "a a_min a_max out",
    "concatenate": "tup axis out dtype casting",
    "count_nonzero": "a axis",
    "cumprod": "a axis dtype out",
    "cumsum": "a axis dtype out",
    "diff": "a n axis prepend append",
    "dot": "a b out",
    "expand_dims": "a axis",
    "flatnonzero": "a",
    "flip": "a axis",
    "hstack": "tup dtype casting",
    "inner": "a b",
    "isclose": "a b rtol atol equal_nan",
    "max": "a axis out keepdims",
    "mean": "a axis dtype out keepdims",
    "min": "a axis out keepdims",
    "moveaxis": "a source destination",
    "nanmax": "a axis out keepdims",
    "nansum": "a axis dtype out keepdims",
    "ones_like": "a dtype order subok shape",
    "outer": "a b out",
    "prod": "a axis dtype out keepdims",
    "ravel": "a order",
    "repeat": "a repeats axis",
    "reshape": "a newshape order copy",
    "roll": "a shift axis",
    "round": "a decimals out",
    "searchsorted": "a v side sorter",
    "sort": "a axis kind",
    "split": "ary indices_or_sections axis",
    "squeeze": "a axis",
    "stack": "tup axis out dtype casting",
    "std": "a axis dtype out ddof keepdims",
    "sum": "a axis dtype out keepdims",
    "swapaxes": "a axis1 axis2",
    "tensordot": "a b axes",
    "tile": "A reps",
    "trace": "a offset axis1 axis2 dtype out",
    "transpose": "a axes",
    "tril": "m k",
    "triu": "m k",
    "unique": "ar return_index return_inverse return_counts axis equal_nan",
    "var": "a axis dtype out ddof keepdims",
    "vdot": "a b",
    "vstack": "tup dtype casting",
    "where": "condition x y",
    "zeros_like": "a dtype order subok shape",
}


def check(name: str, count: int, keywords: dict[str, object]) -> None:
    """Raise if CuPy's function of this name does not take so many arguments by place, or these keywords."""
    if name not in PARAMETERS:
        return
    names = PARAMETERS[name].split()
    unknown = set(keywords) - set(names[count:])
    if count > len(names) or unknown:
        raise TypeError(f"cupy.{name}() takes {names}, not {count} arguments and {sorted(unknown)}")
