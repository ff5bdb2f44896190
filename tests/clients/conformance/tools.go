//go:build tools

// Package conformance pins the clients that judge a runtime. critest is a test of its own package and cannot be
// imported; the two packages it is made of stand for it.
package conformance

import (
	_ "github.com/onsi/ginkgo/v2/ginkgo"
	_ "sigs.k8s.io/cri-tools/cmd/crictl"
	_ "sigs.k8s.io/cri-tools/pkg/benchmark"
	_ "sigs.k8s.io/cri-tools/pkg/validate"
)
