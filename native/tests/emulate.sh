#!/bin/sh
# Runs PROGRAM, linked statically, on an emulated processor with AVX-512, AVX-VNNI and all that came
# before: a Linux kernel in Bochs, whose disk is made here. Its output and status are the program's.
#
#   ./emulate.sh PROGRAM [ARGUMENT...]    (arguments without spaces)
#
# LIMIT: seconds that it may take, 3600. KERNEL: what boots, the newest in /boot unless given. BOCHS: the
# emulator, 3.0 or newer, configured by
#
#   --enable-x86-64 --enable-avx --enable-evex --enable-all-optimizations --with-nogui
set -eu
bochs=${BOCHS:-bochs}
kernel=${KERNEL:-$(ls -t /boot/vmlinuz-* 2>/dev/null | head -n 1)}
here=$(dirname "$0")

die() { echo "emulate.sh: $*" >&2; exit 2; }
[ $# -gt 0 ] || die "which PROGRAM?"
command -v "$bochs" >/dev/null || die "needs Bochs, BOCHS=...; how to build it stands in $0"
[ -r "$kernel" ] || die "needs a kernel that can be read, KERNEL=...; on Debian: apt-get install linux-image-cloud-amd64"
# 2.7 multiplies in GF(2) as no processor does, and has no model with AVX-VNNI.
"$bochs" --help cpu 2>&1 | grep -q sapphire_rapids || die "needs Bochs 3.0 or newer"

made=$(mktemp -d)
machine=
trap '[ -z "$machine" ] || kill "$machine" 2>/dev/null || true; rm -rf "$made"' EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP
mkdir -p "$made/root/dev" "$made/disk"
"${CC:-gcc}" -O2 -Wall -Wextra -Werror -static "$here/emulated_init.c" -o "$made/root/init"
cp "$1" "$made/root/program"
shift
(cd "$made/root" && find . | cpio -o -H newc --quiet) >"$made/disk/initrd"
cp "$kernel" "$made/disk/vmlinuz"
cp /usr/lib/ISOLINUX/isolinux.bin /usr/lib/syslinux/modules/bios/ldlinux.c32 "$made/disk/"
# clearcpuid=580: without fast short REP MOVSB, with which the kernel does not come up here; no ACPI, for the
# way into system management mode ends in a panic of the emulator. A kernel that fails ends there, too.
# Behind -- stand the arguments of the first process.
cat >"$made/disk/isolinux.cfg" <<END
DEFAULT linux
LABEL linux
KERNEL vmlinuz
APPEND initrd=initrd console=ttyS0 quiet mitigations=off acpi=off clearcpuid=580 panic=-1 reboot=triple -- $*
END
xorriso -as mkisofs -quiet -o "$made/disk.iso" -b isolinux.bin -c boot.cat -no-emul-boot \
    -boot-load-size 4 -boot-info-table "$made/disk" 2>/dev/null
cat >"$made/settings" <<END
cpu: model=sapphire_rapids, ips=50000000, reset_on_triple_fault=0
megs: 512
romimage: file=/usr/share/bochs/BIOS-bochs-latest
vgaromimage: file=/usr/share/vgabios/vgabios.bin
ata0-master: type=cdrom, path=$made/disk.iso, status=inserted
boot: cdrom
com1: enabled=1, mode=file, dev=$made/console
com2: enabled=1, mode=file, dev=$made/out
log: $made/log
panic: action=fatal
error: action=ignore
info: action=ignore
display_library: nogui
END
touch "$made/console" "$made/out" "$made/log"
timeout "${LIMIT:-3600}" "$bochs" -q -f "$made/settings" </dev/null >"$made/said" 2>&1 &
machine=$!
wait "$machine" || true # turned off, it ends with 1
machine=
sed -e '0,/^emulated: begins/d' -e 's/emulated: status [0-9]*\r*$//' -e '${/^$/d;}' "$made/console" >&2
cat "$made/out"
status=$(sed -n 's/.*emulated: status \([0-9]*\).*/\1/p' "$made/console")
[ -n "$status" ] || { tail -n 5 "$made/said" "$made/console" "$made/log" >&2; die "the machine ended early"; }
exit "$status"
