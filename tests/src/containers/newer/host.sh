# What a host of its own begins with, as the first process of its namespaces. Arguments: root file system, directory for
# what it writes, cgroup layout (v1, hybrid or v2), the program that is criu there. Says its pid when it is ready, and
# ends with everything in it when its standard input does.
set -eu
root=$1 own=$2 layout=$3 program=$4
read -r pid _ </proc/self/stat
mount --make-rprivate /
mkdir -p "$own"/{upper,work,host,containers,containerd,docker}
host=$own/host
mount -t overlay -o "lowerdir=$root,upperdir=$own/upper,workdir=$own/work" overlay "$host"
mount -t proc proc "$host/proc"
mount -t sysfs sysfs "$host/sys"
mount -t tmpfs -o mode=755 dev "$host/dev"
for device in null zero full random urandom tty net/tun; do
    mkdir -p "$(dirname "$host/dev/$device")"
    [ ! -e "/dev/$device" ] || cp -a "/dev/$device" "$host/dev/$device"
done
mkdir "$host"/dev/{pts,shm,mqueue}
mount -t devpts -o newinstance,ptmxmode=0666,mode=620,gid=5 devpts "$host/dev/pts"
ln -s pts/ptmx "$host/dev/ptmx"
ln -s /proc/self/fd "$host/dev/fd"
mount -t tmpfs shm "$host/dev/shm"
mount -t mqueue mqueue "$host/dev/mqueue"
mount -t tmpfs -o mode=755 run "$host/run"
mount -t tmpfs -o mode=1777 tmp "$host/tmp"
cgroups=$host/sys/fs/cgroup
case $layout in
v2) mount -t cgroup2 cgroup2 "$cgroups" ;;
*)
    mount -t tmpfs -o mode=755 cgroup "$cgroups"
    for one in cpu cpuacct cpuset memory devices freezer blkio pids; do
        mkdir "$cgroups/$one"
        mount -t cgroup -o "$one" cgroup "$cgroups/$one"
    done
    mkdir "$cgroups/systemd"
    mount -t cgroup -o none,name=systemd cgroup "$cgroups/systemd"
    [ "$layout" = v1 ] || { mkdir "$cgroups/unified" && mount -t cgroup2 cgroup2 "$cgroups/unified"; }
    ;;
esac
# Overlays of containers cannot lie on an overlay.
for one in containers containerd docker; do
    mkdir -p "$host/var/lib/$one"
    mount --bind "$own/$one" "$host/var/lib/$one"
done
mkdir -p "$host/usr/local/sbin" "$host/state" "$host/etc/containers"
touch "$host/usr/local/sbin/cryonaut"
mount --bind "$program" "$host/usr/local/sbin/cryonaut"
ln -sf cryonaut "$host/usr/local/sbin/criu"
# Without CAP_SYS_RESOURCE no limit can be raised to what podman would choose; not every layout has pids.
cat >"$host/etc/containers/containers.conf" <<C
[containers]
default_ulimits = ["nofile=20000:20000", "nproc=10000:10000"]
pids_limit = 0
[engine]
cgroup_manager = "cgroupfs"
events_logger = "none"
C
cd "$host"
mkdir -p .old
pivot_root . .old
cd /
umount -l /.old
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
ip link set lo up
echo 1 >/proc/sys/net/ipv4/ip_forward
# An image of busybox under all of its names.
mkdir -p /busybox/{bin,proc,sys,dev,tmp,etc,root,run,var,state}
cp /bin/busybox /busybox/bin/
chroot /busybox /bin/busybox --install -s /bin
chmod 777 /busybox/state /state
tar -C /busybox -cf /busybox.tar .
! command -v podman >/dev/null || podman import --quiet /busybox.tar busybox >/dev/null 2>&1
echo "$pid"
# Reaps, since it is the first process.
read -r _ || true
