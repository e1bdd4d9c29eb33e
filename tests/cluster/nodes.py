"""Several Ray nodes on one machine: each has a network namespace, and with it an address, of its own."""

import os
import shutil
import signal
import subprocess
from pathlib import Path

from deploy.cluster.doctor_bundle import stacks
from tests.ray_start import start_ray

PORT = 6379


class Nodes:
    """A bridge, and network namespaces on it in which `ray start` runs. The first node is the head."""

    def __init__(self, temp_dir: Path) -> None:
        self._temp_dir = temp_dir
        self._id = f"bv{os.getpid()}"
        self._network = f"10.213.{os.getpid() % 250}"
        self._names: list[str] = []
        ip("link", "add", self._id, "type", "bridge")
        ip("link", "set", self._id, "up")

    @property
    def head(self) -> str:
        """Where Ray is joined."""
        return f"{self.address(self._names[0])}:{PORT}"

    def address(self, name: str) -> str:
        return f"{self._network}.{self._names.index(name) + 1}"

    def inside(self, name: str) -> list[str]:
        """What a command begins with that is to run on a node."""
        return ["ip", "netns", "exec", self._namespace(name)]

    def add(self, name: str, cpus: int) -> None:
        """A new node. Not two at once: each start costs seconds of CPU, and Ray gives it fifteen."""
        self._names.append(name)
        namespace, wire = self._namespace(name), f"{self._id}v{len(self._names)}"
        ip("netns", "add", namespace)
        ip("link", "add", wire, "type", "veth", "peer", "name", "eth0", "netns", namespace)
        ip("link", "set", wire, "master", self._id, "up")
        ip("-n", namespace, "link", "set", "lo", "up")
        ip("-n", namespace, "addr", "add", f"{self.address(name)}/24", "dev", "eth0")
        ip("-n", namespace, "link", "set", "eth0", "up")
        # Ports are free in a new namespace. Ray need not choose them, nor wait for its agents to say which they took.
        options = [f"--node-ip-address={self.address(name)}", f"--num-cpus={cpus}", "--object-store-memory=200000000",
                   "--metrics-export-port=8080", "--dashboard-agent-grpc-port=8081", "--runtime-env-agent-port=8082",
                   "--disable-usage-stats"]  # fmt: skip
        if len(self._names) == 1:
            options += ["--head", f"--port={PORT}", f"--temp-dir={self._temp_dir}", "--include-dashboard=false"]
        else:
            options += [f"--address={self.head}"]
        start_ray(options, clean_up=lambda: self.remove(name), prefix=self.inside(name))

    def processes(self, name: str) -> dict[int, str]:
        """Command lines of everything that runs on a node."""
        lines = {}
        for pid in map(int, ip("netns", "pids", self._namespace(name)).split()):
            try:
                lines[pid] = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            except (FileNotFoundError, ProcessLookupError):
                continue  # it ended while we looked
        return lines

    def stacks(self) -> str:
        """What every actor on every node is doing."""
        found = [(pid, line) for name in self._names for pid, line in self.processes(name).items()]
        return "\n".join(f"{line}:\n{stacks(pid)}" for pid, line in found if "ray::" in line)

    def remove(self, name: str) -> None:
        """Take a node away: all its processes at once, without a word to anybody."""
        while pids := self.processes(name):
            for pid in pids:
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    continue  # it ended by itself

    def close(self) -> None:
        for name in reversed(self._names):
            self.remove(name)
            ip("netns", "delete", self._namespace(name))
        for number in range(len(self._names)):
            subprocess.run(["ip", "link", "delete", f"{self._id}v{number + 1}"], capture_output=True, check=False)
        ip("link", "delete", self._id)
        shutil.rmtree(self._temp_dir, ignore_errors=True)

    def _namespace(self, name: str) -> str:
        return f"{self._id}-{name}"


def what_is_missing() -> str | None:
    """Why this machine cannot play several nodes; None where it can."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    if shutil.which("ip") is None:
        return "network namespaces need the command `ip` (iproute2)"
    probe = f"bv{os.getpid()}-probe"
    made = subprocess.run(["ip", "netns", "add", probe], capture_output=True, text=True, check=False)
    if made.returncode != 0:
        return f"network namespaces cannot be made here: {made.stderr.strip()}"
    ip("netns", "delete", probe)
    return None


def ip(*arguments: str) -> str:
    done = subprocess.run(["ip", *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"ip {' '.join(arguments)}: {done.stderr}"
    return done.stdout
