# Starts docker's daemon, which starts a containerd, and gives it an image of busybox.
set -e
mkdir -p /etc/docker /etc/criu
# Without CAP_SYS_RESOURCE no limit can be raised to what docker would choose.
cat >/etc/docker/daemon.json <<'C'
{"experimental": true, "storage-driver": "overlay2",
 "default-ulimits": {"nofile": {"Name": "nofile", "Hard": 20000, "Soft": 20000}}}
C
dockerd >/tmp/dockerd.log 2>&1 &
for _ in {1..200}; do
    docker version >/dev/null 2>&1 && break
    sleep 0.05
done
docker import /busybox.tar busybox || { tail /tmp/dockerd.log >&2; false; }
