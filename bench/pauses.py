"""How short a tree stands still that goes on: 1 GiB at rest, 1 GiB of which 20,000 random pages a second are written to,
both with memory of its own and with shared memory, and redis with much data under load; and what an image since another
has and takes. Part of scripts/bench."""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
import time

MIB = "1024"
RATE = "20000"
# Pages of 1 GiB that are one in a hundred.
CHANGED = (1 << 18) // 100
# Pages a second that the writer of those writes to.
SLOWLY = 4000


class Running:
    """A workload that is ready, until the end of the block."""

    def __init__(self, load, arguments, directory):
        self.output = os.path.join(directory, "said")
        with open(self.output, "wb") as said:
            self.child = subprocess.Popen([load, *arguments], stdin=subprocess.DEVNULL, stdout=said, stderr=said,
                                          start_new_session=True)
        self.images = tempfile.mkdtemp(prefix="pauses.", dir=directory)

    def __enter__(self):
        while os.path.getsize(self.output) == 0 and self.child.poll() is None:
            time.sleep(0.002)
        os.sync()
        return self

    def __exit__(self, *_):
        self.child.kill()
        self.child.wait()
        shutil.rmtree(self.images, ignore_errors=True)

    def image(self, name):
        path = os.path.join(self.images, name)
        os.makedirs(path, exist_ok=True)
        return path


def run(command, directory):
    begun = time.monotonic()
    done = subprocess.run(command, cwd=directory, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, check=False)
    if done.returncode != 0:
        raise OSError(f"{command[1]}: exit status {done.returncode}")
    return time.monotonic() - begun, done.stdout


def freeze(tool, load, arguments, directory):
    """One checkpoint that leaves it running: seconds of its freeze, and the longest pause that a writer has seen."""
    subprocess.check_call([load, "warm", str(2 * int(MIB))])
    with Running(load, arguments, directory) as running:
        time.sleep(0.5)
        images = running.image("image")
        _, output = run(tool.dump(running.child.pid, images, ["--leave-running"]), directory)
        figures = {"frozen": tool.frozen_us(images, output) / 1e6}
        if arguments[0] == "writer":
            running.child.send_signal(signal.SIGUSR1)
            running.child.wait()
            with open(running.output, encoding="ascii") as said:
                figures["longest"] = float(said.read().split()[-2]) / 1e3
        return figures


def since(tool, load, directory):
    """An image since another, after one page in a hundred was written to: seconds, and bytes of its pages."""
    subprocess.check_call([load, "warm", str(2 * int(MIB))])
    with Running(load, ["writer", str(SLOWLY), MIB], directory) as running:
        pid = running.child.pid
        run(tool.dump(pid, running.image("first"), ["--leave-running", "--track"]), directory)
        time.sleep(CHANGED / SLOWLY)
        os.kill(pid, signal.SIGSTOP)
        second = running.image("second")
        took, _ = run(tool.dump(pid, second, ["--leave-running", "--since", running.image("first")]), directory)
        pages = (os.path.getsize(os.path.join(second, name)) for name in os.listdir(second) if name.startswith("pages-"))
        return {"took": took, "written": sum(pages)}


# Pages of redis's are larger than its values alone: so many of 1,000 bytes make a MiB.
VALUES_PER_MIB = 900
# How long redis is watched before its checkpoint, seconds.
BEFORE = 5


def redis_mib():
    """As much data as leaves room for an image of it in memory, 8 GiB at most."""
    with open("/proc/meminfo", encoding="ascii") as file:
        available = next(int(line.split()[1]) >> 10 for line in file if line.startswith("MemAvailable"))
    return min(8192, available * 2 // 5)


class Client:
    """A client of redis's own protocol, which writes one value after the other and notes when each was answered."""

    def __init__(self, path):
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.connect(path)
        self.answered = []
        self.ends = False
        self.thread = threading.Thread(target=self.write_on)

    def ask(self, *words):
        parts = [f"*{len(words)}\r\n", *(f"${len(word)}\r\n{word}\r\n" for word in words)]
        self.socket.sendall("".join(parts).encode())
        return self.socket.recv(1 << 16).decode()

    def write_on(self):
        number = 0
        while not self.ends:
            begun = time.monotonic()
            self.ask("SET", f"probe:{number % 1000}", "x" * 1000)
            self.answered.append((begun, time.monotonic() - begun))
            number += 1

    def commands(self):
        """How many commands redis has done."""
        stats = self.ask("INFO", "stats")
        return int(stats.split("total_commands_processed:")[1].split("\r")[0])

    def slowest(self, since, until):
        """Of 1,000 requests, how long the slowest but one took."""
        took = sorted(took for begun, took in self.answered if since <= begun < until)
        return took[len(took) * 999 // 1000]


@contextlib.contextmanager
def loaded_redis(load, directory):
    """Redis with much data, and redis-benchmark with 50 clients that write to it."""
    home = tempfile.mkdtemp(prefix="redis.", dir=directory)
    path, mib = os.path.join(home, "socket"), redis_mib()
    subprocess.check_call([load, "warm", str(mib)])
    quiet = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    options = ["--port", "0", "--unixsocket", path, "--save", "", "--appendonly", "no", "--dir", home,
               "--enable-debug-command", "yes"]
    children = [subprocess.Popen(["redis-server", *options], start_new_session=True, cwd=home, **quiet)]
    try:
        while not os.path.exists(path):
            time.sleep(0.01)
        filler = Client(path)
        filler.ask("DEBUG", "POPULATE", str(mib * VALUES_PER_MIB), "key", "1000")
        writes = ["-s", path, "-t", "set", "-c", "50", "-d", "1000", "-r", "1000000", "-n", "1000000000", "-q"]
        children.append(subprocess.Popen(["redis-benchmark", *writes], **quiet))
        yield children[0].pid, path
    finally:
        for child in reversed(children):
            child.kill()
            child.wait()
        shutil.rmtree(home, ignore_errors=True)


def redis(tool, load, directory):
    """A checkpoint of it that leaves it running: its freeze, how long a request takes at most but for one in 1,000,
    against that before, and how much less redis does meanwhile."""
    with loaded_redis(load, directory) as (pid, path):
        probe, asker = Client(path), Client(path)
        probe.thread.start()
        try:
            time.sleep(2)
            begun, at_first = time.monotonic(), asker.commands()
            time.sleep(BEFORE)
            middle, by_then = time.monotonic(), asker.commands()
            images = tempfile.mkdtemp(prefix="pauses.", dir=directory)
            _, output = run(tool.dump(pid, images, ["--leave-running", "--ext-unix-sk"]), directory)
            frozen = tool.frozen_us(images, output) / 1e6
            end, at_last = time.monotonic(), asker.commands()
        finally:
            probe.ends = True
            probe.thread.join()
        before, during = (by_then - at_first) / (middle - begun), (at_last - by_then) / (end - middle)
        slower = probe.slowest(middle, end) / probe.slowest(begun, middle)
        shutil.rmtree(images, ignore_errors=True)
        return {"frozen": frozen, "slower requests": slower, "slow-down": 1 - during / before}
