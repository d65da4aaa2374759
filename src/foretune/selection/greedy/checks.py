"""What the algorithms of selection refuse alike: counts outside the pool, and numbers that cannot be ranked."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from foretune.errors import DataError, UsageError


def check_count(count: int, pool: int) -> None:
    """Raise `UsageError` unless ``count`` of ``pool`` rows can be chosen; none and all can."""
    if not 0 <= count <= pool:
        raise UsageError(f"{count} of {pool} rows cannot be chosen.", remedy="Ask for at least none and at most all.")


def finite(values: npt.ArrayLike, name: str, axes: int) -> npt.NDArray[np.float64]:
    """``values`` as float64 with so many ``axes``. Raises `DataError` with the place of the first NaN or infinity."""
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != axes:
        raise UsageError(f"{name} must have {axes} axes; the shape is {array.shape}.")
    good = np.isfinite(array)
    if not good.all():
        place = np.argwhere(~good)[0]
        raise DataError(f"{name} has {array[tuple(place)]} at [{', '.join(map(str, place.tolist()))}].")
    return array
