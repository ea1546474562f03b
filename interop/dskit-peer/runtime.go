package main

import (
	"context"
	"errors"
	"io"

	"github.com/go-kit/log"
	"github.com/grafana/dskit/kv"
	"github.com/grafana/dskit/runtimeconfig"
	"github.com/grafana/dskit/services"
	"github.com/prometheus/client_golang/prometheus"
	"go.yaml.in/yaml/v3"
)

// runtimeFile is what the databases take from their runtime file for the multi store; the rest is not for us.
type runtimeFile struct {
	Multi kv.MultiRuntimeConfig `yaml:"multi_kv_config"`
}

func loadRuntimeFile(r io.Reader) (any, error) {
	file := &runtimeFile{}
	if err := yaml.NewDecoder(r).Decode(file); err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	return file, nil
}

// follow reads the runtime files again and again, and tells the multi store what its section says: at once, and after each
// change.
func (p *peer) follow(ctx context.Context, config runtimeconfig.Config, logger log.Logger) error {
	config.Loader = loadRuntimeFile
	registerer := prometheus.WrapRegistererWithPrefix("interop_", p.registry)
	manager, err := runtimeconfig.New(config, name, registerer, logger)
	if err != nil {
		return err
	}
	changes := manager.CreateListenerChannel(8)
	if err := services.StartAndAwaitRunning(ctx, manager); err != nil {
		return err
	}
	p.manager = manager
	go func() {
		for change := range changes {
			p.runtime <- change.(*runtimeFile).Multi
		}
	}()
	return nil
}
