"""Programs that want to be judged right without being right, to stay, or to get out."""

from textwrap import dedent

FORGED = {
    "exit": dedent(r"""
        import sys; sys.exit(0)
    """),
    "os exit": dedent(r"""
        import os; os._exit(0)
    """),
    "always equal": dedent(r"""
        class A:
            def __eq__(s, o): return True
            def __ne__(s, o): return False
            def __hash__(s): return 0
        def add(a, b): return A()
    """),
    "equal int": dedent(r"""
        class A(int):
            def __eq__(s, o): return True
            def __hash__(s): return 0
        def add(a, b): return A(99)
    """),
    "equal list": dedent(r"""
        class A(list):
            def __eq__(s, o): return True
        def add(a, b): return A()
    """),
    "print and exit": dedent(r"""
        import os
        print('OK PASSED 1.0 true'); os._exit(0)
    """),
    "write the line": dedent(r"""
        import os, json
        def add(a, b):
            for fd in range(3, 30):
                try: os.write(fd, b'{"passed": 9, "total": 9, "failed": "", "broken": ""}\n' * 3)
                except OSError: pass
            return 0
    """),
    "frames": dedent(r"""
        import sys
        def add(a, b):
            f = sys._getframe()
            while f:
                for v in list(f.f_locals.values()):
                    if v == 3: return v
                f = f.f_back
            return 0
    """),
    "collected objects": dedent(r"""
        import gc
        def add(a, b):
            for o in gc.get_objects():
                if isinstance(o, dict) and 'expected' in o: return o['expected']
            return 0
    """),
    "redefine assert": dedent(r"""
        import builtins
        builtins.AssertionError = None
        def add(a, b): return 0
    """),
    "at exit": dedent(r"""
        import atexit, os
        atexit.register(lambda: os._exit(0))
        def add(a, b): return 0
    """),
    "raise nothing": dedent(r"""
        def add(a, b):
            raise StopIteration
    """),
    "nan": dedent(r"""
        def add(a, b): return float('nan')
    """),
    "read the tests": dedent(r"""
        def add(a, b):
            import glob
            for p in glob.glob('/**', recursive=True):
                try:
                    s = open(p).read()
                    if 'candidate(1, 2)' in s: return 3
                except Exception: pass
            return 0
    """),
}

HOSTILE = {
    "a loop": dedent(r"""
        while True: pass
    """),
    "a sleep": dedent(r"""
        import time; time.sleep(1000)
    """),
    "a deaf loop": dedent(r"""
        import signal
        signal.signal(signal.SIGXCPU, signal.SIG_IGN)
        while True: pass
    """),
    "a flood": dedent(r"""
        import os
        def add(a, b):
            return 'x' * (50 << 20)
    """),
    "a balloon": dedent(r"""
        def add(a, b):
            return len(bytearray(4 << 30))
    """),
    "a crash": dedent(r"""
        import ctypes; ctypes.string_at(0)
    """),
    "a fork bomb": dedent(r"""
        import os
        while True:
            try: os.fork()
            except OSError: pass
    """),
    "parricide": dedent(r"""
        import os, signal
        os.kill(os.getppid(), signal.SIGKILL); os.kill(1, signal.SIGKILL)
        while True: pass
    """),
    "a daemon": dedent(r"""
        import os, time
        if os.fork() == 0:
            os.setsid()
            time.sleep(1000)
        os._exit(0)
    """),
}

LOOKING = {
    "a file of the host": r"""open('/etc/hostname').read()""",
    "passwords": r"""open('/etc/shadow').read()""",
    "a home": r"""__import__('os').listdir('/root')""",
    "homes": r"""__import__('os').listdir('/home')""",
    "the service's environment": r"""1 / len(open('/proc/1/environ').read())""",
    "the loopback": r"""__import__('socket').create_connection(('127.0.0.1', PORT), 2)""",
    "a unix socket": r"""__import__('socket').socket(__import__('socket').AF_UNIX)""",
    "writing": r"""open('/usr/bin/x', 'w')""",
    "writing at the root": r"""open('/x', 'w')""",
    "mounting": r"""__import__('ctypes').CDLL(None, use_errno=True).mount(b'none', b'/tmp', b'tmpfs', 0, 0) and 1/0""",
    "a namespace": r"""__import__('os').unshare(0x10000000)""",
    "root": r"""__import__('os').setuid(0)""",
    "a big file": r"""open('/tmp/big', 'wb').write(bytes(1 << 28)) < 0""",
    "tracing": r"""__import__('ctypes').CDLL(None).ptrace(16, 1, 0, 0) and 1/0""",
    "an abstract socket": r"""__import__('socket').socket(1, 1).connect(chr(0) + 'x')""",
    "the first process's memory": r"""open('/proc/1/mem', 'rb').read(1)""",
    "kernel settings": r"""open('/proc/sys/kernel/core_pattern', 'w').write('|/x')""",
    "kernel messages": r"""open('/dev/kmsg').read(1)""",
    "a raw disk": r"""__import__('os').mknod('/tmp/disk', 0o60600, 0x800)""",
    "another root": r"""__import__('os').chroot('/tmp')""",
    "a key ring": r"""__import__('ctypes').CDLL(None).syscall(250, 0, -3, 1) >= 0 or 1/0""",
    "an I/O ring": r"""__import__('ctypes').CDLL(None).syscall(425, 1, bytes(200)) >= 0 or 1/0""",
    "a kernel program": r"""__import__('ctypes').CDLL(None).syscall(321, 5, bytes(200), 120) >= 0 or 1/0""",
    "processes outside": r"""1 / len([p for p in __import__('os').listdir('/proc') if p.isdigit() and int(p) > 20])""",
    "a name server": r"""__import__('socket').getaddrinfo('example.org', 80)""",
    "a set-user-id program": r"""__import__('subprocess').run(['/usr/bin/su', '-c', 'id'], check=True, timeout=3)""",
}
"""Expressions; PORT is a server on the loopback."""
