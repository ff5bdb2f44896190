package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	crierrors "k8s.io/cri-api/pkg/errors"
	kubecontainer "k8s.io/kubernetes/pkg/kubelet/container"
	"k8s.io/utils/exec"
	"k8s.io/utils/ptr"
)

// lives makes pods and ends them, and looks at everything in between.
func (w *walk) lives(ctx context.Context, image string) {
	events := w.listen(ctx)
	w.look(ctx, "nothing")
	calm := pod("calm", shell("main", image, "echo hello; exec sleep 1000"), shell("short", image, "echo last words >/dev/termination-log; exit 3"))
	privileged := shell("main", image, "while :; do :; done")
	privileged.SecurityContext = &v1.SecurityContext{Privileged: ptr.To(true)}
	busy := pod("busy", privileged)
	host := pod("host", shell("main", image, "exec sleep 1000"))
	host.Spec.HostNetwork = true
	for _, pod := range []*v1.Pod{calm, busy, host} {
		w.step("run "+pod.Name, func() error { return w.sync(ctx, pod) })
	}
	w.look(ctx, "all run")
	w.step("a container ends", func() error {
		return until(ctx, 30*time.Second, func() error { return w.ended(ctx, calm, "short", 3, "last words") })
	})
	w.look(ctx, "one has ended")
	w.step("commands", func() error { return w.commands(ctx, calm) })
	w.step("log", func() error {
		return until(ctx, 10*time.Second, func() error { return w.log(ctx, calm, "hello") })
	})
	w.step("a registry that is not there", func() error { return w.unreachable(ctx) })
	w.step("deadlines", func() error { return w.late(ctx, image) })
	w.step("a network goes away", func() error {
		_, err := w.run(ctx, busy, "ip", "link", "del", "eth0")
		return err
	})
	w.look(ctx, "without network")
	w.step("resize", func() error { return w.resize(ctx, calm) })
	for _, pod := range []*v1.Pod{calm, busy, host} {
		w.step("kill "+pod.Name, func() error { return w.kill(ctx, pod) })
		w.look(ctx, pod.Name+" was killed")
	}
	w.step("collect", func() error {
		policy := kubecontainer.GCPolicy{MaxPerPodContainer: 0, MaxContainers: 0}
		return until(ctx, 30*time.Second, func() error {
			if err := w.node.runtime.GarbageCollect(ctx, policy, true, true); err != nil {
				return err
			}
			pods, err := w.node.runtime.GetPods(ctx, true)
			if err == nil && len(pods) > 0 {
				err = fmt.Errorf("%d pods are left", len(pods))
			}
			return err
		})
	})
	w.look(ctx, "all is removed")
	w.step("events", func() error { return w.heard(events) })
}

func pod(name string, containers ...v1.Container) *v1.Pod {
	return &v1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: "walk", UID: types.UID("uid-" + name)},
		// Its security context is filled in by the API server where the author leaves it out.
		Spec: v1.PodSpec{
			SecurityContext:               &v1.PodSecurityContext{},
			RestartPolicy:                 v1.RestartPolicyNever,
			TerminationGracePeriodSeconds: ptr.To[int64](1),
			Containers:                    containers,
		},
	}
}

func shell(name, image, script string) v1.Container {
	return v1.Container{
		Name:                     name,
		Image:                    image,
		ImagePullPolicy:          v1.PullIfNotPresent,
		Command:                  []string{"sh", "-c", script},
		TerminationMessagePath:   "/dev/termination-log",
		TerminationMessagePolicy: v1.TerminationMessageReadFile,
	}
}

func (w *walk) status(ctx context.Context, pod *v1.Pod) (*kubecontainer.PodStatus, error) {
	found, err := w.node.runtime.GetPod(ctx, pod.UID)
	if errors.Is(err, kubecontainer.ErrPodNotFound) {
		return &kubecontainer.PodStatus{ID: pod.UID, Name: pod.Name, Namespace: pod.Namespace}, nil
	}
	if err != nil {
		return nil, err
	}
	return w.node.runtime.GetPodStatus(ctx, found)
}

// sync makes of a pod what its specification says.
func (w *walk) sync(ctx context.Context, pod *v1.Pod) error {
	status, err := w.status(ctx, pod)
	if err != nil {
		return err
	}
	result := w.node.runtime.SyncPod(ctx, pod, status, nil, w.node.backOff, false)
	return result.Error()
}

func (w *walk) kill(ctx context.Context, pod *v1.Pod) error {
	status, err := w.status(ctx, pod)
	if err != nil {
		return err
	}
	running := kubecontainer.ConvertPodStatusToRunningPod(w.node.runtime.Type(), status)
	if err := w.node.runtime.KillPod(ctx, pod, running, ptr.To[int64](0)); err != nil {
		return err
	}
	if status, err = w.status(ctx, pod); err != nil {
		return err
	}
	if len(status.SandboxStatuses) != 1 || status.SandboxStatuses[0].State == runtimeapi.PodSandboxState_SANDBOX_READY {
		return fmt.Errorf("its sandboxes are %v", status.SandboxStatuses)
	}
	for _, container := range status.ContainerStatuses {
		if container.State != kubecontainer.ContainerStateExited || container.FinishedAt.Before(container.StartedAt) {
			return fmt.Errorf("container %s is %s, from %s to %s", container.Name, container.State, container.StartedAt, container.FinishedAt)
		}
	}
	if len(status.IPs) > 0 {
		return fmt.Errorf("it still has the addresses %v", status.IPs)
	}
	return nil
}

