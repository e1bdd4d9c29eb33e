"""Programs that try to get out, or to take what is not theirs. Each says ESCAPED with what it reached, and HELD when it is through.

Needs the standard library only: an ordinary user runs them with a Python that has nothing else.
"""

from actors.sandbox.program import Limits

QUICK = Limits(wall_s=30.0, cpu_s=3, memory_mib=256, processes=8, scratch_mib=8, output_bytes=1 << 16)
MARK = "hostile-mark"
"""The name that processes give themselves which mean to stay."""

PRELUDE = f"""
import ctypes, errno, os, resource, signal, socket, subprocess, sys, threading, time
libc = ctypes.CDLL(None, use_errno=True)
libc.prctl(15, b"{MARK}", 0, 0, 0)

def attempt(what, *arguments):
    try:
        result = what(*arguments)
    except (OSError, ValueError, MemoryError, RuntimeError, OverflowError):
        return
    print("ESCAPED", what, arguments, str(result)[:80])

def refused(name, *arguments):
    if getattr(libc, name)(*arguments) != -1:
        print("ESCAPED", name, arguments)
"""

HELD = {
    "network": """
for family in (socket.AF_INET, socket.AF_INET6, socket.AF_NETLINK, socket.AF_PACKET, 40, 38):
    for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM, socket.SOCK_RAW):
        attempt(socket.socket, family, kind)
attempt(socket.create_connection, ("1.1.1.1", 53), 1)
attempt(socket.getaddrinfo, "example.com", 80)
""",
    "fork_bomb": """
children = 0
try:
    while children < 1000:
        if not os.fork():
            time.sleep(60)
        children += 1
except BlockingIOError:
    pass
if children > 8:
    print("ESCAPED", children)
""",
    "thread_bomb": """
def stay():
    time.sleep(60)
started = 0
try:
    while started < 1000:
        threading.Thread(target=stay, daemon=True).start()
        started += 1
except RuntimeError:
    pass
if started > 8:
    print("ESCAPED", started)
print("HELD", flush=True)
os._exit(0)
""",
    "environment": """
extra = set(os.environ) - {"HOME", "TMPDIR", "LC_ALL", "LC_CTYPE", "PYTHONHASHSEED"}
if extra:
    print("ESCAPED", extra)
for path in ("/proc/self/environ", "/proc/1/environ", "/proc/1/mem", "/proc/1/root/etc/passwd", "/sys/kernel", "/proc"):
    attempt(os.stat, path)
""",
    "files_of_the_machine": """
for path in ("/etc/passwd", "/etc/shadow", "/home", "/root/.ssh", "/var", "/work", "/old", "/opt", "/dev/mem", "/dev/vda", "/dev/kmsg", "/run"):
    attempt(os.stat, path)
    attempt(os.listdir, "/tmp/../../.." + path)
""",
    "writing_outside": """
import json
for directory in ("/", "/dev", "/usr/lib", os.path.dirname(os.__file__), os.path.dirname(json.__file__), os.path.dirname(sys.executable)):
    attempt(open, os.path.join(directory, "written"), "w")
for path in (os.__file__, "/program.py", sys.executable):
    attempt(open, path, "a")
    attempt(os.chmod, path, 0o777)
    attempt(os.unlink, path)
attempt(os.mknod, "/tmp/disk", 0o60666, os.makedev(254, 0))
attempt(os.rename, "/tmp", "/moved")
""",
    "links_out": """
for name, target in (("one", "/etc/passwd"), ("two", "../../../../etc/passwd"), ("three", "/proc/1/root"), ("four", "/old/etc/passwd")):
    os.symlink(target, name)
    attempt(os.stat, name)
attempt(os.link, os.__file__, "hard")
os.symlink("/program.py", "five")
attempt(open, "five", "w")
""",
    "signals": """
for number in range(1, 300):
    if number != os.getpid():
        for kind in (signal.SIGTERM, signal.SIGKILL, signal.SIGSTOP):
            try:
                os.kill(number, kind)
            except ProcessLookupError:
                continue
            if number != 1:
                print("ESCAPED", number)
try:
    os.kill(-1, signal.SIGKILL)
    os.killpg(1, signal.SIGKILL)
except OSError:
    pass
attempt(os.kill, os.getppid() + 10**5, 0)
""",
    "memory": """
attempt(bytearray, 1 << 33)
held = []
try:
    while True:
        held.append(bytearray(1 << 24))
except MemoryError:
    if len(held) > 16:
        print("ESCAPED", len(held))
""",
    "memory_that_no_limit_counts": """
attempt(os.memfd_create, "hidden")
refused("shmget", 0, 1 << 30, 0o1600)
refused("msgget", 0, 0o1600)
attempt(resource.setrlimit, resource.RLIMIT_AS, (-1, -1))
attempt(resource.setrlimit, resource.RLIMIT_NPROC, (10**4, 10**4))
attempt(resource.setrlimit, resource.RLIMIT_CPU, (10**4, 10**4))
""",
    "a_full_disk": """
written = 0
try:
    for number in range(100):
        with open(f"file{number}", "wb", buffering=0) as file:
            for _ in range(64):
                written += file.write(bytes(1 << 20))
except OSError:
    pass
if written > 9 << 20:
    print("ESCAPED", written)
for number in range(100):
    if os.path.exists(f"file{number}"):
        os.unlink(f"file{number}")
made = 0
try:
    while made < 10**5:
        os.close(os.open(f"empty{made}", os.O_CREAT))
        made += 1
except OSError:
    pass
if made > 200:
    print("ESCAPED", made)
""",
    "ptrace": """
refused("ptrace", 0, 0, 0, 0)
refused("ptrace", 16, 1, 0, 0)
refused("ptrace", 0x4206, os.getppid(), 0, 0)
class Vector(ctypes.Structure):
    _fields_ = [("base", ctypes.c_void_p), ("length", ctypes.c_size_t)]
space = ctypes.create_string_buffer(64)
there, here = Vector(0x400000, 64), Vector(ctypes.addressof(space), 64)
refused("process_vm_readv", 1, ctypes.byref(here), 1, ctypes.byref(there), 1, 0)
refused("process_vm_readv", os.getpid(), ctypes.byref(here), 1, ctypes.byref(here), 1, 0)
refused("syscall", 438, os.pidfd_open(1), 0, 0)
""",
    "mounts_and_namespaces": """
for flag in (0x00020000, 0x02000000, 0x04000000, 0x08000000, 0x10000000, 0x20000000, 0x40000000):
    refused("unshare", flag)
    refused("clone", None, None, flag | 17, None)
refused("mount", b"tmpfs", b"/tmp", b"tmpfs", 0, None)
refused("mount", b"/", b"/tmp", None, 4096, None)
refused("mount", None, b"/", None, 32 | 4096, None)
refused("umount2", b"/tmp", 2)
refused("umount", b"/dev/null")
refused("setns", 0, 0)
refused("sethostname", b"x", 1)
for number in (425, 428, 429, 430, 435, 442, 443, 451, 500, 1 << 30):
    refused("syscall", ctypes.c_long(number), 0, 0, 0, 0)
""",
    "chroot": """
os.mkdir("jail")
attempt(os.chroot, "jail")
refused("chroot", b"/tmp")
above = os.open("/", os.O_RDONLY)
for _ in range(50):
    os.chdir("..")
if set(os.listdir(".")) & {"proc", "sys", "home", "var", "bin", "old"}:
    print("ESCAPED", os.listdir("."))
if set(os.listdir(os.open("..", os.O_RDONLY, dir_fd=above))) != set(os.listdir("/")):
    print("ESCAPED")
""",
    "privileges": """
for become in (os.setuid, os.setgid, os.seteuid, os.setegid):
    attempt(become, 0)
attempt(os.setgroups, [0])
refused("capset", (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)(0xffffffff, 0xffffffff, 0, 0xffffffff, 0, 0))
refused("prctl", 38, 0, 0, 0, 0)
if libc.prctl(39, 0, 0, 0, 0) != 1:
    print("ESCAPED no_new_privs is off")
refused("syscall", ctypes.c_long({"x86_64": 321, "aarch64": 280}[os.uname().machine]), 0, 0, 0)
""",
    "descriptors_left_open": """
for number in range(3, 4096):
    attempt(os.fstat, number)
for number in (0, 1, 2):
    if os.isatty(number):
        print("ESCAPED", number)
""",
    "what_was_there_before": """
if os.listdir("/tmp"):
    print("ESCAPED", os.listdir("/tmp"))
for name in ("sitecustomize.py", "usercustomize.py", "random.py"):
    open(name, "w").write("print('ESCAPED')")
import random
""",
    "children_that_outlive_the_call": """
for _ in range(3):
    if not os.fork():
        os.setsid()
        if not os.fork():
            for number in range(1, 32):
                try:
                    signal.signal(number, signal.SIG_IGN)
                except (OSError, ValueError):
                    pass
            for stream in (0, 1, 2):
                os.close(stream)
            time.sleep(600)
        os._exit(0)
""",
    "children_that_keep_the_output": """
if not os.fork():
    os.setsid()
    time.sleep(600)
""",
}
"""By name: what must come to nothing while the program goes on."""

