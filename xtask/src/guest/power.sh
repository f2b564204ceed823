#!/bin/sh
# acpid runs this when the power button is pressed.
exec poweroff -f
