# What became of the specs of a suite, compared with the list of those that must pass; sourced by hack/conformance and
# hack/cluster.
# shellcheck shell=bash
# shellcheck disable=SC2154 # $repository: lib.sh; $reports, $list, $bless: the scripts

# spec_report NAME: writes a line for each spec of ginkgo's report $reports/NAME.json to $reports/NAME.tsv.
spec_report() {
    jq --raw-output --from-file "$repository/tests/conformance/report.jq" "$reports/$1.json" |
        LC_ALL=C sort >"$reports/$1.tsv"
}

# verdict NAME WHERE [some]: prints the result of a report; fails if a spec in $list did not pass. If only some specs were
# requested, those that did not run do not count.
verdict() {
    local report=$reports/$1.tsv missing new known=/dev/null
    [[ -z $list || ! -e $list ]] || known=$list
    awk -F '\t' '$1 == "failed" { print "FAILED " $2 ": " $3 }' "$report"
    if [[ -n ${3-} ]]; then
        missing=$(LC_ALL=C comm -12 "$known" <(names failed))
    else
        missing=$(LC_ALL=C comm -23 "$known" <(names passed))
    fi
    new=$(LC_ALL=C comm -13 "$known" <(names passed))
    if [[ -n $list && -n $new ]]; then
        if [[ -n $bless ]]; then
            { cat "$known" && echo "$new"; } | LC_ALL=C sort -u >"$list.new"
            mv "$list.new" "$list"
            say "added $(wc -l <<<"$new") specs to $list"
        else
            printf 'new: add it: %s\n' "${new//$'\n'/$'\n'new: add it: }"
        fi
    fi
    echo "$1 on $2:"
    echo "$(count passed) passed, $(count failed) failed, $(count skipped) skipped"
    if [[ -n $missing ]]; then
        printf 'MUST PASS, and did not: %s\n' "${missing//$'\n'/$'\n'MUST PASS, and did not: }"
        return 1
    fi
}

# names STATE: lists the specs in this state.
names() {
    awk -F '\t' -v state="$1" '$1 == state { print $2 }' "$report" | LC_ALL=C sort -u
}

count() {
    grep -c "^$1"$'\t' "$report" || true
}
