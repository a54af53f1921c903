"""numba's `njit`, what it compiles kept on disk where there is a place for it: beside this package, or in the user's cache.

Where neither can be written (an image that is read-only, home and all), a function is compiled again in every process.
"""

import numba


def njit(**options):
    """As `numba.njit(cache=True, **options)`, which refuses to be imported where it can keep nothing."""

    def compiled(function):
        try:
            return numba.njit(cache=True, **options)(function)
        except RuntimeError:  # no locator available
            return numba.njit(**options)(function)

    return compiled
