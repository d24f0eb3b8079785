"""Invariant 4 for products of linear layers and attention: each library and precision, against double precision."""

import functools
import os
import re
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from targets import call
from tiny_bert import CONFIG

import lucid
from lucid import kernels, random
from lucid.errors import ConfigError
from lucid.kernels import cpu, onednn, products, reference, threads
from lucid.kernels.arguments import Dropout
from lucid.kernels.cpu import gemm
from lucid.kernels.sequences import Sequences
from lucid.kernels.targets import Target
from lucid.models import BERTForPreTraining
from lucid.nn import flatten
from lucid.optim import AdamW, OneProcess

RANDOM = np.random.default_rng(6)
ULP = 2.0**-23
# Rows, inputs, outputs. The last three are so wide that products are taken in parts.
SHAPES = [(1, 1, 1), (1, 3, 5), (7, 33, 129), (154, 64, 331), (30, 1537, 70), (25, 16, 4099), (5, 4100, 3)]
NOT_INSTALLED = f"{onednn.WHEEL} is not installed"
needs_onednn = pytest.mark.skipif(not onednn.is_installed(), reason=NOT_INSTALLED)


@pytest.fixture(autouse=True)
def compiled_kernels(monkeypatch):
    """The compiled kernels, whatever the environment says; products are in float32 before and after each test."""
    cpu.load()
    monkeypatch.setattr(kernels, "_on_cpu", lambda: cpu)
    monkeypatch.delenv("LUCID_KERNELS", raising=False)
    yield
    products.set_precision("float32")


@pytest.fixture
def without_onednn(monkeypatch):
    monkeypatch.setattr(onednn, "is_installed", lambda: False)


@pytest.fixture(params=["NumPy", "oneDNN"])
def library(request):
    """Products of float32 by either library."""
    if request.param == "NumPy":
        request.getfixturevalue("without_onednn")
    elif not onednn.is_installed():
        pytest.skip(NOT_INSTALLED)


@pytest.fixture
def bfloat16():
    if not onednn.is_installed():
        pytest.skip(NOT_INSTALLED)
    try:
        products.set_precision("bfloat16")
    except ConfigError as error:
        pytest.skip(str(error))


def normal(*shape):
    return RANDOM.standard_normal(shape, dtype=np.float32)


def doubled(x):
    """x, rounded to bfloat16 if that is the precision, in double precision."""
    return gemm.product_input(x).astype(np.float64)


def assert_is_product(got, left, right, plus=0.0):
    """`got` is left times right plus something, up to the rounding of additions in float32."""
    left, right = doubled(left), doubled(right)
    assert got.dtype == np.float32
    within = ULP * (2 + left.shape[1]) * (np.abs(left) @ np.abs(right) + np.abs(plus))
    np.testing.assert_array_less(np.abs(got - (left @ right + plus)), within + 1e-30)


def assert_all_agree(rows, inputs, outputs):
    x, weight, gradient, bias = normal(rows, inputs), normal(outputs, inputs), normal(rows, outputs), normal(outputs)
    assert_is_product(gemm.linear(x, weight, None), x, weight.T)
    assert_is_product(gemm.linear(x, weight, bias), x, weight.T, bias.astype(np.float64))
    assert_is_product(gemm.linear_input_gradient(gradient, weight), gradient, weight)
    out = np.full((outputs, inputs), np.nan, np.float32)
    gemm.linear_weight_gradient(gradient, x, Target(out, accumulate=False))
    assert_is_product(out, gradient.T, x)
    before = normal(outputs, inputs)
    out[...] = before
    gemm.linear_weight_gradient(gradient, x, Target(out, accumulate=True))
    assert_is_product(out, gradient.T, x, before.astype(np.float64))
    sums, twice = np.full(outputs, np.nan, np.float32), np.empty_like(out)
    for accumulate in (False, True):
        gemm.linear_weight_gradient(gradient, x, Target(twice, False), Target(sums, accumulate))
    np.testing.assert_array_equal(sums, 2 * call(kernels.of(gradient), "linear_bias_gradient", gradient)[0])


