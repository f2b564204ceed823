#!/bin/busybox sh
# The first process of Steward's default guest.
/bin/busybox mount -t devtmpfs dev /dev
/bin/busybox mount -t proc proc /proc
/bin/busybox mount -t sysfs sys /sys
exec </dev/console >/dev/console 2>&1
/bin/busybox --install -s /bin
export PATH=/bin HOME=/root TERM=vt102 PS1='root@\h:\w# '
hostname -F /etc/hostname
mkdir -p /dev/pts
mount -t devpts devpts /dev/pts
ln -s /proc/self/fd /dev/fd
# xtask tells the size of the terminal on the kernel's command line.
if [ -n "$LINES" ] && [ -n "$COLUMNS" ]; then stty -F /dev/ttyS0 rows "$LINES" cols "$COLUMNS"; fi
for module in /lib/modules/*.ko; do insmod "$module"; done
# Where acpid writes its log: it ends at once if it can't.
mkdir -p /var/log /run
ln -s /run /var/run
acpid
if [ -f /steward/command ]; then exec steward-exec; fi
cat <<'TEXT'

Debian's kernel, as a guest of Steward.
`poweroff` ends it, `reboot` restarts it; the tools are busybox's.

TEXT
# A shell with job control that comes back when it is left.
while :; do
    cd /root
    setsid cttyhack sh -l
done
