//go:build tools

// Package kind pins kind and the crictl of its nodes: nothing here is compiled into anything.
package kind

import (
	_ "sigs.k8s.io/cri-tools/cmd/crictl"
	_ "sigs.k8s.io/kind"
)
