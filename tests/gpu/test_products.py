"""Products by cuBLASLt agree with the reference, on a GPU and in the emulation, which refuses the same as the library.

Arrays are written in place, so that the tests see that elements next to a part of a wider array do not change.
"""

from collections import Counter

import ml_dtypes
import numpy as np
import pytest

from lucid.backend import array_module
from lucid.kernels import reference
from lucid.kernels.cuda import algorithms, cublaslt, plans
from lucid.kernels.targets import Target

RANDOM = np.random.default_rng()
# Rows, inputs and outputs: one of each, odd ones, whole accesses, and no rows.
SHAPES = [(1, 1, 1), (3, 5, 7), (16, 64, 32), (70, 33, 2), (2, 24, 1022), (0, 8, 4)]
# Errors relative to the largest number, in spacings of the dtype: float32 sums many numbers; bfloat16 is rounded once,
# and twice more if partial sums are.
TOLERANCES = {"float32": 32, "bfloat16": 1}


def normal(*shape, dtype=np.float32):
    return RANDOM.standard_normal(shape).astype(dtype)


def doubled(*arrays):
    return tuple(None if array is None else array.astype(np.float64) for array in arrays)


def assert_close(machine, name, got, expected, spacings=TOLERANCES, least=0.0):
    got = machine.get(got)
    assert got.shape == expected.shape
    machine.compare(name, got.dtype.name, got.astype(np.float64), expected, spacings[got.dtype.name], least)


@pytest.fixture
def made(monkeypatch):
    """The number of objects of each kind that the library has created."""
    counts, make = Counter(), cublaslt.Library.make

    def counted(self, name, *arguments):
        counts[name] += 1
        return make(self, name, *arguments)

    monkeypatch.setattr(cublaslt.Library, "make", counted)
    return counts


@pytest.fixture
def no_epilogues(monkeypatch):
    """A library without epilogues."""
    found = plans.PreparedProduct.algorithms

    def plain_alone(form, most):
        return found(form, most) if form.product.epilogue == cublaslt.Epilogue.DEFAULT else []

    monkeypatch.setattr(plans.PreparedProduct, "algorithms", plain_alone)


@pytest.mark.parametrize(("rows", "inputs", "outputs"), SHAPES)
class TestEveryShape:
    @pytest.mark.parametrize("bias_type", [None, np.float32, ml_dtypes.bfloat16])
    def test_forward(self, machine, element, rows, inputs, outputs, bias_type):
        x, weight = normal(rows, inputs, dtype=element), normal(outputs, inputs, dtype=element)
        bias = None if bias_type is None else normal(outputs, dtype=bias_type)
        y = machine.kernels.linear(*map(machine.put, (x, weight, bias)))
        assert y.dtype == element
        # A bias is rounded to the rows' dtype, and may be larger than its sum with a single product.
        least = 0.0 if bias is None else float(np.abs(bias).max())
        assert_close(machine, "linear", y, reference.linear(*doubled(x, weight, bias)), least=least)

    def test_gradient_by_the_input(self, machine, element, rows, inputs, outputs):
        gradient, weight = normal(rows, outputs, dtype=element), normal(outputs, inputs, dtype=element)
        total = normal(rows, inputs, dtype=element)
        on_device = tuple(map(machine.put, (gradient, weight)))
        expected = reference.linear_input_gradient(*doubled(gradient, weight))
        got = machine.kernels.linear_input_gradient(*on_device)
        assert got.dtype == element
        assert_close(machine, "linear_input_gradient", got, expected)
        in_place = machine.put(total)
        assert machine.kernels.linear_input_gradient(*on_device, in_place, in_place) is in_place
        assert_close(machine, "linear_input_gradient", in_place, expected + total.astype(np.float64))
        beside = machine.put(total)
        got = machine.kernels.linear_input_gradient(*on_device, beside)
        np.testing.assert_array_equal(machine.get(got), machine.get(in_place))
        np.testing.assert_array_equal(machine.get(beside), total)

    @pytest.mark.parametrize("accumulate", [False, True])
    @pytest.mark.parametrize("by_bias", [None, False, True], ids=["no bias", "bias written", "bias added"])
    def test_gradients_by_weight_and_bias(self, machine, element, rows, inputs, outputs, accumulate, by_bias):
        gradient, x = normal(rows, outputs, dtype=element), normal(rows, inputs, dtype=element)
        before, sums_before = normal(outputs, inputs), normal(outputs)
        out = machine.put(before if accumulate else before * np.nan)
        sums = machine.put(sums_before if by_bias else sums_before * np.nan)
        asked_for = None if by_bias is None else Target(sums, by_bias)
        on_device = map(machine.put, (gradient, x))
        machine.kernels.linear_weight_gradient(*on_device, Target(out, accumulate), asked_for)
        if by_bias is None:
            assert np.isnan(machine.get(sums)).all()
        else:
            expected = gradient.astype(np.float64).sum(axis=0) + (sums_before if by_bias else 0)
            assert_close(machine, "linear_weight_gradient", sums, expected)
        expected = np.zeros(before.shape)
        reference.linear_weight_gradient(*doubled(gradient, x), Target(expected, False))
        if accumulate:
            expected += before
        assert_close(machine, "linear_weight_gradient", out, expected)


