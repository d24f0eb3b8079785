"""CUDA kernels add the gradients of parameters to their targets."""

import ml_dtypes
import numpy as np
import pytest
from kernel_arguments import arguments_of_gradients, normal
from targets import TARGETS, assert_targets_are_heeded

from lucid.kernels.targets import Target


@pytest.mark.parametrize("shape", [(0, 3), (1, 1), (65, 7), (4, 50, 33), (1100, 264)])
def test_bias_gradients_agree(machine, element, shape):
    machine.assert_agrees(
        "linear_bias_gradient", normal(*shape, dtype=element), spacings={"float32": 16, "bfloat16": 1e-3}
    )


class TestTargets:
    @pytest.mark.parametrize("name", TARGETS)
    def test_gradients_by_parameters_are_added_or_left_out_as_asked(self, machine, element, name):
        arguments = map(machine.put, arguments_of_gradients(40, element)[name])
        assert_targets_are_heeded(machine.kernels, name, *arguments, to_host=machine.get)

    @pytest.mark.parametrize("accumulate", [False, True])
    def test_targets_may_have_another_dtype_or_strides(self, machine, accumulate):
        [expected] = machine.run("linear_bias_gradient", x := normal(70, 8))
        for dtype in (np.float32, ml_dtypes.bfloat16):
            room = machine.put(np.ones((8, 2), dtype))
            machine.kernels.linear_bias_gradient(machine.put(x), Target(room[:, 0], accumulate))
            got = machine.get(room).astype(np.float32)
            np.testing.assert_allclose(got[:, 0], expected + accumulate, rtol=2**-8, atol=2**-8)
            np.testing.assert_array_equal(got[:, 1], 1)
