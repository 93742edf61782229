"""Sorted pixels and their medians, the same values as numpy's.

On processors whose AVX-512 stores compressed vectors slowly (AMD's Zen 4) `numpy.sort` and `numpy.partition` of float32
take four times as long as they do without it; a radix sort is fast on all.
"""

import numba
import numpy as np
from numpy.typing import NDArray

_DIGIT_BITS = 11
_N_DIGITS, _N_PASSES = 1 << _DIGIT_BITS, 3
_SIGN = np.uint32(0x80000000)


def ascending(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """The values of a float32 array ``(n,)`` in ascending order; none of them NaN."""
    ordered: NDArray[np.float32] = _radix_sorted(np.ascontiguousarray(values).view(np.uint32)).view(np.float32)
    return ordered


@numba.njit(cache=True)
def _radix_sorted(bits):  # type: ignore[no-untyped-def]
    """Bit patterns of float32 in the order of their values: least significant digit first, three digits of 11 bits."""
    n = bits.size
    keys, other = np.empty(n, np.uint32), np.empty(n, np.uint32)
    starts = np.zeros((_N_PASSES, _N_DIGITS), np.int64)
    for k in range(n):
        # Read as a number, a positive pattern grows with its value, a negative one shrinks.
        key = ~bits[k] if bits[k] & _SIGN else bits[k] | _SIGN
        keys[k] = key
        for digit in range(_N_PASSES):
            starts[digit, (key >> np.uint32(digit * _DIGIT_BITS)) & np.uint32(_N_DIGITS - 1)] += 1
    for digit in range(_N_PASSES):
        first = 0
        for value in range(_N_DIGITS):
            count = starts[digit, value]
            starts[digit, value] = first
            first += count
        for k in range(n):
            value = (keys[k] >> np.uint32(digit * _DIGIT_BITS)) & np.uint32(_N_DIGITS - 1)
            other[starts[digit, value]] = keys[k]
            starts[digit, value] += 1
        keys, other = other, keys
    for k in range(n):
        keys[k] = keys[k] & ~_SIGN if keys[k] & _SIGN else ~keys[k]
    return keys


def part_medians(
    data: NDArray[np.float32],
    usable: NDArray[np.bool_],
    step: int,
    edges_y: NDArray[np.int64],
    edges_x: NDArray[np.int64],
    least: int,
) -> NDArray[np.float64]:
    """Medians of the usable pixels in each part of an image, of every so many rows.

    Parameters
    ----------
    data, usable : ndarray ``(ny, nx)``
        Usable pixels are finite.
    step : int
        Every so many rows are looked at.
    edges_y, edges_x : ndarray of int ``(n + 1,)``
        Where the parts begin and end: in rows that are looked at, in columns.
    least : int
        NaN where fewer pixels of a part are usable.

    Returns
    -------
    ndarray ``(n_y, n_x)``
    """
    medians: NDArray[np.float64] = _part_medians(data, usable, step, edges_y, edges_x, least)
    return medians


@numba.njit(cache=True)
def _part_medians(data, usable, step, edges_y, edges_x, least):  # type: ignore[no-untyped-def]
    n_y, n_x = edges_y.size - 1, edges_x.size - 1
    medians = np.full((n_y, n_x), np.nan)
    pixels = np.empty(data.size, np.float32)
    for j in range(n_y):
        for i in range(n_x):
            n = 0
            for row in range(edges_y[j], edges_y[j + 1]):
                for column in range(edges_x[i], edges_x[i + 1]):
                    if usable[row * step, column]:
                        pixels[n] = data[row * step, column]
                        n += 1
            if n >= max(least, 1):
                medians[j, i] = _median(pixels[:n])
    return medians


@numba.njit(cache=True)
def _median(values):  # type: ignore[no-untyped-def]
    """Mean of the two middle values (twice the same one of an odd number); reorders `values`.

    Hoare's selection of the upper one leaves all smaller ones before it.
    """
    wanted = values.size // 2
    low, high = 0, values.size - 1
    while low < high:
        pivot = values[(low + high) // 2]
        i, j = low, high
        while i <= j:
            while values[i] < pivot:
                i += 1
            while values[j] > pivot:
                j -= 1
            if i <= j:
                values[i], values[j] = values[j], values[i]
                i += 1
                j -= 1
        if wanted <= j:
            high = j
        elif wanted >= i:
            low = i
        else:
            break
    upper = np.float64(values[wanted])
    if values.size % 2:
        return upper
    lower = values[0]
    for k in range(1, wanted):
        lower = max(lower, values[k])
    return 0.5 * (np.float64(lower) + upper)
