//go:build tools

// Package gvisor pins gVisor's runtime, with which wharf is tested as a handler: nothing here is compiled into anything.
package gvisor

import _ "gvisor.dev/gvisor/runsc"