// ended is nil once a container has, with this code and these last words.
func (w *walk) ended(ctx context.Context, pod *v1.Pod, name string, code int, words string) error {
	status, err := w.status(ctx, pod)
	if err != nil {
		return err
	}
	container := status.FindContainerStatusByName(name)
	if container == nil || container.State != kubecontainer.ContainerStateExited {
		return fmt.Errorf("it goes on: %+v", container)
	}
	if container.ExitCode != code || container.Reason != "Error" || strings.TrimSpace(container.Message) != words {
		return fmt.Errorf("it ended with %d, %s, %q", container.ExitCode, container.Reason, container.Message)
	}
	return nil
}

func (w *walk) run(ctx context.Context, pod *v1.Pod, command ...string) (string, error) {
	status, err := w.status(ctx, pod)
	if err != nil {
		return "", err
	}
	output, err := w.node.runtime.RunInContainer(ctx, status.FindContainerStatusByName("main").ID, command, 2*time.Second)
	return string(output), err
}

// commands are what probes do: their output, their code, and their time.
func (w *walk) commands(ctx context.Context, pod *v1.Pod) error {
	if output, err := w.run(ctx, pod, "echo", "inside"); err != nil || output != "inside\n" {
		return fmt.Errorf("echo: %q, %v", output, err)
	}
	var code exec.CodeExitError
	if _, err := w.run(ctx, pod, "sh", "-c", "exit 7"); !errors.As(err, &code) || code.Code != 7 {
		return fmt.Errorf("exit 7: %v", err)
	}
	if _, err := w.run(ctx, pod, "sleep", "100"); err == nil || !strings.Contains(err.Error(), "timed out") {
		return fmt.Errorf("sleep 100: %v", err)
	}
	return nil
}

func (w *walk) log(ctx context.Context, pod *v1.Pod, words string) error {
	status, err := w.status(ctx, pod)
	if err != nil {
		return err
	}
	var text strings.Builder
	id := status.FindContainerStatusByName("main").ID
	if err := w.node.runtime.GetContainerLogs(ctx, pod, id, &v1.PodLogOptions{}, &text, io.Discard); err != nil {
		return err
	}
	if strings.TrimSpace(text.String()) != words {
		return fmt.Errorf("it says %q", text.String())
	}
	return nil
}

// unreachable is what the kubelet makes of a pull from nowhere: a reason of its own.
func (w *walk) unreachable(ctx context.Context) error {
	// Nobody listens on the port of discarding.
	pod := pod("nowhere", shell("main", "127.0.0.1:9/app:1", "true"))
	if err := w.sync(ctx, pod); !errors.Is(err, crierrors.ErrRegistryUnavailable) && !strings.Contains(fmt.Sprint(err), "registry is unavailable") {
		return fmt.Errorf("it is taken for: %v", err)
	}
	return w.kill(ctx, pod)
}

// late is what a client hears whose deadline has passed, whether its own clock or the runtime's is first.
func (w *walk) late(ctx context.Context, image string) error {
	late := 0
	for i := range 200 {
		short, cancel := context.WithTimeout(ctx, time.Millisecond)
		_, err := w.node.images.PullImage(short, &runtimeapi.ImageSpec{Image: image}, nil, nil)
		cancel()
		switch code := status.Code(err); code {
		case codes.OK:
		case codes.DeadlineExceeded:
			late++
		default:
			return fmt.Errorf("pull %d: %s: %w", i, code, err)
		}
	}
	if late == 0 {
		return errors.New("no pull took longer than a millisecond")
	}
	return nil
}

// resize changes limits and looks whether the status has them: the kubelet waits for that.
func (w *walk) resize(ctx context.Context, pod *v1.Pod) error {
	status, err := w.status(ctx, pod)
	if err != nil {
		return err
	}
	id := status.FindContainerStatusByName("main").ID
	limits := &runtimeapi.LinuxContainerResources{CpuPeriod: 100000, CpuQuota: 50000, CpuShares: 512, MemoryLimitInBytes: 64 << 20}
	if err := w.node.service.UpdateContainerResources(ctx, id.ID, &runtimeapi.ContainerResources{Linux: limits}); err != nil {
		return err
	}
	changed, err := w.node.runtime.GetContainerStatus(ctx, pod.UID, id)
	if err != nil {
		return err
	}
	got := changed.Resources
	if got == nil || got.CPULimit == nil || got.CPULimit.MilliValue() != 500 || got.MemoryLimit == nil || got.MemoryLimit.Value() != 64<<20 {
		return fmt.Errorf("the status has %+v", got)
	}
	return nil
}

// listen collects the runtime's events until it is asked for them.
func (w *walk) listen(ctx context.Context) chan *runtimeapi.ContainerEventResponse {
	events := make(chan *runtimeapi.ContainerEventResponse, 10000)
	connected := make(chan struct{})
	go func() {
		_ = w.node.service.GetContainerEvents(ctx, events, func(runtimeapi.RuntimeService_GetContainerEventsClient) { close(connected) })
	}()
	select {
	case <-connected:
	case <-time.After(10 * time.Second):
	}
	return events
}

// heard makes statuses of all events so far, as what watches pods by events does.
func (w *walk) heard(events chan *runtimeapi.ContainerEventResponse) error {
	counts := map[runtimeapi.ContainerEventType]int{}
	for len(events) > 0 {
		event := <-events
		counts[event.ContainerEventType]++
		if event.PodSandboxStatus.GetMetadata() == nil || event.CreatedAt <= 0 {
			return fmt.Errorf("an event lacks its pod or its time: %v", event)
		}
		if status := w.node.runtime.GeneratePodStatus(event); status.Name == "" || status.ID == "" {
			return fmt.Errorf("an event is of no pod: %v", event)
		}
	}
	for kind, name := range runtimeapi.ContainerEventType_name {
		if counts[runtimeapi.ContainerEventType(kind)] == 0 {
			return fmt.Errorf("none is %s: %v", name, counts)
		}
	}
	return nil
}
