"""What every bubblewrap container of ours needs: the program, a filter of system calls, files without a name."""

import contextlib
import os
import shutil
from functools import lru_cache

NOBODY = 65534
# fmt: off
DENIED = (
    "socket", "socketpair", "ptrace", "mount", "umount2", "pivot_root", "unshare", "setns", "keyctl",
    "add_key", "request_key", "bpf", "perf_event_open", "userfaultfd", "io_uring_setup", "io_uring_enter",
    "io_uring_register", "process_vm_readv", "process_vm_writev", "kexec_load", "kexec_file_load",
    "init_module", "finit_module", "delete_module", "open_by_handle_at", "name_to_handle_at", "memfd_secret",
    "pidfd_getfd", "fsopen", "fsmount", "fsconfig", "fspick", "move_mount", "open_tree", "chroot", "mknod",
    "mknodat", "personality", "quotactl", "swapon", "swapoff", "reboot",
)
# fmt: on
"""System calls that a program which computes something has no use for."""


def path_of(program: str) -> str:
    """Raises FileNotFoundError."""
    found = shutil.which(program, path="/usr/bin:/bin:/usr/local/bin")
    if found is None:
        raise FileNotFoundError(f"there is no {program}")
    return found


def nameless(content: bytes) -> int:
    """A file descriptor to read the content from."""
    fd = os.memfd_create("box")
    os.write(fd, content)
    os.lseek(fd, 0, os.SEEK_SET)
    return fd


@lru_cache(maxsize=1)
def seccomp_program() -> bytes:
    """The filter as the kernel takes it. Raises OSError without libseccomp."""
    try:
        import pyseccomp
    except (ImportError, RuntimeError) as error:
        raise OSError(f"no libseccomp: {error}") from error
    rules = pyseccomp.SyscallFilter(pyseccomp.ALLOW)
    for name in DENIED:
        with contextlib.suppress(OSError, ValueError):  # this kernel or library does not know it
            rules.add_rule(pyseccomp.ERRNO(1), name)
    with os.fdopen(os.memfd_create("filter"), "w+b") as file:
        rules.export_bpf(file)
        file.seek(0)
        return file.read()
