package main

import (
	"context"
	"fmt"
	"path/filepath"
	"time"

	cadvisorapi "github.com/google/cadvisor/lib/model"
	"go.opentelemetry.io/otel/trace/noop"
	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/tools/record"
	"k8s.io/client-go/util/flowcontrol"
	"k8s.io/component-base/metrics"
	internalapi "k8s.io/cri-api/pkg/apis"
	criclient "k8s.io/cri-client/pkg"
	"k8s.io/klog/v2"
	kubeletconfig "k8s.io/kubernetes/pkg/kubelet/apis/config"
	cadvisortesting "k8s.io/kubernetes/pkg/kubelet/cadvisor/testing"
	"k8s.io/kubernetes/pkg/kubelet/cm"
	kubecontainer "k8s.io/kubernetes/pkg/kubelet/container"
	containertesting "k8s.io/kubernetes/pkg/kubelet/container/testing"
	"k8s.io/kubernetes/pkg/kubelet/kuberuntime"
	"k8s.io/kubernetes/pkg/kubelet/logs"
	"k8s.io/kubernetes/pkg/kubelet/metrics/collectors"
	"k8s.io/kubernetes/pkg/kubelet/pleg"
	proberesults "k8s.io/kubernetes/pkg/kubelet/prober/results"
	serverstats "k8s.io/kubernetes/pkg/kubelet/server/stats"
	"k8s.io/kubernetes/pkg/kubelet/stats"
	"k8s.io/utils/clock"
	"k8s.io/utils/ptr"
)

// patience is what the kubelet waits for most answers.
const patience = 2 * time.Minute

// node is a kubelet's parts that talk to a runtime; what looks at the machine itself, or at the API server, is left out.
type node struct {
	runtime   kuberuntime.KubeGenericRuntime
	service   internalapi.RuntimeService
	streaming internalapi.RuntimeService
	images    internalapi.ImageManagerService
	// strict takes the statistics from the runtime alone, partial those of containers.
	strict, partial *stats.Provider
	watcher         *pleg.GenericPLEG
	cache           kubecontainer.Cache
	registry        metrics.KubeRegistry
	backOff         *flowcontrol.Backoff
}

func newNode(ctx context.Context, endpoint, dir string) (*node, error) {
	tracing := noop.NewTracerProvider()
	service, err := criclient.NewRemoteRuntimeService(ctx, endpoint, patience, tracing, false)
	if err != nil {
		return nil, err
	}
	streaming, err := criclient.NewRemoteRuntimeService(ctx, endpoint, patience, tracing, true)
	if err != nil {
		return nil, err
	}
	images, err := criclient.NewRemoteImageService(ctx, endpoint, patience, tracing, false)
	if err != nil {
		return nil, err
	}
	n := &node{service: service, streaming: streaming, images: images}
	n.backOff = flowcontrol.NewBackOff(time.Second, time.Minute)
	if n.runtime, err = newRuntime(ctx, n, dir); err != nil {
		return nil, err
	}
	n.cache = kubecontainer.NewCache()
	events := make(chan *pleg.PodLifecycleEvent, 1000)
	durations := &pleg.RelistDuration{RelistPeriod: time.Second, RelistThreshold: 3 * time.Minute}
	watcher := pleg.NewGenericPLEG(n.runtime, events, durations, n.cache, clock.RealClock{})
	n.watcher = watcher.(*pleg.GenericPLEG)
	host := stats.NewHostStatsProvider(kubecontainer.RealOS{}, func(types.UID) string { return "" }, logDir(dir))
	provider := func(fromRuntime bool) *stats.Provider {
		return stats.NewCRIStatsProvider(&cadvisortesting.Fake{}, noVolumes{}, nil, service, images, host, fromRuntime, false, nil)
	}
	n.strict, n.partial = provider(true), provider(false)
	n.registry = metrics.NewKubeRegistry()
	n.registry.CustomMustRegister(collectors.NewCRIMetricsCollector(ctx, n.runtime.ListPodSandboxMetrics, n.runtime.ListMetricDescriptors))
	return n, nil
}

func logDir(dir string) string {
	return filepath.Join(dir, "pods")
}

func newRuntime(ctx context.Context, n *node, dir string) (kuberuntime.KubeGenericRuntime, error) {
	allocatable := v1.ResourceList{
		v1.ResourceCPU:    resource.MustParse("2"),
		v1.ResourceMemory: resource.MustParse("2Gi"),
	}
	runtime, _, err := kuberuntime.NewKubeGenericRuntimeManager(
		ctx,
		record.NewFakeRecorder(10000),
		proberesults.NewManager(),
		proberesults.NewManager(),
		proberesults.NewManager(),
		dir,
		logDir(dir),
		&cadvisorapi.MachineInfo{NumCores: 2, MemoryCapacity: 4 << 30},
		unwanted{},
		110,
		kubecontainer.RealOS{},
		helper{&containertesting.FakeRuntimeHelper{HostName: "kubelet", PodContainerDir: dir}},
		nil,
		n.backOff,
		false,
		ptr.To[int32](0),
		0,
		0,
		string(kubeletconfig.NeverVerify),
		nil,
		"",
		"",
		ptr.To(false),
		true,
		metav1.Duration{Duration: 100 * time.Millisecond},
		nil,
		n.service,
		n.images,
		cm.NewFakeContainerManager(klog.FromContext(ctx)),
		logs.NewStubContainerLogManager(),
		nil,
		false,
		"",
		func() v1.ResourceList { return allocatable },
		ptr.To(0.9),
		kubeletconfig.NoneMemoryReservationPolicy,
		noTimes{},
		noop.NewTracerProvider(),
		nil,
		nil,
		noTimes{},
	)
	if err != nil {
		return nil, fmt.Errorf("the runtime manager: %w", err)
	}
	return runtime, nil
}

// helper gives each pod a cgroup as the kubelet names them.
type helper struct {
	*containertesting.FakeRuntimeHelper
}

func (helper) GetPodCgroupParent(pod *v1.Pod) string {
	return "/kubepods/pod" + string(pod.UID)
}

// unwanted says of every pod that it may be collected.
type unwanted struct{}

func (unwanted) IsPodTerminationRequested(types.UID) bool { return false }
func (unwanted) ShouldPodContentBeRemoved(types.UID) bool { return true }
func (unwanted) ShouldPodRuntimeBeRemoved(types.UID) bool { return true }

type noVolumes struct {
	serverstats.ResourceAnalyzer
}

func (noVolumes) GetPodVolumeStats(types.UID) (serverstats.PodVolumeStats, bool) {
	return serverstats.PodVolumeStats{}, false
}

type noTimes struct{}

func (noTimes) RecordImageStartedPulling(types.UID)              {}
func (noTimes) RecordImageFinishedPulling(types.UID)             {}
func (noTimes) RecordInitContainerStarted(types.UID, time.Time)  {}
func (noTimes) RecordInitContainerFinished(types.UID, time.Time) {}
