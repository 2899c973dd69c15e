"""``python leash.py NICE COMMAND...`` becomes the command, at that priority; the kernel ends it when its parent dies,
however that dies.

Run by path, with nothing but the standard library: it is a program, not a module of the service.
"""

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1
"""linux/prctl.h"""


def yield_to_others(nice: int) -> None:
    """Between sessions the kernel may weigh whole groups of processes; then a process's own priority says nothing."""
    os.nice(nice)
    try:
        with open("/proc/self/autogroup", "w") as group:
            group.write(str(nice))
    except OSError:  # no such kernel feature here
        pass


def main() -> None:
    parent = os.getppid()
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:  # it died before the kernel knew
        sys.exit(1)
    yield_to_others(int(sys.argv[1]))
    os.execvp(sys.argv[2], sys.argv[2:])


if __name__ == "__main__":
    main()
