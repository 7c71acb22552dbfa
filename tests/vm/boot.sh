#!/bin/sh
# The guest's system: what a machine with systemd would have mounted, then the command, whose status goes last to its
# output. Cgroup v2 alone, every controller, and this script in a leaf; or, if the test wants it, systemd, with the
# command as its one service.
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LANG=C.UTF-8 RUNTIMED_GUEST=1
. /run/guest/settings

prepare() {
    mkdir -p /dev/pts /dev/shm /dev/mqueue /run/lock
    mount -t devpts -o mode=0620,ptmxmode=0666,gid=5 devpts /dev/pts
    mount -t tmpfs -o mode=1777 shm /dev/shm
    mount -t mqueue mqueue /dev/mqueue
    mount -t securityfs securityfs /sys/kernel/security
    mount -t bpf bpf /sys/fs/bpf
    mount -t cgroup2 -o nsdelegate,memory_recursiveprot cgroup2 /sys/fs/cgroup
    mkdir /sys/fs/cgroup/init
    echo $$ > /sys/fs/cgroup/init/cgroup.procs
    for name in $(cat /sys/fs/cgroup/cgroup.controllers); do echo "+$name" > /sys/fs/cgroup/cgroup.subtree_control; done
    ip link set lo up
    mkdir -p /lib/modules && ln -sfn "$MODULES" "/lib/modules/$(uname -r)"
    for program in criu crun apparmor_parser; do [ ! -e "$PROGRAMS/$program" ] || ln -sf "$PROGRAMS/$program" /usr/local/sbin/; done
    [ -e /etc/apparmor.d/abstractions ] || { rm -rf /etc/apparmor.d; ln -s "$PROGRAMS/apparmor.d" /etc/apparmor.d; }
    [ ! -e "$PROGRAMS/libyajl.so.2" ] || ln -sf "$PROGRAMS/libyajl.so.2" /usr/local/lib/ && /sbin/ldconfig
    mkdir /run/checkout && mount --bind "$DIRECTORY" /run/checkout
    if [ -b /dev/vda ]; then
        mkdir -p /data
        mount -t ext4 -o "$DATA_OPTIONS" /dev/vda /data || echo 'the data disk cannot be mounted' > /dev/ttyS1
        mkdir -p -m 1777 /data/tmp
        mount --bind /data/tmp /tmp
    else
        mount -t tmpfs -o mode=1777 tmp /tmp
    fi
    if [ ! -e "$DIRECTORY/pyproject.toml" ]; then  # it is below what has just been mounted
        mkdir -p "$DIRECTORY"
        mount --bind /run/checkout "$DIRECTORY"
    fi
    umount /run/checkout
}

run() {
    stty -F /dev/ttyS1 raw -echo
    cd "$DIRECTORY" || exit
    sh /run/guest/command < /dev/null > /dev/ttyS1 2>&1
    echo "guest: exit status $?" > /dev/ttyS1
    cd /
    umount "$DIRECTORY" /tmp /data 2> /dev/null
    busybox poweroff -f
}

case $1 in
    run) run ;;
    *)
        prepare
        [ -n "$SYSTEMD" ] || run
        echo $$ > /sys/fs/cgroup/cgroup.procs
        rmdir /sys/fs/cgroup/init
        mkdir -p /run/systemd/system
        printf '[Unit]\nDefaultDependencies=no\n[Service]\nExecStart=/run/guest/boot run\nDelegate=yes\n' \
            > /run/systemd/system/guest.service
        exec /usr/lib/systemd/systemd --unit=guest.service
        ;;
esac