def test_leading_dimensions_are_rows(machine, element):
    x, gradient, weight = (normal(*shape, dtype=element) for shape in ((2, 3, 8), (2, 3, 4), (4, 8)))
    y = machine.run("linear", x, weight, None)[0]
    np.testing.assert_array_equal(y, machine.run("linear", x.reshape(6, 8), weight, None)[0].reshape(2, 3, 4))
    assert machine.run("linear_input_gradient", gradient, weight)[0].shape == (2, 3, 8)
    out = machine.put(normal(4, 8))
    machine.kernels.linear_weight_gradient(machine.put(gradient), machine.put(x), Target(out, False))
    expected = np.einsum("abo,abi->oi", *doubled(gradient, x))
    assert_close(machine, "linear_weight_gradient", out, expected)


class TestPartsOfWiderArrays:
    """Some columns are read, written and added to without a copy, and nothing next to them changes."""

    def test_forward(self, machine, element):
        joined, x, weight, bias = (normal(*s, dtype=element) for s in ((5, 24), (5, 20), (8, 12), (8,)))
        whole = machine.put(joined)
        x_on_device, weight_on_device = machine.put(x), machine.put(weight)
        part = whole[:, 8:16]
        assert machine.kernels.linear(x_on_device[:, 4:16], weight_on_device, machine.put(bias), part) is part
        expected = joined.astype(np.float64)
        expected[:, 8:16] = reference.linear(*doubled(x[:, 4:16], weight, bias))
        assert_close(machine, "linear", whole, expected)
        np.testing.assert_array_equal(machine.get(whole)[:, 16:], joined[:, 16:])

    def test_gradient_by_the_input(self, machine, element):
        gradient, weight, total = (normal(*s, dtype=element) for s in ((5, 24), (8, 12), (5, 36)))
        whole = machine.put(total)
        part = whole[:, 12:24]
        machine.kernels.linear_input_gradient(machine.put(gradient)[:, 7:15], machine.put(weight), part, part)
        expected = total.astype(np.float64)
        expected[:, 12:24] += reference.linear_input_gradient(*doubled(gradient[:, 7:15], weight))
        assert_close(machine, "linear_input_gradient", whole, expected)
        np.testing.assert_array_equal(machine.get(whole)[:, :12], total[:, :12])

    def test_gradients_by_weight_and_bias(self, machine, element):
        gradient, x = normal(70, 24, dtype=element), normal(70, 12, dtype=element)
        flat, sums = machine.put(np.ones(200, np.float32)), machine.put(np.ones(24, np.float32))
        out = flat[64:160].reshape(8, 12)
        targets = Target(out, False), Target(sums[8:16], False)
        machine.kernels.linear_weight_gradient(machine.put(gradient)[:, 8:16], machine.put(x), *targets)
        gradient, x = doubled(gradient[:, 8:16], x)
        assert_close(machine, "linear_weight_gradient", out, gradient.T @ x)
        assert_close(machine, "linear_weight_gradient", sums[8:16], gradient.sum(axis=0))
        outside = np.concatenate([machine.get(flat)[:64], machine.get(flat)[160:], machine.get(sums)[np.r_[:8, 16:24]]])
        np.testing.assert_array_equal(outside, 1)

    def test_strided_columns_are_copied_before_the_product(self, machine, element):
        x, weight = normal(5, 24, dtype=element), normal(12, 8, dtype=element)
        y = machine.kernels.linear(machine.put(x)[:, ::2], machine.put(weight).T, None)
        assert_close(machine, "linear", y, reference.linear(*doubled(x[:, ::2], weight.T), None))

    def test_strided_outputs_are_refused(self, machine, element):
        x, weight, y = (machine.put(normal(*shape, dtype=element)) for shape in ((5, 6), (4, 6), (5, 8)))
        with pytest.raises(ValueError, match="need an output in row order"):
            machine.kernels.linear(x, weight, None, y[:, ::2])