@pytest.mark.parametrize("shape", SHAPES)
class TestAgreement:
    def test_float32_products_agree(self, library, shape):
        assert_all_agree(*shape)

    def test_bfloat16_products_are_those_of_rounded_operands_added_in_float32(self, bfloat16, shape):
        assert_all_agree(*shape)

    def test_rounding_operands_costs_at_most_one_part_in_127(self, bfloat16, shape):
        rows, inputs, outputs = shape
        x, weight = normal(rows, inputs), normal(outputs, inputs)
        exact = reference.linear(x.astype(np.float64), weight.astype(np.float64), None)
        within = 1 / 127 * np.abs(x).astype(np.float64) @ np.abs(weight.T)
        np.testing.assert_array_less(np.abs(gemm.linear(x, weight, None) - exact), within + 1e-30)


def test_products_shared_by_threads_agree(bfloat16, monkeypatch):
    monkeypatch.setattr(threads, "_limit", 3)
    assert_all_agree(300, 512, 170)


class TestOperands:
    """Products of arrays as they come out of a model: in several dimensions, as views, or without any rows."""

    @pytest.fixture(params=["NumPy in float32", "oneDNN in float32", "oneDNN in bfloat16"])
    def products(self, request):
        if request.param.startswith("NumPy"):
            request.getfixturevalue("without_onednn")
        elif not onednn.is_installed():
            pytest.skip(NOT_INSTALLED)
        elif request.param.endswith("bfloat16"):
            request.getfixturevalue("bfloat16")

    def test_leading_dimensions_are_kept(self, products):
        x, weight = normal(2, 3, 8), normal(5, 8)
        y = gemm.linear(x, weight, None)
        assert y.shape == (2, 3, 5)
        assert_is_product(y.reshape(6, 5), x.reshape(6, 8), weight.T)
        assert gemm.linear_input_gradient(y, weight).shape == x.shape

    def test_views_are_taken(self, products):
        first_tokens, transposed = normal(4, 3, 8)[:, 0], normal(8, 5).T
        assert_is_product(gemm.linear(first_tokens, transposed, None), first_tokens, transposed.T)
        stretched, out = np.broadcast_to(np.float32(0.7), (4, 5)), np.zeros((8, 5), np.float32).T
        assert_is_product(gemm.linear_input_gradient(stretched, transposed), stretched, transposed)
        gemm.linear_weight_gradient(stretched, first_tokens, Target(out, accumulate=False))
        assert_is_product(out, stretched.T, first_tokens)

    def test_some_columns_of_an_array_are_written_and_read_where_they_are(self, products):
        x, weight, bias, joined, total = normal(7, 8), normal(5, 8), normal(5), normal(7, 12), normal(7, 8)
        before, beside = total.astype(np.float64), joined.copy()
        assert_is_product(gemm.linear(x, weight, bias, joined[:, 4:9]), x, weight.T, bias.astype(np.float64))
        np.testing.assert_array_equal(np.delete(joined, np.s_[4:9], 1), np.delete(beside, np.s_[4:9], 1))
        assert gemm.linear_input_gradient(joined[:, 4:9], weight, total, total) is total
        assert_is_product(total, joined[:, 4:9], weight, before)

    def test_what_is_added_to_a_gradient_stays_as_it_is(self, products):
        gradient, weight, addend = normal(2, 3, 5), normal(5, 8), normal(2, 3, 8)
        before, room = addend.copy(), np.full((2, 3, 8), np.nan, np.float32)
        for out in (None, room):
            got = gemm.linear_input_gradient(gradient, weight, addend, out)
            assert_is_product(got.reshape(6, 8), gradient.reshape(6, 5), weight, before.reshape(6, 8))
            np.testing.assert_array_equal(addend, before)
        assert got is room

    def test_attention_multiplies_operands(self, products):
        mask = np.arange(20) < np.array([[20], [3], [17]])
        sequences = Sequences.unpadded(mask, mask)
        dropout = Dropout(0.2, 7, sequences.coordinates(random.Coordinates.of(1, 2, np.arange(3))))
        joined, gradient = normal(40, 36), normal(40, 12)
        operands = gemm.product_input(joined), gemm.product_input(gradient)
        output, probabilities = cpu.attention(operands[0], sequences, 3, dropout)
        by_joined = cpu.attention_gradient(operands[1], operands[0], probabilities, sequences, 3, dropout)
        exact = doubled(joined), sequences, 3, dropout
        expected, exact_probabilities = reference.attention(*exact)
        # Each rounding to bfloat16 costs up to 2**-8: of the probabilities that are kept, of the output, of the
        # gradients by the scores. They fall on terms of sums, which may be larger than the sums.
        within = 2.0**-6 if operands[0].dtype == onednn.BFLOAT16 else 2.0**-18
        np.testing.assert_allclose(output, expected, rtol=0, atol=within * np.abs(expected).max())
        np.testing.assert_allclose(probabilities, exact_probabilities, rtol=1e-5)
        expected = reference.attention_gradient(doubled(gradient), exact[0], exact_probabilities, *exact[1:])
        np.testing.assert_allclose(by_joined, expected, rtol=0, atol=within * np.abs(expected).max())

    def test_what_is_read_only_is_taken(self, products):
        x, weight = normal(4, 8), normal(5, 8)
        x.flags.writeable = weight.flags.writeable = False
        assert_is_product(gemm.linear(x, weight, None), x, weight.T)

    def test_no_rows_give_no_rows_and_a_gradient_of_zero(self, products):
        x, weight, gradient, out = normal(0, 8), normal(5, 8), normal(0, 5), normal(5, 8)
        assert gemm.linear(x, weight, normal(5)).shape == (0, 5)
        assert gemm.linear_input_gradient(gradient, weight).shape == (0, 8)
        before = out.copy()
        gemm.linear_weight_gradient(gradient, x, Target(out, accumulate=True))
        np.testing.assert_array_equal(out, before)
        gemm.linear_weight_gradient(gradient, x, Target(out, accumulate=False))
        np.testing.assert_array_equal(out, 0)

    def test_what_is_not_a_number_goes_through(self, products):
        x = normal(3, 8)
        x[1, 2] = np.nan
        assert np.isnan(gemm.linear(x, normal(5, 8), None)).any(axis=1).tolist() == [False, True, False]


