"""Containers of real runtimes, for scripts/bench: what part of a checkpoint or a restore is criu's, whichever criu the
runtime finds, and how long the runtime's whole command takes."""

import json
import os
import shutil
import subprocess
import tempfile
import time

HERE = os.path.dirname(os.path.realpath(__file__))
MOUNTS = 100
PROCESSES = 50
# Of 1,000 bytes each, 900 of which make a MiB. A page of zeros, of which redis makes large ones, is not stored.
REDIS_KEYS = 200 * 900
# Everything that such a command could find on a Debian.
SYSTEM_PATH = "/usr/sbin:/usr/bin:/sbin:/bin"
DIRECTORIES = ["bin", "proc", "sys", "dev", "tmp", "etc", "root", "run", "var", "state"]
COUNTER = "i=0; while :; do i=$((i+1)); echo $i >>/state/count; sleep 0.02; done"


def missing():
    """The programs that these cases want and this machine lacks."""
    return [name for name in ("runc", "podman", "conmon", "busybox", "redis-server") if not shutil.which(name)]


class Runtimes:
    """Runtimes that find a tool's program under the name criu, with state and storage of their own."""

    def __init__(self, tool, directory):
        self.name = tool.name
        # Short, since podman takes no long names.
        self.home = tempfile.mkdtemp(prefix=tool.name[:2], dir=directory)
        self.log = self.at("calls")
        programs = self.at("programs")
        os.mkdir(programs)
        subprocess.check_call(["cc", "-O2", "-Wall", f'-DREAL="{tool.swrk}"', f'-DLOG="{self.log}"', "-o",
                               os.path.join(programs, "criu"), os.path.join(HERE, "stopwatch.c")])
        with open(self.at("containers.conf"), "w") as file:
            # What podman would choose cannot be had without CAP_SYS_RESOURCE.
            file.write('[containers]\ndefault_ulimits = ["nofile=20000:20000", "nproc=10000:10000"]\n')
        self.environment = {"PATH": f"{programs}:{SYSTEM_PATH}", "HOME": self.home,
                            "CONTAINERS_CONF": self.at("containers.conf")}
        self.own_words = tool.container_words()
        os.mkdir(self.at("words"))
        # The podman that a tool finds which knows containers by their names: with the storage of this bench.
        with open(os.open(self.at("words", "podman"), os.O_CREAT | os.O_WRONLY, 0o755), "w") as file:
            podman = [shutil.which("podman"), *self.podman()[1:]]
            file.write("#!/bin/sh\nexec " + " ".join(podman) + ' "$@"\n')

    def at(self, *names):
        return os.path.join(self.home, *names)

    def archive(self, what, path):
        """Seconds that it takes to `checkpoint` or `restore` redis by an archive."""
        environment = dict(self.environment)
        if self.own_words:
            command = [*self.own_words, what, "podman:redis", {"checkpoint": "-o", "restore": "-i"}[what], path]
            self.environment["PATH"] = self.at("words") + ":" + environment["PATH"]
        else:
            how = ["--compress", "zstd", "--export", path, "redis"] if what == "checkpoint" else ["--import", path]
            command = self.podman("container", what, *how)
        try:
            os.sync()
            begun = time.perf_counter()
            self.run(command)
            return time.perf_counter() - begun
        finally:
            self.environment = environment

    def run(self, command):
        """Runs it; what it says. Raises OSError with its last line if it fails."""
        with open(self.at("said"), "w") as said, open(self.at("errors"), "w") as errors:
            # What runc starts would keep these files, which CRIU does not carry.
            kept = subprocess.DEVNULL if "--detach" in command and command[0] == "runc" else None
            code = subprocess.call(command, stdin=subprocess.DEVNULL, stdout=kept or said, stderr=kept or errors,
                                   env=self.environment, cwd=self.home)
        if code != 0:
            with open(self.at("errors"), errors="replace") as file:
                lines = file.read().strip().splitlines() or [f"exit status {code}"]
            raise OSError(f"{command[0]}: {lines[-1]}")
        with open(self.at("said")) as file:
            return file.read().strip()

    def timed(self, command):
        """Runs it; seconds of the whole, and of the longest call of criu in it."""
        open(self.log, "w").close()
        os.sync()
        begun = time.perf_counter()
        self.run(command)
        whole = time.perf_counter() - begun
        # The watchers write a moment later, and of a call or two for the version as well.
        time.sleep(0.05)
        with open(self.log) as file:
            return whole, max(float(line) for line in file)

    def runc(self, *arguments):
        return ["runc", "--root", self.at("runc"), *arguments]

    def podman(self, *arguments):
        storage = ["--root", self.at("storage"), "--runroot", self.at("run"), "--tmpdir", self.at("tmp")]
        how = ["--runtime", "runc", "--cgroup-manager", "cgroupfs", "--events-backend", "none"]
        return ["podman", *storage, *how, *arguments]


