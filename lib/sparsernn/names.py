"""Messages for names that do not exist: what was given, the nearest right one, and all of them."""

from difflib import get_close_matches


def nearest(what, given, allowed):
    """`unknown method 'sparse-vd'; did you mean 'sparse-vd-w'? Known: …`"""
    close = get_close_matches(str(given), [str(name) for name in allowed], 1, 0.4)
    hint = f"; did you mean {close[0]!r}?" if close else "."
    return f"unknown {what} {given!r}{hint} Known: {', '.join(str(name) for name in allowed)}"
