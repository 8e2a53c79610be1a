# What run and run-systemd share: the tools, Debian's kernel, the emulator and the one way to hear how a command inside ended.
# Sourced, never run. Everything fetched lies in $cache and is fetched once.

cache=${VM_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/sq-agent-vm}

die() { echo "${0##*/}: $*" >&2; exit 2; }
usage() { sed -n '2,/^set -/{/^#/s/^# \{0,1\}//p}' "$0" >&2; exit 2; }

# need TOOL=PACKAGE...: installs the Debian packages of the tools that are not there.
need() {
  local pair missing=()
  for pair in "$@"; do command -v "${pair%%=*}" >/dev/null || missing+=("${pair#*=}"); done
  [ ${#missing[@]} -gt 0 ] || return 0
  [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null || die "install these Debian packages first: ${missing[*]}"
  echo "installing ${missing[*]}" >&2
  { apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}"; } >"$work/apt" 2>&1 \
    || { tail -20 "$work/apt" >&2; die "apt-get could not install ${missing[*]}"; }
}

# unpack_kernel PACKAGE.deb DIRECTORY: DIRECTORY/vmlinuz, and DIRECTORY/modules with the drivers of a virtio disk in the order in which
# they load. A half-written cache is never taken for a whole one: the directory appears by rename.
unpack_kernel() {
  local module
  rm -rf "$2.part"; mkdir -p "$2.part/modules"
  dpkg -x "$1" "$work/kernel"
  cp "$work"/kernel/boot/vmlinuz-* "$2.part/vmlinuz"
  for module in virtio_ring virtio virtio_pci_legacy_dev virtio_pci_modern_dev virtio_pci virtio_blk; do
    find "$work/kernel" -name "$module.ko*" -exec cp {} "$2.part/modules/" \;
    [ ! -e "$2.part/modules/$module.ko.xz" ] || xz -d "$2.part/modules/$module.ko.xz"
    [ ! -e "$2.part/modules/$module.ko" ] || echo "$module.ko" >>"$2.part/modules/order"
  done
  rm -rf "$work/kernel" "$2"; mv "$2.part" "$2"
}

# as_initrd DIRECTORY FILE: packs it as an initial file system.
as_initrd() { (cd "$1" && find . -print0 | cpio -0 -o -H newc --quiet -R 0:0) | gzip -1 >"$2"; }

# busybox_root DIRECTORY: a root file system of busybox alone.
busybox_root() {
  local applet
  mkdir -p "$1"/{bin,usr/bin,proc,sys,dev,tmp,run,etc,var/lib,lib64}
  cp "$(command -v busybox)" "$1/bin/busybox"
  for applet in $(busybox --list); do [ "$applet" = busybox ] || ln -s busybox "$1/bin/$applet"; done
}

# emulate KERNEL INITRD COMMAND-LINE [MORE QEMU OPTIONS]: one boot, from $mem, $cpus and $limit. Prints what stands between the lines
# "@@begin@@" and "@@exit N@@" on the console and returns N; 124 when the machine ended, or its time did, without saying so.
emulate() {
  local kernel=$1 initrd=$2 line=$3 code
  shift 3
  : >"$work/console"
  { timeout --foreground "$limit" qemu-system-x86_64 -accel tcg,thread=multi -cpu max -m "$mem" -smp "$cpus" -display none -monitor none \
      -serial stdio -no-reboot -nic none -kernel "$kernel" -initrd "$initrd" "$@" \
      -append "console=ttyS0 quiet loglevel=1 panic=-1 $line" </dev/null 2>"$work/qemu" || true; } \
    | stdbuf -oL tr -d '\r' | tee "$work/console" \
    | awk '/@@begin@@/ { on = 1; next } /@@exit [0-9]+@@/ { on = 0 } on { print; fflush() }'
  code=$(sed -n 's/.*@@exit \([0-9]*\)@@.*/\1/p' "$work/console" | tail -1)
  [ -z "$code" ] || return "$code"
  echo "${0##*/}: the machine did not say how the command ended ($limit s at most); the end of its console:" >&2
  { cat "$work/qemu"; tail -15 "$work/console"; } | sed 's/^/  | /' >&2
  return 124
}

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir -p "$cache"