@pytest.mark.parametrize("other", [np.float32, ml_dtypes.bfloat16])
def test_an_addend_may_have_any_layout_and_either_dtype(machine, element, other):
    gradient, weight, room = normal(5, 8, dtype=element), normal(8, 12, dtype=element), normal(13, 24, dtype=other)
    on_device, views = machine.put(room), [np.s_[:5, :12], np.s_[:5, 7:19], np.s_[:10:2, ::2], np.s_[3:4, :12]]
    for view in views:
        addend = array_module(on_device).broadcast_to(on_device[view], (5, 12))
        got = machine.kernels.linear_input_gradient(machine.put(gradient), machine.put(weight), addend)
        assert got.dtype == element
        expected = reference.linear_input_gradient(*doubled(gradient, weight, room[view]))
        assert_close(machine, "linear_input_gradient", got, expected)
    np.testing.assert_array_equal(machine.get(on_device), room)


class TestTypes:
    def test_float32_rows_by_bfloat16_weights_give_float32(self, machine):
        x, weight = normal(6, 16), normal(8, 16, dtype=ml_dtypes.bfloat16)
        y = machine.kernels.linear(*map(machine.put, (x, weight, None)))
        assert y.dtype == np.float32
        assert_close(machine, "linear", y, reference.linear(*doubled(x.astype(ml_dtypes.bfloat16), weight), None))

    def test_bfloat16_rows_may_be_multiplied_to_float32(self, machine):
        x, weight, bias = normal(6, 16, dtype=ml_dtypes.bfloat16), normal(8, 16, dtype=ml_dtypes.bfloat16), normal(8)
        y = machine.kernels.linear(*map(machine.put, (x, weight, bias)), machine.put(normal(6, 8)))
        assert_close(machine, "linear", y, reference.linear(*doubled(x, weight, bias)))

    def test_bfloat16_products_are_added_up_in_float32(self, machine):
        ones = np.ones((1, 4096), ml_dtypes.bfloat16)
        assert machine.run("linear", ones, ones, None)[0].item() == 4096

    def test_parts_of_sums_are_not_rounded_to_bfloat16(self, machine):
        """A partial sum of 257 would not be a bfloat16 number."""
        row, ones = np.array([[256, 1, 1, 0]], ml_dtypes.bfloat16), np.ones((1, 4), ml_dtypes.bfloat16)
        assert machine.run("linear", row, ones, None)[0].item() == 258

    def test_bias_sums_of_another_dtype_use_a_kernel_of_their_own(self, machine):
        gradient, x = normal(70, 8, dtype=ml_dtypes.bfloat16), normal(70, 4, dtype=ml_dtypes.bfloat16)
        out, sums = machine.put(normal(8, 4, dtype=ml_dtypes.bfloat16)), machine.put(normal(8))
        targets = Target(out, False), Target(sums, False)
        machine.kernels.linear_weight_gradient(machine.put(gradient), machine.put(x), *targets)
        assert_close(machine, "linear_weight_gradient", out, gradient.astype(float).T @ x.astype(float))
        assert_close(machine, "linear_weight_gradient", sums, gradient.astype(float).sum(axis=0))


