package main

import (
	"flag"
	"time"

	"github.com/grafana/dskit/flagext"
	"github.com/grafana/dskit/kv"
	"github.com/grafana/dskit/kv/memberlist"
	"github.com/grafana/dskit/ring"
	"github.com/grafana/dskit/runtimeconfig"
)

// settings is what the flags say.
type settings struct {
	memberlist       memberlist.KVConfig
	store            kv.Config
	key              string
	ring             ring.Config
	instance         ring.BasicLifecyclerConfig
	runtime          runtimeconfig.Config
	state            string
	leaveRing        bool
	tokensFile       string
	logLevel         string
	heartbeatTimeout time.Duration
}

func parseFlags() *settings {
	s := &settings{}
	flagext.DefaultValues(&s.memberlist)
	s.memberlist.RegisterFlags(flag.CommandLine)
	s.store.Store = "memberlist"
	s.store.RegisterFlagsWithPrefix("", "", flag.CommandLine)
	// -runtime-config.file and -runtime-config.reload-period
	s.runtime.RegisterFlags(flag.CommandLine)
	flag.StringVar(&s.key, "key", "ring", "key of the ring in the store")
	flag.StringVar(&s.instance.ID, "id", "", "name of our instance; empty: we only read the ring")
	flag.StringVar(&s.instance.Addr, "addr", "127.0.0.1:9095", "address of our instance")
	flag.StringVar(&s.instance.Zone, "zone", "", "zone of our instance")
	flag.IntVar(&s.instance.NumTokens, "tokens", 128, "tokens of our instance")
	flag.DurationVar(&s.instance.HeartbeatPeriod, "heartbeat", 5*time.Second, "time between heartbeats")
	flag.DurationVar(&s.heartbeatTimeout, "heartbeat-timeout", time.Minute, "when an instance counts as unhealthy")
	flag.StringVar(&s.state, "state", "ACTIVE", "state in which our instance registers")
	flag.BoolVar(&s.leaveRing, "leave-ring", true, "remove our instance from the ring when we leave")
	flag.StringVar(&s.tokensFile, "tokens-file", "", "file that keeps our tokens")
	flag.IntVar(&s.ring.ReplicationFactor, "replication-factor", 3, "owners of a key")
	flag.BoolVar(&s.ring.ZoneAwarenessEnabled, "zone-aware", false, "owners in different zones")
	flag.StringVar(&s.logLevel, "log", "info", "what is logged to standard error")
	flag.Parse()
	s.ring.HeartbeatTimeout = s.heartbeatTimeout
	s.instance.HeartbeatTimeout = s.heartbeatTimeout
	s.instance.KeepInstanceInTheRingOnShutdown = !s.leaveRing
	return s
}
