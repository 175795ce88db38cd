# What the scripts of this folder share: asking before anything is installed or started, and doing it.
#
# Sourced, not run. At a terminal a person is asked first; in CI (CI set) and without a terminal nothing
# can be asked, so what is missing is installed. All of this speaks on stderr: stdout is for answers.
# shellcheck shell=bash

# agreed QUESTION: whether it may be done.
agreed() {
    local answer
    if [ -n "${CI:-}" ] || [ ! -t 0 ]; then return 0; fi
    # Not by read's own prompt, which vanishes where stderr is no terminal.
    printf '%s [Y/n] ' "$1" >&2
    read -r answer || return 1
    case "$answer" in "" | [Yy]*) ;; *) return 1 ;; esac
}

# as_root COMMAND...: sudo may ask for a password only where there is a person to answer.
as_root() {
    if [ "$(id -u)" = 0 ]; then
        "$@"
    elif [ -z "${CI:-}" ] && [ -t 0 ]; then
        sudo "$@"
    else
        sudo -n "$@"
    fi
}

# install_packages PACKAGE...: Debian packages. Fails if that is declined, or not possible here.
install_packages() {
    command -v apt-get >/dev/null || return 1
    agreed "Install $* with apt-get?" || return 1
    as_root apt-get update -qq >&2 &&
        as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$@" >&2
}
