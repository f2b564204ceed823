#!/bin/sh
# Runs the command of `xtask run --exec`, marks what it prints, powers off.
dmesg -n 1
stty -F /dev/console raw -echo
mark=$(cat /steward/mark)
cd /root
printf '\nSTEWARD-BEGIN-%s\n' "$mark"
sh -c "$(cat /steward/command)" </dev/null
status=$?
printf 'STEWARD-END-%s-%d\n' "$mark" "$status"
sync
poweroff -f
