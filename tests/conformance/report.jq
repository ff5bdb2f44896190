# From ginkgo's JSON report, one line for each spec: state, name, and of a failure the first line of its message, with the
# runtime's error if it quotes one.
.[].SpecReports[]
| select(.LeafNodeType == "It")
| [
    (if .State == "passed" or .State == "skipped" or .State == "pending" then .State else "failed" end),
    ((.ContainerHierarchyTexts // []) + [.LeafNodeText] | join(" ") | gsub("\\s+"; " ")),
    (.Failure.Message // "" | split("\n") | map(select(test("\\S"))) | [.[0], (.[1:][] | select(test("^ *rpc error")))]
     | map(values | gsub("\\s+"; " ")) | .[:2] | join(":"))
  ]
| join("\t")
