package main

import (
	"context"
	"flag"
	"fmt"
	"math/rand"
	"os"
	"sort"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/go-kit/log"
	"github.com/go-kit/log/level"
	"github.com/grafana/dskit/dns"
	"github.com/grafana/dskit/flagext"
	"github.com/grafana/dskit/kv"
	"github.com/grafana/dskit/kv/codec"
	"github.com/grafana/dskit/kv/memberlist"
	"github.com/grafana/dskit/ring"
	"github.com/grafana/dskit/services"
	"github.com/prometheus/client_golang/prometheus"
)

const key = "ring"

type node struct {
	id      string
	store   kv.Client
	ring    *ring.Ring
	gossip  *memberlist.KV
	runtime chan kv.MultiRuntimeConfig
}

type fleet struct {
	nodes     []*node
	file      string
	told      []atomic.Int64
	mu        sync.Mutex
	writes    []float64
	failed    int
	measuring bool
}

func start(consul, file string, nodes, instances int, heartbeat, reload time.Duration) (*fleet, error) {
	f := &fleet{file: file, told: make([]atomic.Int64, nodes)}
	seed := ""
	for i := 0; i < nodes; i++ {
		n, err := startNode(i, consul, seed)
		if err != nil {
			return nil, err
		}
		if i == 0 {
			seed = fmt.Sprintf("127.0.0.1:%d", n.gossip.GetListeningPort())
			if err := fill(n.store, nodes, instances); err != nil {
				return nil, err
			}
		}
		f.nodes = append(f.nodes, n)
	}
	for _, n := range f.nodes {
		for n.ring.InstancesCount() < instances || n.gossip.GetListeningPort() == 0 {
			time.Sleep(20 * time.Millisecond)
		}
	}
	for i, n := range f.nodes {
		go f.heartbeats(n, heartbeat)
		go f.reload(i, reload)
	}
	return f, nil
}

func startNode(index int, consul, seed string) (*node, error) {
	ctx := context.Background()
	n := &node{id: fmt.Sprintf("node-%d", index), runtime: make(chan kv.MultiRuntimeConfig)}
	registry := prometheus.NewRegistry()
	logger := level.NewFilter(log.NewLogfmtLogger(log.NewSyncWriter(os.Stderr)), level.AllowNone())
	var gossip memberlist.KVConfig
	flagext.DefaultValues(&gossip)
	gossip.TCPTransport.BindAddrs = []string{"127.0.0.1"}
	gossip.TCPTransport.BindPort = 0
	gossip.NodeName = n.id
	gossip.Codecs = []codec.Codec{ring.GetCodec()}
	if seed != "" {
		gossip.JoinMembers = []string{seed}
	}
	service := memberlist.NewKVInitService(&gossip, logger, dns.NewProvider(dns.GolangResolverType, 16, logger, registry), registry)
	if err := services.StartAndAwaitRunning(ctx, service); err != nil {
		return nil, err
	}
	var config kv.Config
	config.RegisterFlagsWithPrefix("", "", flag.NewFlagSet("store", flag.PanicOnError))
	config.Store = "multi"
	config.Consul.Host = consul
	config.Multi.Primary, config.Multi.Secondary = "consul", "memberlist"
	config.StoreConfig.MemberlistKV = service.GetMemberlistKV
	config.StoreConfig.Multi.ConfigProvider = func() <-chan kv.MultiRuntimeConfig { return n.runtime }
	var err error
	if n.store, err = kv.NewClient(config, ring.GetCodec(), registry, logger); err != nil {
		return nil, err
	}
	if n.gossip, err = service.GetMemberlistKV(); err != nil {
		return nil, err
	}
	if err = n.gossip.AwaitRunning(ctx); err != nil {
		return nil, err
	}
	settings := ring.Config{HeartbeatTimeout: time.Hour, ReplicationFactor: 3, ZoneAwarenessEnabled: true}
	strategy := ring.NewDefaultReplicationStrategy()
	if n.ring, err = ring.NewWithStoreClientAndStrategy(settings, "bench", key, n.store, strategy, registry, logger); err != nil {
		return nil, err
	}
	return n, services.StartAndAwaitRunning(ctx, n.ring)
}

// fill writes all instances: those of the nodes, and others that only take up their place.
func fill(store kv.Client, nodes, instances int) error {
	random := rand.New(rand.NewSource(1))
	return store.CAS(context.Background(), key, func(any) (any, bool, error) {
		desc := ring.NewDesc()
		for i := 0; i < instances; i++ {
			id := fmt.Sprintf("node-%d", i)
			tokens := make([]uint32, 128)
			for t := range tokens {
				tokens[t] = random.Uint32()
			}
			sort.Slice(tokens, func(a, b int) bool { return tokens[a] < tokens[b] })
			zone := fmt.Sprintf("zone-%d", i%3)
			desc.AddIngester(id, fmt.Sprintf("10.0.%d.%d:9095", i/250, i%250), zone, tokens, ring.ACTIVE, time.Now(), false, time.Time{}, nil)
		}
		return desc, true, nil
	})
}

