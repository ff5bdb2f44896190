# The Debian package that hack/package makes, from installation to purge; sourced by walk.sh.
# shellcheck shell=bash
# shellcheck disable=SC2154 # $repository, $work, $image: walk.sh

see_package() {
    see 'what was installed by hand is removed' by_hand_removed
    see 'the package starts wharfd' package_installed
    see 'it says that a unit made by hand counts' package_beside_unit
    see 'a daemon that does not start does not keep it from being installed' package_without_daemon
    see 'doctor finds nothing that fails' doctor
    see 'it has man pages, completion and licences' package_documents
    see 'a pod runs' counting_pod
    see 'an upgrade leaves it running, and a changed configuration as it is' containers_go_on package_upgraded
    see 'so does going back' containers_go_on package_downgraded
    see 'removal leaves it running, and says how to end it' package_removed
    see 'another installation starts wharfd' package_installed
    see 'and finds the pod' containers_go_on true
    see 'the pod is removed' remove_pod unit
    see 'a purge leaves no file of the package' package_purged
    see 'installation by hand, again' install_wharf
    see 'wharfd serves again' starts
}

by_hand_removed() {
    systemctl disable --now wharfd
    rm -r /etc/systemd/system/wharfd.service /usr/local/bin/{wharfd,wharf-shim,wharf} /usr/local/share/man/man1/wharf*
    systemctl daemon-reload
}

package_file() {
    echo "$repository"/target/package/wharf_*_amd64.deb
}

package_installed() {
    dpkg --install "$(package_file)"
    [[ $(systemctl is-active wharfd) = active && $(systemctl is-enabled wharfd) = enabled ]]
    [[ $(realpath "/proc/$(main_pid)/exe") = /usr/bin/wharfd ]]
}

package_beside_unit() {
    local own=/etc/systemd/system/wharfd.service
    cp /lib/systemd/system/wharfd.service "$own"
    dpkg --install "$(package_file)" >"$work/words" 2>&1
    grep --quiet "$own counts" "$work/words"
    rm "$own"
    systemctl daemon-reload
}

package_without_daemon() {
    echo 'no_such_key = 1' >>/etc/wharf/config.toml
    dpkg --force-confold --install "$(package_file)" >"$work/words" 2>&1
    grep --quiet 'wharfd does not start' "$work/words"
    [[ $(dpkg-query --show --showformat='${Status}' wharf) = 'install ok installed' ]]
    sed --in-place '$d' /etc/wharf/config.toml
    systemctl restart wharfd
}

package_documents() {
    man --where wharf-run || [[ -e /usr/share/man/man1/wharf-run.1.gz ]]
    bash -n /usr/share/bash-completion/completions/wharf
    zgrep 'Apache License' /usr/share/doc/wharf/licences.gz >/dev/null
    jq --exit-status '.packages | length > 100 and any(.name == "musl")' /usr/share/doc/wharf/spdx.json
}

# A package of the same files with a later version, and a configuration that was changed here.
package_upgraded() {
    local new=$work/new
    echo '# changed here' >>/etc/wharf/config.toml
    dpkg-deb --raw-extract "$(package_file)" "$new"
    sed --in-place 's/^Version: .*/&+1/' "$new/DEBIAN/control"
    echo '# changed there' >>"$new/etc/wharf/config.toml"
    dpkg-deb --root-owner-group --build "$new" "$work/new.deb"
    dpkg --force-confold --install "$work/new.deb"
    [[ $(dpkg-query --show --showformat='${Version}' wharf) = *+1 ]]
    [[ $(tail -n 1 /etc/wharf/config.toml) = '# changed here' ]]
}

package_downgraded() {
    dpkg --force-confold --install "$(package_file)"
}

package_removed() {
    local id lines
    id=$(of unit counts)
    dpkg --remove wharf >"$work/words" 2>&1
    grep --quiet "wharfd clean --force" "$work/words"
    lines=$(log_lines)
    attempt 50 log_grows "$lines"
    [[ ! -e /usr/bin/wharfd && -n $id ]]
}

package_purged() {
    dpkg --purge wharf
    [[ ! -e /etc/wharf/config.toml && ! -e /lib/systemd/system/wharfd.service && ! -e /usr/share/doc/wharf ]]
    [[ $(systemctl is-active wharfd) = inactive ]]
}