def root_file_system(root, programs=()):
    """Busybox under all of its names, and programs of this host with their libraries."""
    for name in DIRECTORIES:
        os.makedirs(os.path.join(root, name))
    shutil.copy(shutil.which("busybox"), os.path.join(root, "bin/busybox"))
    for name in subprocess.check_output(["busybox", "--list"], text=True).split():
        if name != "busybox":
            os.symlink("busybox", os.path.join(root, "bin", name))
    for program in programs:
        libraries = subprocess.check_output(["ldd", program], text=True).split()
        for path in [program, *(word for word in libraries if word.startswith("/"))]:
            target = root + path
            os.makedirs(os.path.dirname(target), exist_ok=True)
            if not os.path.exists(target):
                shutil.copy(os.path.realpath(path), target)


def write_config(bundle, name, script, mounts=()):
    """What `runc spec` writes, without a terminal and without limits that cannot be raised."""
    subprocess.check_call(["runc", "spec"], cwd=bundle)
    path = os.path.join(bundle, "config.json")
    with open(path) as file:
        config = json.load(file)
    config["process"].update(terminal=False, args=["sh", "-c", script], rlimits=[])
    config["root"]["readonly"] = False
    config["mounts"].extend(mounts)
    config["linux"]["cgroupsPath"] = f"/{name}"
    with open(path, "w") as file:
        json.dump(config, file)


class Runc:
    """A container of runc that runs a script, carried by its commands: what of them is criu's."""

    def __init__(self, script, count=1, mounts=0):
        self.script, self.count, self.mounts = script, count, mounts

    def trip(self, runtimes):
        bundle = tempfile.mkdtemp(prefix="bundle.", dir=runtimes.home)
        root, images = os.path.join(bundle, "rootfs"), os.path.join(bundle, "images")
        name = f"bench-{os.getpid()}-{os.path.basename(bundle)[7:]}"
        root_file_system(root)
        write_config(bundle, name, self.script, [self.mount(bundle, number) for number in range(self.mounts)])
        try:
            runtimes.run(runtimes.runc("run", "--detach", "--bundle", bundle, name))
            self.wait_running(runtimes, name)
            how = ["--image-path", images, "--work-path", images]
            _, dump = runtimes.timed(runtimes.runc("checkpoint", *how, name))
            _, restore = runtimes.timed(runtimes.runc("restore", "--detach", "--bundle", bundle, *how, name))
            self.wait_running(runtimes, name)
            return {"dump": dump, "restore": restore}
        finally:
            # The bundle stays until the end: ext4 searches long for a free inode while many were deleted a moment ago.
            subprocess.call(runtimes.runc("delete", "--force", name), stderr=subprocess.DEVNULL)

    def mount(self, bundle, number):
        """Binds and tmpfs in turn."""
        if number % 2:
            return {"destination": f"/state/m{number}", "type": "tmpfs", "source": "tmpfs", "options": ["size=64k"]}
        source = os.path.join(bundle, f"m{number}")
        os.mkdir(source)
        return {"destination": f"/state/m{number}", "type": "bind", "source": source, "options": ["bind"]}

    def wait_running(self, runtimes, name):
        for _ in range(1000):
            if len(json.loads(runtimes.run(runtimes.runc("ps", "--format", "json", name)))) >= self.count:
                return
            time.sleep(0.005)
        raise OSError(f"{name} does not have {self.count} processes")


