package main

import (
	"context"
	"fmt"
	"time"

	v1 "k8s.io/api/core/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	statsapi "k8s.io/kubelet/pkg/apis/stats/v1alpha1"
	kubecontainer "k8s.io/kubernetes/pkg/kubelet/container"
)

// counters are the highest values so far, by what they count.
type counters map[string]float64

// rise takes a value in that must not be below an earlier one.
func (c counters) rise(what string, value float64) error {
	if value < c[what] {
		return fmt.Errorf("%s fell from %v to %v", what, c[what], value)
	}
	c[what] = value
	return nil
}

// look passes everything that the runtime tells through the kubelet.
func (w *walk) look(ctx context.Context, when string) {
	if w.seen == nil {
		w.seen = counters{}
	}
	for _, look := range []struct {
		at string
		do func(context.Context) error
	}{
		{"node", w.lookAtNode},
		{"images", w.lookAtImages},
		{"pods", w.lookAtPods},
		{"lists", w.lookAtLists},
		{"statistics", w.lookAtStatistics},
		{"figures of pods", w.lookAtPodFigures},
		{"metrics", w.lookAtMetrics},
	} {
		w.step(when+": "+look.at, func() error { return look.do(ctx) })
	}
}

func (w *walk) lookAtNode(ctx context.Context) error {
	version, err := w.node.runtime.Version(ctx)
	if err != nil || version.String() == "" {
		return fmt.Errorf("version %v: %w", version, err)
	}
	status, err := w.node.runtime.Status(ctx)
	if err != nil {
		return err
	}
	for _, kind := range []kubecontainer.RuntimeConditionType{kubecontainer.RuntimeReady, kubecontainer.NetworkReady} {
		if condition := status.GetRuntimeCondition(kind); condition == nil || !condition.Status {
			return fmt.Errorf("%s: %v", kind, condition)
		}
	}
	if len(status.Handlers) == 0 || status.Features == nil {
		return fmt.Errorf("no handlers or no features: %+v", status)
	}
	return nil
}

func (w *walk) lookAtImages(ctx context.Context) error {
	images, err := w.node.runtime.ListImages(ctx)
	if err != nil {
		return err
	}
	for _, image := range images {
		spec := kubecontainer.ImageSpec{Image: image.ID}
		ref, err := w.node.runtime.GetImageRef(ctx, spec)
		if err != nil || ref != image.ID || image.Size <= 0 {
			return fmt.Errorf("%+v has the reference %q: %v", image, ref, err)
		}
		if size, err := w.node.runtime.GetImageSize(ctx, spec); err != nil || size != uint64(image.Size) {
			return fmt.Errorf("%+v has the size %d: %v", image, size, err)
		}
	}
	if _, err := w.node.runtime.ImageStats(ctx); err != nil {
		return err
	}
	used, _, err := w.node.strict.ImageFsStats(ctx)
	if err != nil || used.UsedBytes == nil || used.Time.IsZero() {
		return fmt.Errorf("image file system %+v: %w", used, err)
	}
	return nil
}

// lookAtPods is what the kubelet does every second, and after each change.
func (w *walk) lookAtPods(ctx context.Context) error {
	w.node.watcher.Relist(ctx)
	if healthy, err := w.node.watcher.Healthy(); !healthy {
		return err
	}
	pods, err := w.node.runtime.GetPods(ctx, true)
	if err != nil {
		return err
	}
	for _, pod := range pods {
		if pod.ID == "" || pod.Name == "" || pod.Namespace == "" {
			return fmt.Errorf("a pod without a name: %+v", pod)
		}
		status, err := w.node.cache.Get(pod.ID)
		if err != nil {
			return fmt.Errorf("pod %s: %w", pod.Name, err)
		}
		if err := plausible(status); err != nil {
			return fmt.Errorf("pod %s: %w", pod.Name, err)
		}
	}
	return nil
}

