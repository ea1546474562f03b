package main

import (
	"context"
	"os"
	"sync"

	"github.com/go-kit/log"
	"github.com/go-kit/log/level"
	"github.com/grafana/dskit/dns"
	"github.com/grafana/dskit/kv"
	"github.com/grafana/dskit/kv/codec"
	"github.com/grafana/dskit/kv/memberlist"
	"github.com/grafana/dskit/ring"
	"github.com/grafana/dskit/runtimeconfig"
	"github.com/grafana/dskit/services"
	"github.com/prometheus/client_golang/prometheus"
)

const name = "interop"

// peer is what runs. Parts that the flags did not ask for are nil.
type peer struct {
	registry   *prometheus.Registry
	memberlist *memberlist.KVInitService
	gossip     *memberlist.KV
	store      kv.Client
	ring       *ring.Ring
	lifecycler *ring.BasicLifecycler
	// Reads the runtime files.
	manager *runtimeconfig.Manager
	// What a runtime configuration says to the multi store.
	runtime   chan kv.MultiRuntimeConfig
	leaveOnce sync.Once
	left      chan struct{}
}

// start brings everything up in the order in which the databases do: gossip, store, ring, our instance.
func start(s *settings) (*peer, error) {
	ctx := context.Background()
	logger := log.With(log.NewLogfmtLogger(log.NewSyncWriter(os.Stderr)), "ts", log.DefaultTimestampUTC)
	logger = level.NewFilter(logger, level.Allow(level.ParseDefault(s.logLevel, level.InfoValue())))
	p := &peer{
		registry: prometheus.NewRegistry(),
		runtime:  make(chan kv.MultiRuntimeConfig, 8),
		left:     make(chan struct{}),
	}
	if len(s.runtime.LoadPath) > 0 {
		if err := p.follow(ctx, s.runtime, logger); err != nil {
			return nil, err
		}
	}
	s.memberlist.Codecs = []codec.Codec{ring.GetCodec()}
	resolver := dns.NewProvider(dns.GolangResolverType, 16, logger, p.registry)
	p.memberlist = memberlist.NewKVInitService(&s.memberlist, logger, resolver, p.registry)
	if err := services.StartAndAwaitRunning(ctx, p.memberlist); err != nil {
		return nil, err
	}
	s.store.StoreConfig.MemberlistKV = p.memberlist.GetMemberlistKV
	s.store.StoreConfig.Multi.ConfigProvider = func() <-chan kv.MultiRuntimeConfig { return p.runtime }
	var err error
	if p.store, err = kv.NewClient(s.store, ring.GetCodec(), p.registry, logger); err != nil {
		return nil, err
	}
	if uses(s.store, "memberlist") {
		if p.gossip, err = p.memberlist.GetMemberlistKV(); err != nil {
			return nil, err
		}
		if err = p.gossip.AwaitRunning(ctx); err != nil {
			return nil, err
		}
	}
	strategy := ring.NewDefaultReplicationStrategy()
	if p.ring, err = ring.NewWithStoreClientAndStrategy(s.ring, name, s.key, p.store, strategy, p.registry, logger); err != nil {
		return nil, err
	}
	if err = services.StartAndAwaitRunning(ctx, p.ring); err != nil {
		return nil, err
	}
	if s.instance.ID == "" {
		return p, nil
	}
	if p.lifecycler, err = lifecycler(s, p.store, p.registry, logger); err != nil {
		return nil, err
	}
	return p, services.StartAndAwaitRunning(ctx, p.lifecycler)
}

func uses(config kv.Config, store string) bool {
	return config.Store == store || config.Store == "multi" && (config.Multi.Primary == store || config.Multi.Secondary == store)
}

func lifecycler(s *settings, store kv.Client, registry prometheus.Registerer, logger log.Logger) (*ring.BasicLifecycler, error) {
	state := ring.InstanceState(ring.InstanceState_value[s.state])
	var delegate ring.BasicLifecyclerDelegate = ring.NewInstanceRegisterDelegate(state, s.instance.NumTokens)
	delegate = ring.NewLeaveOnStoppingDelegate(delegate, logger)
	if s.tokensFile != "" {
		delegate = ring.NewTokensPersistencyDelegate(s.tokensFile, ring.ACTIVE, delegate, logger)
	}
	return ring.NewBasicLifecycler(s.instance, name, s.key, store, delegate, logger, registry)
}

func (p *peer) gossipPort() int {
	if p.gossip == nil {
		return 0
	}
	return p.gossip.GetListeningPort()
}

// leave stops everything in the opposite order, once.
func (p *peer) leave() {
	p.leaveOnce.Do(func() {
		ctx := context.Background()
		if p.lifecycler != nil {
			_ = services.StopAndAwaitTerminated(ctx, p.lifecycler)
		}
		_ = services.StopAndAwaitTerminated(ctx, p.ring)
		if p.gossip != nil {
			_ = services.StopAndAwaitTerminated(ctx, p.gossip)
		}
		if p.manager != nil {
			_ = services.StopAndAwaitTerminated(ctx, p.manager)
		}
		close(p.left)
	})
}
