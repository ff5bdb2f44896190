# An upgrade of wharf's package from the release before, and the way back, under twenty pods; sourced by walk.sh.
# shellcheck shell=bash
# shellcheck disable=SC2154,SC2016,SC2046 # $repository, $work: walk.sh; what is in single quotes is for other shells; one word
# for each id

see_releases() {
    see 'what was installed by hand is removed' by_hand_removed
    see 'the release before is installed' release previous
    see 'systemd makes its cgroups' with_driver systemd
    see 'it runs ten pods' counting_pods old 10
    see 'an upgrade ends none of them' nothing_ends release current
    see 'and they get new containers' containers_are_added old
    see 'ten more run' counting_pods new 10
    see 'going back to the release before ends none of twenty' nothing_ends release previous
    see 'which lists no less' twenty_are_known
    see 'nor does the second upgrade' nothing_ends release current
    see 'all twenty are removed, with their cgroups' counting_pods_removed
}

# release current|previous
release() {
    "$repository/tests/vm/node.sh" release "$1"
    [[ $(realpath "/proc/$(main_pid)/exe") = /usr/bin/wharfd ]]
}

# counting_pods NAME COUNT
counting_pods() {
    local i
    for ((i = 1; i <= $2; i++)); do
        pod "$1-$i"
        container "$1-$i" counts '{}' sh -c 'n=0; while sleep 2; do n=$((n+1)); echo $n; done'
    done
}

# nothing_ends COMMAND...: checks that a command ends no counting container: each has its process, which counts on without a
# gap, and a command can be executed in it.
nothing_ends() {
    local id before
    before=$(lives)
    "$@"
    [[ $(lives) = "$before" ]]
    counts >"$work/counts"
    attempt 300 all_count_on
    for id in $(crictl ps --quiet --name '^counts$'); do
        [[ $(inside "$id" echo inside) = inside ]]
    done
}

# lives: prints each counting container with its first process and that one's start, by the kernel.
lives() {
    local id pid
    crictl inspect $(crictl ps --quiet --name '^counts$') | jq --raw-output '.[] | "\(.status.id) \(.info.pid)"' |
        while read -r id pid; do
            echo "$id $pid $(awk '{ print $22 }' "/proc/$pid/stat")"
        done | sort
}

# counts: prints how far each has counted; a gap or a repetition fails.
counts() {
    local log
    for log in /var/log/pods/{old,new}-*/counts.log; do
        [[ -e $log ]] || continue
        awk '$4 != ++n { exit 1 } END { print FILENAME, n }' "$log"
    done
}

all_count_on() {
    counts | join "$work/counts" - | awk -v all="$(wc -l <"$work/counts")" '$3 > $2 { further++ } END { exit further != all }'
}

# containers_are_added NAME: a pod that another release made gets a container of this one.
containers_are_added() {
    container "$1-1" added '{}'
    [[ $(inside "$(of "$1-1" added)" echo inside) = inside ]]
    crictl rm --force "$(of "$1-1" added)"
}

twenty_are_known() {
    [[ $(crictl pods --quiet --state ready | wc -l) = 20 ]]
    [[ $(crictl ps --quiet | wc -l) = 20 ]]
    [[ $(crictl stats --output json | jq '.stats | length') = 20 ]]
}

counting_pods_removed() {
    crictl rmp --force $(crictl pods --quiet)
    [[ -z $(crictl pods --quiet) ]]
    not grep scope <(systemctl list-units --plain --no-legend 'wharf-*.scope' | grep --invert-match wharf-supervisors)
}