class TestRounding:
    def test_it_is_to_the_nearest_and_ties_to_even(self, bfloat16):
        bits = RANDOM.integers(0, 2**32, 200_000, dtype=np.uint32)
        ties = np.arange(0, 2**32, 2**15, dtype=np.uint32)
        x = np.concatenate([bits, ties, ties + 1, ties - 1]).view(np.float32)
        x = x[~np.isnan(x)]
        with np.errstate(over="ignore"):
            expected = x.astype(ml_dtypes.bfloat16)
        np.testing.assert_array_equal(gemm.product_input(x).view(np.uint16), expected.view(np.uint16))

    def test_what_is_not_a_number_stays_so(self, bfloat16):
        x = np.array([0x7F800001, 0xFFFFFFFF, 0x7FFFFFFF, 0x7FC00000], np.uint32).view(np.float32)
        assert np.isnan(gemm.product_input(x).astype(np.float32)).all()

    def test_an_operand_is_rounded_once(self, bfloat16):
        once = gemm.product_input(normal(3, 4))
        assert gemm.product_input(once) is once

    def test_in_float32_an_operand_is_the_array_itself(self):
        x = normal(3, 4)
        assert gemm.product_input(x) is x


class TestBits:
    """The exact reduction needs the same bits from the same rows and weights, on the same number of threads."""

    def test_the_same_product_gives_the_same_bits_again(self, library):
        x, weight = normal(300, 512), normal(70, 512)
        np.testing.assert_array_equal(gemm.linear(x, weight, None), gemm.linear(x.copy(), weight.copy(), None))

    @needs_onednn
    def test_callers_in_several_threads_do_not_disturb_each_other(self):
        pairs = [(normal(40 + number, 64), normal(50, 64)) for number in range(8)] * 8
        expected = [gemm.linear(*pair, None) for pair in pairs]
        with ThreadPoolExecutor(4) as pool:
            got = list(pool.map(lambda pair: gemm.linear(*pair, None), pairs))
        for one, other in zip(got, expected, strict=True):
            np.testing.assert_array_equal(one, other)


