"""Which compiled forms of a kernel one call could mean."""

import sys
from itertools import permutations
from typing import Any


def ambiguous_kernels(module_name: str) -> list[str]:
    """Kernels of a module with two compiled forms of which one takes the arguments of the other."""
    from numba.core.dispatcher import Dispatcher
    from numba.core.registry import cpu_target

    context = cpu_target.typing_context
    kernels = [kernel for kernel in vars(sys.modules[module_name]).values() if isinstance(kernel, Dispatcher)]
    return sorted(
        f"{kernel.py_func.__module__}.{kernel.py_func.__name__}: {one} and {other}"
        for kernel in kernels
        for one, other in permutations(kernel.signatures, 2)
        if all(_is_safe(context.can_convert(_writable(a), _writable(b))) for a, b in zip(one, other, strict=True))
        if any(_writable(a) != _writable(b) for a, b in zip(one, other, strict=True))
    )


def _writable(kind: Any) -> Any:
    """Whether an array may be written to changes no result."""
    from numba import types

    return kind.copy(readonly=False) if isinstance(kind, types.Array) else kind


def _is_safe(conversion: Any) -> bool:
    from numba.core.typeconv import Conversion

    return conversion is not None and conversion.value <= Conversion.safe.value
