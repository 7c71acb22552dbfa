#!/bin/busybox sh
# The guest's first process: the host's / over virtiofs, read only, under a file system in memory, becomes the root.
/bin/busybox mkdir -p /bin /proc /sys /dev /lower /upper /root
/bin/busybox --install -s /bin
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
while read -r module; do insmod "$module"; done < /modules/order
mount -t virtiofs -o ro root /lower || poweroff -f
mount -t tmpfs -o mode=0755 upper /upper
mkdir -p /upper/upper /upper/work
mount -t overlay -o lowerdir=/lower,upperdir=/upper/upper,workdir=/upper/work overlay /root || poweroff -f
# What this initramfs brings would go with it.
for part in proc sys dev tmp run; do mkdir -p "/root/$part"; done
mount -t tmpfs -o mode=0755 run /root/run
cp -r /guest /root/run/guest
for part in proc sys dev; do mount --move "/$part" "/root/$part"; done
exec switch_root /root /run/guest/boot