@needs_onednn
def test_threads_share_a_product_and_run_it_at_once():
    onednn._product.cache_clear()
    pairs = [(normal(130, 64), normal(50, 64)) for _ in range(8)]
    expected = [x.astype("f8") @ weight.astype("f8").T for x, weight in pairs]
    numbers = [*range(8)] * 40
    with ThreadPoolExecutor(8) as pool:
        got = list(pool.map(lambda number: gemm.linear(*pairs[number], None), numbers))
    for number, product in zip(numbers, got, strict=True):
        np.testing.assert_allclose(product, expected[number], rtol=1e-4, atol=1e-4)
    assert onednn._product.cache_info().currsize == 1


@needs_onednn
def test_threads_that_all_make_the_first_product_agree_on_one_library(monkeypatch):
    """Also of these products, one of which needs scratch memory on most processors, and one does not."""
    monkeypatch.setattr(onednn, "_load", functools.cache(onednn._load.__wrapped__))
    monkeypatch.setattr(onednn, "_thread", functools.cache(onednn._thread.__wrapped__))
    onednn._product.cache_clear()
    threads_ready = threading.Barrier(8)

    def multiply(number):
        x, weight = normal(943, 128), normal((192, 8)[number % 2], 128)
        out = np.empty((943, len(weight)), "f4")
        threads_ready.wait(60)
        onednn.multiply(x, weight.T, out)
        np.testing.assert_allclose(out, x @ weight.T, rtol=1e-3, atol=1e-3)

    try:
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(multiply, range(8)))
    finally:
        onednn._product.cache_clear()  # its products are those of another library


@needs_onednn
def test_all_threads_together_keep_a_bounded_number_of_products():
    def multiply(columns):
        onednn.multiply(np.ones((1, 1), "f4"), np.ones((1, columns), "f4"), np.empty((1, columns), "f4"))

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(multiply, range(1, onednn.MOST_PRODUCTS + 20)))
    assert onednn._product.cache_info().currsize == onednn.MOST_PRODUCTS


needs_avx512 = pytest.mark.skipif(
    not re.search(r"\bavx512bw\b", Path("/proc/cpuinfo").read_text()), reason="this processor has no AVX-512"
)


SIGNALS_DURING_PRODUCTS = """
import signal
import numpy as np
from lucid.kernels import onednn

def product():
    out = np.empty((128, 512), np.float32)
    onednn.multiply(left, right, out)
    return out

came = 0

def count(*_):
    global came
    came += 1

left, right = (np.random.default_rng(1).standard_normal(shape, np.float32) for shape in ((128, 2048), (2048, 512)))
expected = product()
signal.signal(signal.SIGALRM, count)
signal.setitimer(signal.ITIMER_REAL, 1e-4, 1e-4)
while came < 500:
    np.testing.assert_array_equal(product(), expected)
signal.setitimer(signal.ITIMER_REAL, 0)
"""


@needs_onednn
def test_signals_that_come_during_products_spoil_nothing():
    """Such as one that asks a run to stop. Where memory is written over, the process ends."""
    run_alone(SIGNALS_DURING_PRODUCTS, OMP_NUM_THREADS="1", PYTHONFAULTHANDLER="")


