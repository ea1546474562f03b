package main

import (
	"context"
	"flag"
	"fmt"
	"strings"
	"time"

	"github.com/go-kit/log"
	"github.com/grafana/dskit/dns"
	"github.com/grafana/dskit/flagext"
	"github.com/grafana/dskit/kv"
	"github.com/grafana/dskit/kv/codec"
	"github.com/grafana/dskit/kv/memberlist"
	"github.com/grafana/dskit/ring"
	"github.com/grafana/dskit/services"
	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"
)

// Under which the stores have the ring: prefix and key.
const (
	prefix  = "collectors/"
	ringKey = "ring"
)

// member is an instance of the ring, on two stores.
type member struct {
	registry   *prometheus.Registry
	gossip     *memberlist.KV
	store      kv.Client
	lifecycler *ring.BasicLifecycler
	runtime    chan kv.MultiRuntimeConfig
}

// newMember returns when the instance is in the ring. Everything that is not set here is as dskit sets it.
func newMember(name string, seeds []string, consul string, heartbeat time.Duration, mirror bool) (*member, error) {
	ctx := context.Background()
	m := &member{registry: prometheus.NewRegistry(), runtime: make(chan kv.MultiRuntimeConfig, 8)}
	service, gossip, err := gossiper(name, seeds, m.registry)
	if err != nil {
		return nil, err
	}
	m.gossip = gossip

	var config kv.Config
	flags := flag.NewFlagSet(name, flag.ContinueOnError)
	config.RegisterFlagsWithPrefix("", prefix, flags)
	if err = flags.Parse(nil); err != nil {
		return nil, err
	}
	config.Store = "multi"
	config.Consul.Host = consul
	config.Multi.Primary, config.Multi.Secondary, config.Multi.MirrorEnabled = "consul", "memberlist", mirror
	config.MemberlistKV = service.GetMemberlistKV
	config.Multi.ConfigProvider = func() <-chan kv.MultiRuntimeConfig { return m.runtime }
	if m.store, err = kv.NewClient(config, ring.GetCodec(), m.registry, log.NewNopLogger()); err != nil {
		return nil, err
	}

	reader := ring.Config{HeartbeatTimeout: time.Minute, ReplicationFactor: 3}
	strategy := ring.NewDefaultReplicationStrategy()
	watcher, err := ring.NewWithStoreClientAndStrategy(reader, "ring", ringKey, m.store, strategy, m.registry, log.NewNopLogger())
	if err != nil {
		return nil, err
	}
	if err = services.StartAndAwaitRunning(ctx, watcher); err != nil {
		return nil, err
	}
	instance := ring.BasicLifecyclerConfig{
		ID: name, Addr: "127.0.0.1:9095", HeartbeatPeriod: heartbeat, HeartbeatTimeout: time.Minute, NumTokens: 128,
	}
	delegate := ring.NewInstanceRegisterDelegate(ring.ACTIVE, instance.NumTokens)
	m.lifecycler, err = ring.NewBasicLifecycler(instance, "ring", ringKey, m.store, delegate, log.NewNopLogger(), m.registry)
	if err != nil {
		return nil, err
	}
	return m, services.StartAndAwaitRunning(ctx, m.lifecycler)
}

// gossiper is a member of the gossip cluster on a port of its own.
func gossiper(name string, seeds []string, registry prometheus.Registerer) (*memberlist.KVInitService, *memberlist.KV, error) {
	var config memberlist.KVConfig
	flagext.DefaultValues(&config)
	config.NodeName = name
	config.JoinMembers = seeds
	config.TCPTransport.BindAddrs, config.TCPTransport.BindPort = []string{"127.0.0.1"}, 0
	config.Codecs = []codec.Codec{ring.GetCodec()}
	resolver := dns.NewProvider(dns.GolangResolverType, 1, log.NewNopLogger(), nil)
	service := memberlist.NewKVInitService(&config, log.NewNopLogger(), resolver, registry)
	if err := services.StartAndAwaitRunning(context.Background(), service); err != nil {
		return nil, nil, err
	}
	gossip, err := service.GetMemberlistKV()
	if err != nil {
		return nil, nil, err
	}
	return service, gossip, gossip.AwaitRunning(context.Background())
}

func (m *member) address() string {
	return fmt.Sprintf("127.0.0.1:%d", m.gossip.GetListeningPort())
}

// gauge is the sum of a metric of the multi store, of the series with this label value if one is given.
func (m *member) gauge(name, label string) float64 {
	families, _ := m.registry.Gather()
	sum := 0.0
	for _, family := range families {
		if !strings.HasSuffix(family.GetName(), name) {
			continue
		}
		for _, series := range family.Metric {
			if label == "" || has(series, label) {
				sum += series.GetGauge().GetValue() + series.GetCounter().GetValue()
			}
		}
	}
	return sum
}

func has(series *dto.Metric, value string) bool {
	for _, pair := range series.Label {
		if pair.GetValue() == value {
			return true
		}
	}
	return false
}
