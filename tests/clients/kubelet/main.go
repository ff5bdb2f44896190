// kubelet drives a runtime with the kubelet's own code and passes every answer through it: its client, its runtime manager,
// its statistics, its metrics, and what watches pods. Pods are made, live, end, lose their network, are stopped and removed;
// after each step everything is looked at. It prints a line for each step and look, "passed NAME" or "FAILED NAME: why",
// and ends with 1 if one failed.
//
//	kubelet -endpoint unix:///run/wharf/wharf.sock -image docker.io/library/busybox:latest -dir /tmp/kubelet
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"runtime/debug"
	"strings"
	"time"

	utilfeature "k8s.io/apiserver/pkg/util/feature"
	"k8s.io/klog/v2"
	"k8s.io/kubernetes/pkg/features"
)

// limit is what the whole may take.
const limit = 5 * time.Minute

func main() {
	endpoint := flag.String("endpoint", "", "the runtime's socket")
	image := flag.String("image", "docker.io/library/busybox:latest", "an image with a shell")
	dir := flag.String("dir", "", "an empty directory for logs and the kubelet's own files")
	klog.InitFlags(nil)
	flag.Parse()
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()

	// What is only known by the runtime is taken from it alone.
	gate := fmt.Sprintf("%s=true", features.PodAndContainerStatsFromCRI)
	if err := utilfeature.DefaultMutableFeatureGate.Set(gate); err != nil {
		fail("feature gates", err)
	}
	walk := &walk{}
	walk.step("connect", func() (err error) {
		walk.node, err = newNode(ctx, *endpoint, *dir)
		return err
	})
	if walk.node != nil {
		walk.lives(ctx, *image)
	}
	walk.step("over", ctx.Err)
	if walk.failed > 0 {
		os.Exit(1)
	}
}

func fail(what string, err error) {
	fmt.Printf("FAILED %s: %v\n", what, err)
	os.Exit(1)
}

// walk is a row of steps, and what they have found so far.
type walk struct {
	node   *node
	seen   counters
	failed int
}

// step does something and says how that went. The kubelet dies of a panic: here it is a failure.
func (w *walk) step(name string, do func() error) {
	err := recovered(do)
	if err == nil {
		fmt.Printf("passed %s\n", name)
		return
	}
	w.failed++
	fmt.Printf("FAILED %s: %s\n", name, strings.ReplaceAll(err.Error(), "\n", " | "))
}

func recovered(do func() error) (err error) {
	defer func() {
		if panicked := recover(); panicked != nil {
			err = fmt.Errorf("panic: %v %s", panicked, debug.Stack())
		}
	}()
	return do()
}

// until tries again every so often until do has no error, and then returns the last one.
func until(ctx context.Context, patience time.Duration, do func() error) error {
	end := time.Now().Add(patience)
	for {
		err := do()
		if err == nil || time.Now().After(end) || ctx.Err() != nil {
			return err
		}
		time.Sleep(100 * time.Millisecond)
	}
}