class TestChoice:
    def test_bfloat16_without_onednn_is_an_error_that_names_the_wheel(self, without_onednn):
        with pytest.raises(ConfigError, match=f"need oneDNN: pip install {onednn.WHEEL}"):
            kernels.set_precision("bfloat16")

    def test_without_onednn_float32_is_numpys(self, without_onednn):
        assert kernels.set_precision("float32") is None
        assert kernels.product_library() == "NumPy's"

    def test_a_library_that_cannot_be_loaded_is_an_error_and_not_passed_over(self, monkeypatch, tmp_path):
        broken = tmp_path / "libdnnl.so.3"
        broken.write_text("no library")
        monkeypatch.setattr(onednn, "_path", lambda: broken)
        with pytest.raises(ConfigError, match=r"cannot be loaded .*libgomp1"):
            onednn._load.__wrapped__()

    def test_the_reference_has_no_bfloat16(self, monkeypatch):
        monkeypatch.setenv("LUCID_KERNELS", "reference")
        assert kernels.set_precision("float32") is None
        with pytest.raises(ConfigError, match="no bfloat16 products: unset LUCID_KERNELS"):
            kernels.set_precision("bfloat16")

    @needs_onednn
    @pytest.mark.parametrize(
        ("instructions", "message"),
        [
            ("AVX2", "no bfloat16 products for this processor"),
            pytest.param("AVX512_CORE", "no bfloat16 instructions", marks=needs_avx512),
        ],
    )
    def test_a_processor_without_the_instructions_is_told_of(self, instructions, message):
        assert message in run_alone(
            "from lucid import kernels\ntry: print(kernels.set_precision('bfloat16'))\nexcept Exception as e: print(e)",
            ONEDNN_MAX_CPU_ISA=instructions,
        )

    @needs_onednn
    def test_no_variable_of_onednn_lessens_the_precision_of_float32(self):
        program = """
import numpy as np
from lucid.kernels import onednn
x, y = np.full((64, 64), 1 + 2**-20, "f4"), np.empty((64, 64), "f4")
onednn.multiply(x, np.eye(64, dtype="f4"), y)
print((x == y).all())
"""
        assert "True" in run_alone(program, ONEDNN_DEFAULT_FPMATH_MODE="ANY")


def losses_of_training(steps):
    """The losses of a small model, with dropout, that learns to fill in the masks of a few texts."""
    lucid.manual_seed(3)
    model = BERTForPreTraining(CONFIG)
    flat = flatten(model)
    optimizer, samples = AdamW(OneProcess(flat)), np.arange(16)
    ids = np.random.default_rng(1).integers(104, CONFIG.vocab_size, (4, 16, 12))
    losses = []
    for step in range(steps):
        text = ids[step % len(ids)]
        masked = np.random.default_rng(step).random(text.shape) < 0.2
        flat.zero_grad()
        with random.at(random.Coordinates.of(0, step, samples)):
            loss = model.get_loss(np.where(masked, text, -100), samples % 2, np.where(masked, 103, text))
            loss.backward()
        optimizer.step(2e-3, 1.0)
        losses.append(loss.item())
    return np.array(losses)


def test_training_in_bfloat16_has_the_losses_of_float32_within_one_percent(bfloat16):
    rounded = losses_of_training(200)
    products.set_precision("float32")
    exact = losses_of_training(200)
    assert exact[-20:].mean() < 0.8 * exact[0]
    np.testing.assert_allclose(rounded.reshape(10, 20).mean(axis=1), exact.reshape(10, 20).mean(axis=1), rtol=0.01)
    assert not np.array_equal(rounded, exact)


def run_alone(program, **environment):
    """What a Python program prints in a process of its own."""
    finished = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
        env=os.environ | {"LUCID_KERNELS": ""} | environment,
    )
    return finished.stdout
