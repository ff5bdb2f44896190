# From ginkgo's JSON report, one line for each spec: state, name, and of a failure the first line of its message.
.[].SpecReports[]
| select(.LeafNodeType == "It")
| [
    (if .State == "passed" or .State == "skipped" or .State == "pending" then .State else "failed" end),
    ((.ContainerHierarchyTexts // []) + [.LeafNodeText] | join(" ") | gsub("\\s+"; " ")),
    (.Failure.Message // "" | split("\n") | map(select(test("\\S"))) | .[0] // "")
  ]
| join("\t")