@pytest.fixture
def arrays(machine, element):
    """Rows, a weight, a bias, a gradient by their product, and targets for the gradients by weight and bias."""
    shapes = (70, 16), (8, 16), (8,), (70, 8)
    on_device = [machine.put(normal(*shape, dtype=element)) for shape in shapes]
    return *on_device, machine.put(normal(8, 16)), machine.put(normal(8))


def run_all(machine, x, weight, bias, gradient, out, sums):
    """Return the three products, and the bias's gradient."""
    y, by_x = machine.kernels.linear(x, weight, bias), machine.kernels.linear_input_gradient(gradient, weight)
    machine.kernels.linear_weight_gradient(gradient, x, Target(out, False), Target(sums, False))
    return [machine.get(array).copy() for array in (y, by_x, out, sums)]


def test_a_library_without_the_epilogues_gives_the_same_numbers(machine, arrays, no_epilogues):
    x, weight, bias, gradient = doubled(*map(machine.get, arrays[:4]))
    expected = [x @ weight.T + bias, gradient @ weight, gradient.T @ x, gradient.sum(axis=0)]
    for got, one in zip(run_all(machine, *arrays), expected, strict=True):
        assert_close(machine, "linear", got, one, {"float32": 32, "bfloat16": 2})


@pytest.mark.emulated
@pytest.mark.parametrize("machine", ["emulated"], indirect=True)
@pytest.mark.parametrize("status", [cublaslt.NOT_SUPPORTED, 7])
def test_any_refusal_of_an_epilogue_leads_to_the_fallback(machine, monkeypatch, element, status):
    refused = dict.fromkeys((cublaslt.Epilogue.BIAS, cublaslt.Epilogue.BGRADB), status)
    monkeypatch.setattr(cublaslt.library().functions, "refused", refused)
    x, weight, bias = (normal(*shape, dtype=element) for shape in ((70, 16), (8, 16), (8,)))
    y = machine.kernels.linear(*map(machine.put, (x, weight, bias)))
    assert_close(machine, "linear", y, reference.linear(*doubled(x, weight, bias)), {"float32": 32, "bfloat16": 2})


def test_a_second_call_creates_no_objects(machine, arrays, made):
    first = run_all(machine, *arrays)
    found = made["cublasLtMatmulDescCreate"]
    # A card's library may have no epilogue: then a fallback does its work.
    assert found == 3 if machine.kind == "emulated" else 3 <= found <= 5
    made.clear()
    for one, other in zip(first, run_all(machine, *arrays), strict=True):
        np.testing.assert_array_equal(one, other)
    assert not made


def test_captured_products_follow_new_values_of_their_factors(machine, arrays):
    import cupy

    x, weight, bias, gradient, out, sums = arrays
    y, stream = machine.kernels.linear(x, weight, bias), cupy.cuda.Stream(non_blocking=True)
    stream.wait_event(cupy.cuda.get_current_stream().record())

    def work():
        machine.kernels.linear(x, weight, bias, y)
        machine.kernels.linear_weight_gradient(gradient, x, Target(out, True), Target(sums, False))

    with stream:
        work()
        stream.begin_capture()
        work()
        graph = stream.end_capture()
        x *= 2
        gradient *= 4
        out *= 0
        for _ in range(2):
            graph.launch(stream)
        stream.synchronize()
    x, weight, bias, gradient = doubled(*map(machine.get, arrays[:4]))
    assert_close(machine, "linear", y, x @ weight.T + bias)
    assert_close(machine, "linear_weight_gradient", out, 2 * gradient.T @ x)
    assert_close(machine, "linear_weight_gradient", sums, gradient.sum(axis=0))


