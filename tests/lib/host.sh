# tests/lib/host.sh: what this machine has and what it lacks. Sourced by tests/run and tests/demo.
# shellcheck shell=bash

# Program and the Debian package that brings it; `:vm` marks what only the VM needs.
needs=(
    ip=iproute2 ss=iproute2 ping=iputils-ping iperf3=iperf3 nft=nftables iptables=iptables tcpdump=tcpdump wg=wireguard-tools
    wireguard-go=wireguard-go unshare=util-linux setpriv=util-linux hostname=hostname cc=gcc c++=g++ valgrind=valgrind
    /usr/lib/cni/bridge=containernetworking-plugins
    systemd-nspawn=systemd-container mmdebstrap=mmdebstrap
    qemu-system-x86_64=qemu-system-x86:vm busybox=busybox-static:vm cpio=cpio:vm depmod=kmod:vm xz=xz-utils:vm
)

as_root() {
    if [ "$(id -u)" = 0 ]; then "$@"; else sudo -E env "PATH=$PATH" "$@"; fi
}

# Packages that are missing, one a line; with `vm`, those for the VM too.
missing_packages() {
    local need program package
    for need in "${needs[@]}"; do
        program=${need%%=*} package=${need#*=}
        case $package in
            *:vm) [ "${1-}" = vm ] || continue ;;
        esac
        PATH=$PATH:/usr/sbin:/sbin command -v "$program" >/dev/null && continue
        [ "$program" = /usr/lib/cni/bridge ] && [ -x /opt/cni/bin/bridge ] && continue
        echo "${package%:vm}"
    done | sort -u
    # A dynamically linked busybox is no use in an initramfs.
    if [ "${1-}" = vm ] && ldd "$(command -v busybox)" >/dev/null 2>&1; then echo busybox-static; fi
    if [ "${1-}" = vm ] && ! command -v qemu-system-x86_64 >/dev/null; then
        # A package of its own from Debian 13 on; before, qemu-system-common brings it.
        [ -z "$(apt-cache search --names-only '^virtiofsd$' 2>/dev/null)" ] || echo virtiofsd
    fi
}

# Installs what is missing; says nothing when there is nothing to do.
install_packages() {
    local missing
    mapfile -t missing < <(missing_packages "${1-}")
    [ ${#missing[@]} = 0 ] && return
    echo "installing: ${missing[*]}"
    command -v apt-get >/dev/null || {
        echo "error: ${missing[*]} missing; this is no Debian or Ubuntu, so they cannot be installed from here; install them" >&2
        return 1
    }
    as_root apt-get -qq update || echo "warning: the package lists could not be updated; trying with the old ones" >&2
    as_root env DEBIAN_FRONTEND=noninteractive apt-get -qq install -y --no-install-recommends "${missing[@]}" >/dev/null
}

# Whether this kernel can make WireGuard devices (tried in a namespace of its own).
kernel_has_wireguard() {
    as_root unshare --net ip link add wg0 type wireguard 2>/dev/null
}

# Whether this machine has a Rust toolchain; says how to get one.
need_cargo() {
    command -v cargo >/dev/null && return
    echo "error: no cargo; the programs are built from source; install Rust (https://rustup.rs, or Debian's rustup)" >&2
    return 1
}

# Whether fuzz targets can be built here: a nightly compiler and cargo-fuzz; installs what is missing.
need_fuzz() {
    need_cargo || return
    if ! cargo +nightly --version >/dev/null 2>&1; then
        command -v rustup >/dev/null || {
            echo "error: no nightly compiler; fuzz targets need its sanitizers; install rustup, then a nightly toolchain" >&2
            return 1
        }
        echo "installing: a nightly toolchain"
        rustup toolchain install nightly --profile minimal --no-self-update >/dev/null || {
            echo "error: no nightly compiler; \`rustup toolchain install nightly\` failed, its reason is above; install it, or" \
                "name the parts of tests/run that you want without fuzz" >&2
            return 1
        }
    fi
    command -v cargo-fuzz >/dev/null && return
    echo "installing: cargo-fuzz"
    cargo install --quiet --locked cargo-fuzz || {
        echo "error: no cargo-fuzz; \`cargo install cargo-fuzz\` failed, its reason is above; install it, or name the parts" \
            "of tests/run that you want without fuzz" >&2
        return 1
    }
}