class Redis:
    """Redis with data, in a container of podman on its bridge. `warm` brings memory in before each timed step."""

    def __init__(self, warm):
        self.warm = warm

    def prepare(self, runtimes):
        if os.path.exists(runtimes.at("redis.tar")):
            return
        redis = [shutil.which("redis-server"), shutil.which("redis-cli")]
        root_file_system(runtimes.at("redis"), redis)
        runtimes.run(["tar", "-C", runtimes.at("redis"), "-cf", runtimes.at("redis.tar"), "."])
        runtimes.run(runtimes.podman("import", "--quiet", runtimes.at("redis.tar"), "redis"))

    def trip(self, runtimes):
        self.prepare(runtimes)
        server = ["redis-server", "--save", "", "--enable-debug-command", "yes"]
        runtimes.run(runtimes.podman("run", "--detach", "--name", "redis", "redis", *server))
        try:
            self.ask(runtimes, "PING", "PONG")
            self.ask(runtimes, "DEBUG POPULATE %d key 1000" % REDIS_KEYS, "OK")
            self.warm()
            whole_dump, dump = runtimes.timed(runtimes.podman("container", "checkpoint", "redis"))
            self.warm()
            whole_restore, restore = runtimes.timed(runtimes.podman("container", "restore", "redis"))
            self.ask(runtimes, "DBSIZE", str(REDIS_KEYS))
            figures = {"dump": dump, "restore": restore, "whole dump": whole_dump, "whole restore": whole_restore}
            archive = runtimes.at("redis.tar.zst")
            self.warm()
            figures["archive"] = runtimes.archive("checkpoint", archive)
            runtimes.run(runtimes.podman("rm", "redis"))
            self.warm()
            figures["from archive"] = runtimes.archive("restore", archive)
            self.ask(runtimes, "DBSIZE", str(REDIS_KEYS))
            return figures
        finally:
            subprocess.call(runtimes.podman("rm", "--force", "--time", "0", "redis"), stdout=subprocess.DEVNULL,
                            stderr=subprocess.DEVNULL, env=runtimes.environment)

    @staticmethod
    def ask(runtimes, question, answer):
        said = ""
        for _ in range(100):
            try:
                said = runtimes.run(runtimes.podman("exec", "redis", "redis-cli", *question.split()))
            except OSError as error:
                said = str(error)
            if said == answer:
                return
            time.sleep(0.02)
        raise OSError(f"redis answers {question} with: {said}")


def cases(directory, tools, warm):
    """Each case: its lines (what, figure, bar in seconds), and what runs it once with a tool."""
    runtimes = {tool.name: Runtimes(tool, directory) for tool in tools}
    family = f"for i in $(seq {PROCESSES - 1}); do sleep 100000 & done; wait"

    def runs(case):
        return lambda tool: case.trip(runtimes[tool.name])

    yield [("runc: a counter of busybox: dump", "dump", 0.025), ("  restore", "restore", 0.025)], runs(Runc(COUNTER))
    yield [("runc: 100 mounts, 50 processes: dump", "dump", 0.080), ("  restore", "restore", 0.120)], runs(
        Runc(family, PROCESSES, MOUNTS))
    yield [("podman: redis with 200 MB: dump", "dump", 0.120), ("  restore", "restore", 0.120),
           ("  podman container checkpoint", "whole dump", 0.450),
           ("  podman container restore", "whole restore", 0.300),
           ("  checkpoint into an archive, .tar.zst", "archive", 0.800),
           ("  restore from it", "from archive", 0.600)], runs(Redis(warm))


def clean(directory):
    """Lets go of what podman has mounted in there."""
    with open("/proc/self/mountinfo") as file:
        mounted = [line.split()[4] for line in file]
    for path in sorted((path for path in mounted if path.startswith(directory + "/")), reverse=True):
        subprocess.call(["umount", "--lazy", path])
