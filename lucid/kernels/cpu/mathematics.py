"""Scalar functions without branches or calls, which LLVM turns into vector instructions. All are float32.

Numba's own `exp`, `erf` and `tanh` call the C library for each element. Multiply-and-add is an explicit `fma`, so that
an element gives the same bits at any position in a loop.
"""

from typing import Any

import numpy as np
from numba import types

from lucid.kernels.cpu.compiling import instruction, part

ZERO, HALF, ONE, TWO = (np.float32(number) for number in (0, 0.5, 1, 2))
LEAST = np.finfo(np.float32).min

_LOG2_E = np.float32(1.4426950408889634)
# log(2) in two parts. The first has so few bits that its product with a small integer is exact.
_LOG_2_HIGH, _LOG_2_LOW = np.float32(0.693359375), np.float32(-2.12194440e-4)
# Added to a number below 2**22, this leaves the nearest integer in the lowest bits.
_ROUND = np.float32(1.5 * 2**23)
# Below this exp is subnormal.
_EXP_LEAST = np.float32(-87.3)
_NORMAL_MOST = np.float32(14)
_SLOPE_MOST = np.float32(16)
_SQRT_TWO_OVER_PI = np.float32(0.7978845608028654)
_GELU_CUBIC = np.float32(0.044715)
_GELU_CUBIC_SLOPE = np.float32(3 * 0.044715)
_ONE_OVER_SQRT_TWO_PI = np.float32(0.3989422804014327)
_ALL_BUT_SIGN = np.int32(2**31 - 1)


@instruction
def fma(context: Any, a: Any, b: Any, c: Any) -> Any:
    """Return a * b + c, rounded once."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.fma(*arguments)

    return types.float32(types.float32, types.float32, types.float32), generate


@instruction
def bits_of(context: Any, number: Any) -> Any:
    """Return the bits of a float32 as an int32."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.bitcast(arguments[0], context.get_value_type(types.int32))

    return types.int32(types.float32), generate


@instruction
def number_of(context: Any, bits: Any) -> Any:
    """Return the float32 of these bits, an int32."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.bitcast(arguments[0], context.get_value_type(types.float32))

    return types.float32(types.int32), generate


@part
def bfloat16_of(x: np.float32) -> np.uint16:
    """Return the bits of x rounded to bfloat16, to the nearest, ties to even; NaN stays NaN."""
    bits = np.uint32(bits_of(x))
    rounded = bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))
    is_number = (bits & np.uint32(0x7FFFFFFF)) <= np.uint32(0x7F800000)
    kept = rounded if is_number else np.uint32(bits | np.uint32(0x00400000))
    return np.uint16(kept >> np.uint32(16))


@part
def order_of(x: np.float32) -> np.int32:
    """Return an int32 that orders like x: LLVM vectorises the maximum of integers."""
    bits = bits_of(x)
    return bits if bits >= 0 else np.int32(bits ^ _ALL_BUT_SIGN)


@part
def number_at(order: np.int32) -> np.float32:
    """Return the number with this order."""
    return number_of(order if order >= 0 else np.int32(order ^ _ALL_BUT_SIGN))


@part
def exp(x: np.float32) -> np.float32:
    """Return e**x for x up to 88, to 1.5 units in the last place; 0 if the result is subnormal.

    Coefficients from Cephes (Moshier), `expf`.
    """
    shifted = fma(x, _LOG2_E, _ROUND)
    power = shifted - _ROUND
    rest = fma(power, -_LOG_2_LOW, fma(power, -_LOG_2_HIGH, x))
    y = np.float32(1.9875691500e-4)
    y = fma(y, rest, np.float32(1.3981999507e-3))
    y = fma(y, rest, np.float32(8.3334519073e-3))
    y = fma(y, rest, np.float32(4.1665795894e-2))
    y = fma(y, rest, np.float32(1.6666665459e-1))
    y = fma(y, rest, np.float32(5.0000001201e-1))
    y = fma(y, rest * rest, rest) + ONE
    y *= number_of(np.int32((bits_of(shifted) + 127) << 23))
    return ZERO if x < _EXP_LEAST else y


@part
def normal_tail(x: np.float32) -> tuple[np.float32, np.float32]:
    """Return exp(-x**2 / 2) and the probability that a standard normal variable exceeds x, for x >= 0.

    The second is the first times a polynomial in 1 / (1 + 0.21 x), fitted to a relative error of 2e-8.
    """
    x = _NORMAL_MOST if x > _NORMAL_MOST else x
    square = x * x
    # The rounding error of the square would become a relative error of the exponential.
    lost = fma(x, x, -square)
    bell = exp(-HALF * square)
    bell = fma(bell, -HALF * lost, bell)
    t = ONE / fma(np.float32(0.21), x, ONE)
    y = np.float32(-0.07167033430594197)
    y = fma(y, t, np.float32(0.28365786711881313))
    y = fma(y, t, np.float32(-0.3303995404524651))
    y = fma(y, t, np.float32(0.3495725938312107))
    y = fma(y, t, np.float32(-0.09404766778606401))
    y = fma(y, t, np.float32(0.1249270629353811))
    y = fma(y, t, np.float32(0.06917755058580105))
    y = fma(y, t, np.float32(0.085071036925124))
    y = fma(y, t, np.float32(0.0837114379809661))
    return bell, bell * y * t


@part
def gelu(x: np.float32) -> np.float32:
    """Return x times the probability that a standard normal variable is below x."""
    _, tail = normal_tail(abs(x))
    return x * (tail if x < ZERO else ONE - tail)


@part
def gelu_slope(x: np.float32) -> np.float32:
    """Return the derivative of `gelu`."""
    bell, tail = normal_tail(abs(x))
    return fma(x * _ONE_OVER_SQRT_TWO_PI, bell, tail if x < ZERO else ONE - tail)


@part
def sigmoid(x: np.float32) -> tuple[np.float32, np.float32]:
    """Return 1 / (1 + exp(-x)), and 1 minus it."""
    small = exp(-abs(x))
    more = ONE / (ONE + small)
    less = small * more
    return (less, more) if x < ZERO else (more, less)


@part
def gelu_new(x: np.float32) -> np.float32:
    """Return x (1 + tanh(u)) / 2 with u = sqrt(2 / pi) (x + 0.044715 x**3): (1 + tanh(u)) / 2 is sigmoid(2u)."""
    most, _ = sigmoid(TWO * _SQRT_TWO_OVER_PI * x * fma(_GELU_CUBIC, x * x, ONE))
    return x * most


@part
def gelu_new_slope(x: np.float32) -> np.float32:
    """Return the derivative of `gelu_new`. Beyond 16 it is 0 or 1, to the last bit."""
    x = _SLOPE_MOST if x > _SLOPE_MOST else -_SLOPE_MOST if x < -_SLOPE_MOST else x
    square = x * x
    inner = TWO * _SQRT_TWO_OVER_PI * x * fma(_GELU_CUBIC, square, ONE)
    more, less = sigmoid(inner)
    inner_slope = TWO * _SQRT_TWO_OVER_PI * fma(_GELU_CUBIC_SLOPE, square, ONE)
    return fma(x * inner_slope, more * less, more)
