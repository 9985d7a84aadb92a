"""How short a tree stands still that goes on: 1 GiB at rest, and 1 GiB of which 20,000 random pages a second are written
to; and what an image since another has and takes. Part of scripts/bench."""

import os
import shutil
import signal
import subprocess
import tempfile
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