func plausible(status *kubecontainer.PodStatus) error {
	for _, sandbox := range status.SandboxStatuses {
		if sandbox.Metadata == nil || sandbox.Linux.GetNamespaces().GetOptions() == nil {
			return fmt.Errorf("sandbox %s lacks its metadata or its namespaces", sandbox.Id)
		}
	}
	for _, container := range status.ContainerStatuses {
		if container.Name == "" || container.ImageID == "" || container.CreatedAt.Unix() <= 0 || container.State == kubecontainer.ContainerStateUnknown {
			return fmt.Errorf("container %+v", container)
		}
		if container.Resources == nil || container.User == nil || container.User.Linux == nil {
			return fmt.Errorf("container %s has no resources or no user", container.Name)
		}
		if container.State == kubecontainer.ContainerStateExited && container.Reason == "" {
			return fmt.Errorf("container %s has ended without a reason", container.Name)
		}
	}
	return nil
}

// lookAtLists compares lists as one message and as streams. Containers that have ended have no figures, nor have pods that
// were stopped.
func (w *walk) lookAtLists(ctx context.Context) error {
	type lists struct{ pods, ready, containers, live, containerStats, podStats, metrics int }
	count := func(service interface {
		ListPodSandbox(context.Context, *runtimeapi.PodSandboxFilter) ([]*runtimeapi.PodSandbox, error)
		ListContainers(context.Context, *runtimeapi.ContainerFilter) ([]*runtimeapi.Container, error)
		ListContainerStats(context.Context, *runtimeapi.ContainerStatsFilter) ([]*runtimeapi.ContainerStats, error)
		ListPodSandboxStats(context.Context, *runtimeapi.PodSandboxStatsFilter) ([]*runtimeapi.PodSandboxStats, error)
		ListPodSandboxMetrics(context.Context) ([]*runtimeapi.PodSandboxMetrics, error)
	}) (found lists, err error) {
		pods, err := service.ListPodSandbox(ctx, nil)
		if err != nil {
			return found, err
		}
		containers, err := service.ListContainers(ctx, nil)
		if err != nil {
			return found, err
		}
		ready, live := 0, 0
		for _, pod := range pods {
			if pod.State == runtimeapi.PodSandboxState_SANDBOX_READY {
				ready++
			}
		}
		for _, container := range containers {
			if container.State != runtimeapi.ContainerState_CONTAINER_EXITED {
				live++
			}
		}
		containerStats, err := service.ListContainerStats(ctx, nil)
		if err != nil {
			return found, err
		}
		podStats, err := service.ListPodSandboxStats(ctx, nil)
		if err != nil {
			return found, err
		}
		metrics, err := service.ListPodSandboxMetrics(ctx)
		return lists{len(pods), ready, len(containers), live, len(containerStats), len(podStats), len(metrics)}, err
	}
	whole, err := count(w.node.service)
	if err != nil {
		return err
	}
	streamed, err := count(w.node.streaming)
	if err != nil {
		return err
	}
	if whole != streamed || whole.live != whole.containerStats || whole.ready != whole.podStats || whole.pods != whole.metrics {
		return fmt.Errorf("lists are not of one length: %+v, streamed %+v", whole, streamed)
	}
	return nil
}