// heartbeats writes the node's instance again and again.
func (f *fleet) heartbeats(n *node, period time.Duration) {
	time.Sleep(time.Duration(rand.Int63n(int64(period))))
	for range time.Tick(period) {
		began := time.Now()
		err := n.store.CAS(context.Background(), key, func(in any) (any, bool, error) {
			desc := ring.GetOrCreateRingDesc(in)
			instance := desc.Ingesters[n.id]
			instance.Timestamp = max(time.Now().Unix(), instance.Timestamp+1)
			desc.Ingesters[n.id] = instance
			return desc, true, nil
		})
		took := time.Since(began)
		f.mu.Lock()
		if f.measuring {
			if err != nil {
				f.failed++
			} else {
				f.writes = append(f.writes, took.Seconds()*1e3)
			}
		}
		f.mu.Unlock()
	}
}

// reload does what a runtime configuration does: it looks at the file, and tells the store when it changed.
func (f *fleet) reload(index int, period time.Duration) {
	time.Sleep(time.Duration(rand.Int63n(int64(period))))
	last := ""
	for range time.Tick(period) {
		bytes, err := os.ReadFile(f.file)
		text := string(bytes)
		if err != nil || text == last {
			continue
		}
		last = text
		message, yes := kv.MultiRuntimeConfig{}, true
		if strings.Contains(text, "mirror") {
			message.Mirroring = &yes
		}
		if strings.Contains(text, "flipped") {
			message.PrimaryStore = "memberlist"
		}
		f.nodes[index].runtime <- message
		f.told[index].Add(1)
	}
}

// tell changes the file, and says how long it took until the store of every node had been told.
func (f *fleet) tell(text string) time.Duration {
	before := make([]int64, len(f.told))
	for i := range f.told {
		before[i] = f.told[i].Load()
	}
	began := time.Now()
	if err := os.WriteFile(f.file+".new", []byte(text), 0o600); err != nil {
		panic(err)
	}
	if err := os.Rename(f.file+".new", f.file); err != nil {
		panic(err)
	}
	for i := range f.told {
		for f.told[i].Load() == before[i] {
			time.Sleep(time.Millisecond)
		}
	}
	return time.Since(began)
}

// measure counts and times writes and lookups while something happens.
func (f *fleet) measure(something func()) map[string]any {
	f.mu.Lock()
	f.writes, f.failed, f.measuring = nil, 0, true
	f.mu.Unlock()
	stop, done := make(chan struct{}), make(chan struct{})
	var took []float64
	lost := 0
	go func() {
		defer close(done)
		instances, hosts, zones := ring.MakeBuffersForGet()
		for i := 0; ; i++ {
			select {
			case <-stop:
				return
			default:
			}
			r := f.nodes[i%len(f.nodes)].ring
			for j := 0; j < 50; j++ {
				hash := rand.Uint32()
				began := time.Now()
				set, err := r.Get(hash, ring.Write, instances, hosts, zones)
				took = append(took, float64(time.Since(began)))
				if err != nil || len(set.Instances) == 0 {
					lost++
				}
			}
			time.Sleep(time.Millisecond)
		}
	}()
	something()
	close(stop)
	<-done
	f.mu.Lock()
	defer f.mu.Unlock()
	f.measuring = false
	return map[string]any{
		"lookups": len(took), "lookups_failed": lost,
		"lookup_p50_ns": at(took, 0.5), "lookup_p99_ns": at(took, 0.99), "lookup_p999_ns": at(took, 0.999), "lookup_max_ns": at(took, 1),
		"cas": len(f.writes), "cas_failed": f.failed, "cas_p50_ms": at(f.writes, 0.5), "cas_p99_ms": at(f.writes, 0.99),
	}
}

func at(values []float64, share float64) float64 {
	if len(values) == 0 {
		return 0
	}
	sort.Float64s(values)
	return values[min(int(float64(len(values))*share), len(values)-1)]
}

// owners of a sample of keys, as every node sees them.
func (f *fleet) owners() []string {
	owners := []string{}
	for _, n := range f.nodes {
		for i := uint32(0); i < 1024; i++ {
			set, err := n.ring.Get(i*0x9E3779B9, ring.Write, nil, nil, nil)
			ids := []string{}
			for _, instance := range set.Instances {
				ids = append(ids, instance.Id)
			}
			owners = append(owners, fmt.Sprint(ids, err))
		}
	}
	return owners
}
