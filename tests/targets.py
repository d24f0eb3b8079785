"""Calls kernels that write gradients by parameters to targets as if they returned these last."""

import numpy as np

from lucid.backend import array_module
from lucid.kernels.targets import Target

# The number of targets at the end of a kernel's arguments.
TARGETS = {
    "linear_bias_gradient": 1,
    "activation_gradient": 1,
    "layer_norm_gradient": 2,
    "dropout_add_layer_norm_gradient": 3,
}


def call(kernels, name, *arguments, **settings):
    """Return a kernel's results and the gradients in its targets as a tuple."""
    targets = new_targets(name, arguments)
    results = getattr(kernels, name)(*arguments, *targets, **settings)
    results = () if results is None else results if isinstance(results, tuple) else (results,)
    return *results, *(target.out for target in targets)


def new_targets(name, arguments, value=np.nan, accumulate=False):
    """Return targets, filled with a number, for a kernel with these arguments."""
    if name not in TARGETS:
        return []
    (width, dtype), xp = (arguments[0].shape[-1], arguments[0].dtype), array_module(arguments[0])
    dtype = np.promote_types(dtype, np.float32)
    return [Target(xp.full(width, value, dtype), accumulate) for _ in range(TARGETS[name])]


def assert_targets_are_heeded(kernels, name, *arguments, to_host=np.asarray):
    """Assert that a kernel adds to targets if asked, and omits gradients that are not wanted."""
    alone = call(kernels, name, *arguments)
    added = new_targets(name, arguments, 3.0, accumulate=True)
    getattr(kernels, name)(*arguments, *added)
    for target, gradient in zip(added, alone[-len(added) :], strict=True):
        np.testing.assert_array_equal(to_host(target.out), to_host(gradient) + np.float32(3))
    if name == "linear_bias_gradient":
        return
    for wanted in range(len(added)):
        some = [target if number == wanted else None for number, target in enumerate(new_targets(name, arguments))]
        getattr(kernels, name)(*arguments, *some)
        np.testing.assert_array_equal(to_host(some[wanted].out), to_host(alone[wanted - len(added)]))
    getattr(kernels, name)(*arguments, *[None] * len(added))