def test_an_error_of_the_library_names_the_product(machine, monkeypatch):
    monkeypatch.setattr(cublaslt, "COMPUTE_32F", 9999)
    with pytest.raises(RuntimeError, match=r"(ended with status .*|no algorithm) for TN DEFAULT.*, 3 x 2 by 3 float32"):
        machine.run("linear", normal(2, 3), normal(4, 3), None)


def test_a_product_without_any_algorithm_is_an_error(machine, monkeypatch):
    monkeypatch.setattr(plans.PreparedProduct, "algorithms", lambda form, most: [])
    with pytest.raises(RuntimeError, match=r"no algorithm for TN BIAS.*, 3 x 2 by 3 float32"):
        machine.run("linear", normal(2, 3), normal(4, 3), normal(4))


def test_outside_training_the_library_chooses(machine, arrays, monkeypatch, choices):
    """Even if training has found another algorithm to be the fastest."""
    before = run_all(machine, *arrays)
    monkeypatch.setattr(algorithms, "fastest", lambda seconds: list(seconds)[-1])
    with plans.timed():
        timed = run_all(machine, *arrays)
    kept = [path.read_bytes() for path in choices.iterdir()]
    for one, other in zip(before, run_all(machine, *arrays), strict=True):
        np.testing.assert_array_equal(one, other)
    assert [path.read_bytes() for path in choices.iterdir()] == kept
    if machine.kind == "emulated":
        assert any((one != other).any() for one, other in zip(before, timed, strict=True))