func (w *walk) lookAtStatistics(ctx context.Context) error {
	for name, list := range map[string]func(context.Context) ([]statsapi.PodStats, error){
		"ListPodStats":                                  w.node.strict.ListPodStats,
		"ListPodStatsAndUpdateCPUNanoCoreUsage":         w.node.strict.ListPodStatsAndUpdateCPUNanoCoreUsage,
		"ListPodCPUAndMemoryStats":                      w.node.strict.ListPodCPUAndMemoryStats,
		"partial ListPodStats":                          w.node.partial.ListPodStats,
		"partial ListPodStatsAndUpdateCPUNanoCoreUsage": w.node.partial.ListPodStatsAndUpdateCPUNanoCoreUsage,
		"partial ListPodCPUAndMemoryStats":              w.node.partial.ListPodCPUAndMemoryStats,
	} {
		pods, err := list(ctx)
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		for _, pod := range pods {
			if pod.PodRef.Name == "" || pod.PodRef.UID == "" || pod.StartTime.Unix() <= 0 {
				return fmt.Errorf("%s: a pod without a name or a start: %+v", name, pod)
			}
			if err := w.plausibleStats(&pod); err != nil {
				return fmt.Errorf("%s: pod %s: %w", name, pod.PodRef.Name, err)
			}
		}
	}
	return w.lookAtEachPodsStatistics(ctx)
}

// lookAtEachPodsStatistics asks for pods one by one, as eviction and resizing do.
func (w *walk) lookAtEachPodsStatistics(ctx context.Context) error {
	pods, err := w.node.runtime.GetPods(ctx, true)
	if err != nil {
		return err
	}
	for _, pod := range pods {
		spec := &v1.Pod{}
		spec.UID, spec.Name, spec.Namespace = pod.ID, pod.Name, pod.Namespace
		status, err := w.status(ctx, spec)
		if err != nil {
			return err
		}
		if len(status.SandboxStatuses) == 0 {
			continue
		}
		found, err := w.node.strict.PodCPUAndMemoryStats(ctx, spec, status)
		if err != nil {
			return err
		}
		if found.CPU == nil || found.Memory == nil || found.PodRef.UID != string(pod.ID) {
			return fmt.Errorf("pod %s: no processor time or no memory: %+v", pod.Name, found)
		}
	}
	return nil
}

// plausibleStats holds for what the runtime tells of a pod itself, and of its containers.
func (w *walk) plausibleStats(pod *statsapi.PodStats) error {
	now := time.Now().Add(time.Minute)
	for _, container := range pod.Containers {
		if container.Name == "" || container.StartTime.After(now) {
			return fmt.Errorf("a container without a name or a time: %+v", container)
		}
		if container.CPU != nil && container.CPU.UsageCoreNanoSeconds != nil {
			what := fmt.Sprintf("processor time of container %s", container.Name)
			if err := w.seen.rise(pod.PodRef.UID+" "+what, float64(*container.CPU.UsageCoreNanoSeconds)); err != nil {
				return err
			}
		}
	}
	if pod.Network != nil && pod.Network.Name == "" {
		return fmt.Errorf("a network without a default interface")
	}
	return nil
}

// lookAtPodFigures is for what the runtime tells of pods themselves, whatever of their containers is left.
func (w *walk) lookAtPodFigures(ctx context.Context) error {
	pods, err := w.node.strict.ListPodStats(ctx)
	if err != nil {
		return err
	}
	for _, pod := range pods {
		if pod.CPU == nil || pod.CPU.UsageCoreNanoSeconds == nil || pod.Memory == nil || pod.Memory.WorkingSetBytes == nil || pod.ProcessStats == nil {
			return fmt.Errorf("pod %s lacks figures: %+v", pod.PodRef.Name, pod)
		}
		if err := w.seen.rise("processor time of pod "+pod.PodRef.UID, float64(*pod.CPU.UsageCoreNanoSeconds)); err != nil {
			return err
		}
	}
	return nil
}

// lookAtMetrics is what /metrics/cadvisor is made of.
func (w *walk) lookAtMetrics(ctx context.Context) error {
	families, err := w.node.registry.Gather()
	if err != nil {
		return err
	}
	for _, family := range families {
		for _, metric := range family.Metric {
			if metric.Counter == nil {
				continue
			}
			name := family.GetName()
			for _, label := range metric.Label {
				name += " " + label.GetName() + "=" + label.GetValue()
			}
			if err := w.seen.rise(name, metric.Counter.GetValue()); err != nil {
				return err
			}
		}
	}
	return nil
}
