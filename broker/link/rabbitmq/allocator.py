"""Keeps freed memory in the process: parts of 4 MB come and go by the thousand.

glibc gives blocks of this size back to the kernel as soon as they are freed, and the kernel zeroes every page again
for the next one: measured with 100 MB models, that is a third of the whole round.
"""

import ctypes
import sys

_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3
_KEEP_BYTES = 256 * 1024 * 1024
_FROM_HEAP_BYTES = 32 * 1024 * 1024  # the largest that glibc takes


def keep_freed_memory() -> None:
    """Tell glibc to reuse what is freed; elsewhere nothing is done. Call it once, before threads are started."""
    if sys.platform != "linux":
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:  # musl has none
        mallopt(_M_MMAP_THRESHOLD, _FROM_HEAP_BYTES)
        mallopt(_M_TRIM_THRESHOLD, _KEEP_BYTES)