class TestTimedAlgorithms:
    """In training the first use of a product times all candidates and stores the fastest."""

    @pytest.fixture(autouse=True)
    def timed(self):
        with plans.timed():
            yield

    @pytest.fixture
    def asked(self, monkeypatch):
        """The number of works timed for each product; a list of choices sets which is found to be the fastest."""
        counts, forced = [], []
        seconds_of = algorithms.seconds_of

        def timed(works):
            found = seconds_of(works)
            counts.append(len(found))
            if forced:
                found[forced[0]] = 0.0
            return found

        monkeypatch.setattr(algorithms, "seconds_of", timed)
        return counts, forced

    def test_each_product_is_timed_once(self, machine, arrays, asked):
        counts, _ = asked
        first = run_all(machine, *arrays)
        timed = len(counts)
        if machine.kind == "emulated":
            assert counts == [6, 3, 6]
        else:
            # A product with one candidate is not timed.
            assert 1 <= timed <= 3
        for one, other in zip(first, run_all(machine, *arrays), strict=True):
            np.testing.assert_array_equal(one, other)
        plans.plan_of.cache_clear()
        algorithms._known.clear()
        for one, other in zip(first, run_all(machine, *arrays), strict=True):
            np.testing.assert_array_equal(one, other)
        assert len(counts) == timed

    @pytest.mark.parametrize("place", [0, 1, -1])
    def test_every_choice_gives_the_same_numbers(self, machine, arrays, asked, place):
        asked[1].append(place)
        x, weight, bias, gradient = doubled(*map(machine.get, arrays[:4]))
        expected = [x @ weight.T + bias, gradient @ weight, gradient.T @ x, gradient.sum(axis=0)]
        for got, one in zip(run_all(machine, *arrays), expected, strict=True):
            assert_close(machine, "linear", got, one, {"float32": 32, "bfloat16": 2})

    def test_timing_does_not_change_the_addend(self, machine, arrays, asked):
        x, weight, _, gradient, out, sums = arrays
        counts, _ = asked
        before = machine.get(out).astype(np.float64)
        machine.kernels.linear_weight_gradient(gradient, x, Target(out, True), Target(sums, False))
        total = machine.put(machine.get(x))
        machine.kernels.linear_input_gradient(gradient, weight, total, total)
        assert counts == [6, 3] if machine.kind == "emulated" else counts
        x, weight, gradient = doubled(*map(machine.get, (x, weight, gradient)))
        assert_close(machine, "linear_weight_gradient", out, before + gradient.T @ x)
        assert_close(machine, "linear_weight_gradient", sums, gradient.sum(axis=0))
        assert_close(machine, "linear_input_gradient", total, x + gradient @ weight, {"float32": 32, "bfloat16": 1})

    def test_nothing_is_timed_or_stored_during_a_capture(self, machine, arrays, asked, choices):
        import cupy

        x, weight, *_ = arrays
        counts, stream = asked[0], cupy.cuda.Stream(non_blocking=True)
        cupy.cuda.Device().synchronize()
        with stream:
            plans.workspace_of(cupy, "cuda:0", stream.ptr)
            stream.begin_capture()
            y = machine.kernels.linear(x, weight, None)
            graph = stream.end_capture()
            graph.launch(stream)
            stream.synchronize()
            assert_close(machine, "linear", y, machine.get(x).astype(float) @ machine.get(weight).astype(float).T)
            assert not counts
            assert not list(choices.glob("*"))
            machine.kernels.linear(x, weight, None)
        assert len(counts) == 1

    def test_a_choice_that_the_library_does_not_offer_is_ignored(self, machine, arrays):
        x, weight, *_ = arrays
        expected = machine.get(x).astype(float) @ machine.get(weight).astype(float).T
        assert_close(machine, "linear", machine.kernels.linear(x, weight, None), expected)
        recorded = {card: dict.fromkeys(choices, 99) for card, choices in algorithms.used().items()}
        plans.give_choices(recorded, {})
        assert_close(machine, "linear", machine.kernels.linear(x, weight, None), expected)

    @pytest.fixture
    def no_room(self, monkeypatch):
        """The attempts to measure; all, or only the first, find no memory."""
        import cupy

        tried, seconds_of = [], algorithms.seconds_of
        always = [True]

        def full(works):
            tried.append(len(works))
            if always[0] or len(tried) % 2:
                raise cupy.cuda.memory.OutOfMemoryError(1, 1)
            return seconds_of(works)

        monkeypatch.setattr(algorithms, "seconds_of", full)
        return tried, always

    def test_without_memory_for_timing_the_first_candidate_is_used(self, machine, arrays, no_room, choices):
        tried, _ = no_room
        with_none = run_all(machine, *arrays)
        plans.plan_of.cache_clear()
        for one, other in zip(with_none, run_all(machine, *arrays), strict=True):
            np.testing.assert_array_equal(one, other)
        [found] = algorithms.used().values()
        assert set(found.values()) == {None}
        assert len(tried) == 2 * len(found)
        assert len(found) == 3 or machine.kind == "card"
        assert not list(choices.glob("*.jsonl"))

    def test_unused_memory_is_freed_for_timing(self, machine, arrays, no_room):
        tried, always = no_room
        always[0] = False
        run_all(machine, *arrays)
        [found] = algorithms.used().values()
        assert None not in found.values()
        assert len(tried) == 2 * len(found)

    def test_a_candidate_that_fails_is_not_chosen(self, machine, arrays, monkeypatch):
        run, refused = plans.Candidate.run, []

        def refuse_the_first(candidate, operands):
            refused.append(candidate.algorithm)
            if candidate.algorithm is refused[0]:
                raise RuntimeError("cublasLtMatmul ended with status 13")
            run(candidate, operands)

        monkeypatch.setattr(plans.Candidate, "run", refuse_the_first)
        x, weight, *_ = arrays
        y = machine.kernels.linear(x, weight, None)
        assert_close(machine, "linear", y, machine.get(x).astype(float) @ machine.get(weight).astype(float).T)
