"""Memory of large tensors."""

import ctypes
import platform


def keep_memory() -> None:
    """Let the C library keep freed memory for the next tensors, in the whole process.

    Otherwise it maps and unmaps large tensors each time, and the operating system zeroes every page again: up to half
    of the time of an episode of 84x84 images. Only glibc uses it.
    """
    if libc := _glibc():
        m_trim_threshold, m_top_pad, m_mmap_max = -1, -2, -4  # malloc.h
        libc.mallopt(m_mmap_max, 0)
        libc.mallopt(m_trim_threshold, 2**31 - 1)
        libc.mallopt(m_top_pad, 2**26)


def return_memory() -> None:
    """Give freed memory back to the operating system, also what `keep_memory` keeps; the next tensors take new memory.

    For a process that has decoded large images and then waits. Only glibc needs it.
    """
    if libc := _glibc():
        libc.malloc_trim(0)


def _glibc() -> ctypes.CDLL | None:
    return ctypes.CDLL(None) if platform.libc_ver()[0] == "glibc" else None
