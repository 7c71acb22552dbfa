// A plugin of NRI on the library that plugins are written with: NAME DIRECTORY [SOCKET].
//
// DIRECTORY/NAME.log gets a line of JSON for each event. What it does to a container stands in the container's
// annotation "do": "adjust", "refuse", or "update" with the other container's ID in "whom".
package main

import (
	"context"
	"encoding/json"
	"errors"
	"log"
	"os"
	"path/filepath"
	"strings"

	"github.com/containerd/nri/pkg/api"
	"github.com/containerd/nri/pkg/stub"
)

type plugin struct {
	events *os.File
	stub   stub.Stub
}

type event struct {
	Event      string   `json:"event"`
	Pod        string   `json:"pod,omitempty"`
	Container  string   `json:"container,omitempty"`
	State      string   `json:"state,omitempty"`
	Config     string   `json:"config,omitempty"`
	Runtime    string   `json:"runtime,omitempty"`
	Shares     uint64   `json:"shares,omitempty"`
	Env        []string `json:"env,omitempty"`
	Pods       []string `json:"pods,omitempty"`
	Containers []string `json:"containers,omitempty"`
	Failed     []string `json:"failed,omitempty"`
}

func (p *plugin) note(e event) {
	line, err := json.Marshal(e)
	if err != nil {
		log.Fatal(err)
	}
	if _, err := p.events.Write(append(line, '\n')); err != nil {
		log.Fatal(err)
	}
}

func (p *plugin) noteContainer(name string, pod *api.PodSandbox, container *api.Container) {
	p.note(event{Event: name, Pod: pod.GetId(), Container: container.GetId(), State: container.GetState().String(),
		Env: container.GetEnv()})
}

func (p *plugin) Configure(_ context.Context, config, runtime, version string) (stub.EventMask, error) {
	p.note(event{Event: "Configure", Config: config, Runtime: runtime + " " + version})
	return 0, nil // all that there are methods for
}

func (p *plugin) Synchronize(_ context.Context, pods []*api.PodSandbox, containers []*api.Container) ([]*api.ContainerUpdate, error) {
	e := event{Event: "Synchronize"}
	var updates []*api.ContainerUpdate
	for _, pod := range pods {
		e.Pods = append(e.Pods, pod.GetId())
	}
	for _, container := range containers {
		e.Containers = append(e.Containers, container.GetId())
		if container.GetAnnotations()["do"] == "synchronize" {
			updates = append(updates, shares(container.GetId(), 301))
		}
	}
	p.note(e)
	return updates, nil
}

func (p *plugin) Shutdown(context.Context) { p.note(event{Event: "Shutdown"}) }

func (p *plugin) RunPodSandbox(_ context.Context, pod *api.PodSandbox) error {
	p.note(event{Event: "RunPodSandbox", Pod: pod.GetId()})
	return nil
}

func (p *plugin) StopPodSandbox(_ context.Context, pod *api.PodSandbox) error {
	p.note(event{Event: "StopPodSandbox", Pod: pod.GetId()})
	return nil
}

func (p *plugin) RemovePodSandbox(_ context.Context, pod *api.PodSandbox) error {
	p.note(event{Event: "RemovePodSandbox", Pod: pod.GetId()})
	return nil
}

func (p *plugin) CreateContainer(_ context.Context, pod *api.PodSandbox, container *api.Container) (*api.ContainerAdjustment, []*api.ContainerUpdate, error) {
	p.noteContainer("CreateContainer", pod, container)
	switch container.GetAnnotations()["do"] {
	case "adjust":
		return adjustment(), nil, nil
	case "refuse":
		return nil, nil, errors.New("not today")
	case "update":
		return nil, []*api.ContainerUpdate{shares(container.GetAnnotations()["whom"], 302)}, nil
	}
	return nil, nil, nil
}

func adjustment() *api.ContainerAdjustment {
	a := &api.ContainerAdjustment{}
	a.AddAnnotation("plugin", "was here")
	a.AddEnv("FROM_PLUGIN", "yes")
	a.RemoveEnv("TAKEN")
	a.AddMount(&api.Mount{Destination: "/given", Type: "tmpfs", Source: "tmpfs", Options: []string{"nosuid", "size=1m"}})
	a.AddRlimit("RLIMIT_NOFILE", 456, 123)
	a.AddDevice(&api.LinuxDevice{Path: "/dev/nri", Type: "c", Major: 1, Minor: 3})
	a.SetLinuxMemoryLimit(64 << 20)
	a.SetLinuxCPUShares(512)
	return a
}

func shares(id string, value uint64) *api.ContainerUpdate {
	update := &api.ContainerUpdate{}
	update.SetContainerId(id)
	update.SetLinuxCPUShares(value)
	return update
}

func (p *plugin) PostCreateContainer(_ context.Context, pod *api.PodSandbox, container *api.Container) error {
	p.noteContainer("PostCreateContainer", pod, container)
	return nil
}

func (p *plugin) StartContainer(_ context.Context, pod *api.PodSandbox, container *api.Container) error {
	p.noteContainer("StartContainer", pod, container)
	return nil
}

func (p *plugin) PostStartContainer(_ context.Context, pod *api.PodSandbox, container *api.Container) error {
	p.noteContainer("PostStartContainer", pod, container)
	if container.GetAnnotations()["do"] != "ask" {
		return nil
	}
	go func() { // unasked, once this has been answered
		failed, err := p.stub.UpdateContainers([]*api.ContainerUpdate{shares("none", 5), shares(container.GetId(), 303)})
		e := event{Event: "UpdateContainers"}
		for _, one := range failed {
			e.Failed = append(e.Failed, one.GetContainerId())
		}
		if err != nil {
			e.State = err.Error()
		}
		p.note(e)
	}()
	return nil
}

func (p *plugin) UpdateContainer(_ context.Context, pod *api.PodSandbox, container *api.Container, r *api.LinuxResources) ([]*api.ContainerUpdate, error) {
	p.note(event{Event: "UpdateContainer", Pod: pod.GetId(), Container: container.GetId(),
		Shares: r.GetCpu().GetShares().GetValue()})
	return nil, nil
}

func (p *plugin) PostUpdateContainer(_ context.Context, pod *api.PodSandbox, container *api.Container) error {
	p.noteContainer("PostUpdateContainer", pod, container)
	return nil
}

func (p *plugin) StopContainer(_ context.Context, pod *api.PodSandbox, container *api.Container) ([]*api.ContainerUpdate, error) {
	p.noteContainer("StopContainer", pod, container)
	return nil, nil
}

func (p *plugin) RemoveContainer(_ context.Context, pod *api.PodSandbox, container *api.Container) error {
	p.noteContainer("RemoveContainer", pod, container)
	return nil
}

func main() {
	name, directory := os.Args[1], os.Args[2]
	events, err := os.OpenFile(filepath.Join(directory, name+".log"), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		log.Fatal(err)
	}
	p := &plugin{events: events}
	var options []stub.Option
	if len(os.Args) > 3 { // it was not launched, which would have told it name and connection
		index, base, _ := strings.Cut(name, "-")
		options = append(options, stub.WithPluginIdx(index), stub.WithPluginName(base), stub.WithSocketPath(os.Args[3]))
	}
	if p.stub, err = stub.New(p, options...); err != nil {
		log.Fatal(err)
	}
	if err := p.stub.Run(context.Background()); err != nil {
		log.Fatal(err)
	}
}