ENDED = {
    "output_without_end": ("output", "while True: os.write(1, bytes(65536))"),
    "errors_without_end": ("output", "while True: os.write(2, bytes(65536))"),
    "sleeps": ("wall_time", "signal.pthread_sigmask(signal.SIG_BLOCK, range(1, 65)); time.sleep(600)"),
    "talks_for_ever": ("wall_time", "while True: os.write(1, b'x'); time.sleep(0.001)"),
    "sleeps_with_closed_streams": ("wall_time", "os.closerange(0, 3); time.sleep(600)"),
    "many_sleep": ("wall_time", "os.fork(); os.fork(); os.setsid() if os.getpid() % 2 else None; time.sleep(600)"),
    "many_hold_as_much_as_each_may": (
        "memory",
        "for _ in range(3): os.fork()\nheld = b'x' * (100 << 20)\ntime.sleep(600)",
    ),
    "computes_whatever_it_is_told": (
        "cpu_time",
        "signal.signal(signal.SIGXCPU, signal.SIG_IGN)\nwhile True: pass",
    ),
    "overflows_its_stack": (
        "killed",
        "x = ()\nfor _ in range(10**6):\n    x = (x,)\nhash(x)",
    ),
    "segfaults": ("killed", "ctypes.string_at(0)"),
    "kills_itself": ("killed", "os.kill(os.getpid(), signal.SIGKILL)"),
}
"""By name: how it must end, and what it does. Deadlines are those of `bounds_of`."""


def bounds_of(name: str) -> Limits:
    """Short deadlines for programs that would go on for ever."""
    ending = ENDED[name][0] if name in ENDED else ""
    wall_s, cpu_s = {"wall_time": (0.4, 3), "cpu_time": (60.0, 1)}.get(ending, (QUICK.wall_s, QUICK.cpu_s))
    return Limits(wall_s, cpu_s, QUICK.memory_mib, QUICK.processes, 64, QUICK.scratch_mib, QUICK.output_bytes)


def source_of(name: str) -> str:
    """The whole program."""
    return PRELUDE + (HELD[name] + '\nprint("HELD")\n' if name in HELD else ENDED[name][1] + "\n")
