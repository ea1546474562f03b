package main

import (
	"encoding/base64"
	"flag"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/hashicorp/memberlist"
)

// parseFlags makes memberlist's configuration from its LAN preset and the command line.
func parseFlags(peer *peer) (*memberlist.Config, error) {
	config := memberlist.DefaultLANConfig()
	flag.StringVar(&config.Name, "name", "go", "name of the node")
	flag.StringVar(&config.BindAddr, "bind", "127.0.0.1", "address to listen on")
	flag.IntVar(&config.BindPort, "port", 0, "port to listen on, UDP and TCP; 0 picks one")
	flag.StringVar(&config.Label, "label", "", "cluster label")
	flag.BoolVar(&config.EnableCompression, "compress", false, "compress what is sent")
	flag.IntVar(&config.SuspicionMult, "suspicion-mult", config.SuspicionMult, "length of a suspicion")
	for name, setting := range map[string]*time.Duration{
		"gossip-interval":    &config.GossipInterval,
		"probe-interval":     &config.ProbeInterval,
		"probe-timeout":      &config.ProbeTimeout,
		"push-pull-interval": &config.PushPullInterval,
		"dead-reclaim-time":  &config.DeadNodeReclaimTime,
		"tcp-timeout":        &config.TCPTimeout,
	} {
		flag.DurationVar(setting, name, *setting, "memberlist's setting of that name")
	}
	keys := flag.String("keys", "", "gossip keys in base64, separated by commas; the first encrypts")
	meta := flag.String("meta", "", "metadata of the node")
	forkFlags := registerForkFlags()
	flag.Parse()

	peer.meta = []byte(*meta)
	config.AdvertiseAddr, config.AdvertisePort = config.BindAddr, config.BindPort
	config.Delegate, config.Events, config.Conflict = peer, peer, peer
	config.LogOutput = os.Stderr
	forkFlags(config)
	if *keys != "" {
		var err error
		if config.Keyring, err = keyring(strings.Split(*keys, ",")); err != nil {
			return nil, err
		}
	}
	return config, nil
}

func keyring(texts []string) (*memberlist.Keyring, error) {
	var keys [][]byte
	for _, text := range texts {
		key, err := base64.StdEncoding.DecodeString(text)
		if err != nil {
			return nil, fmt.Errorf("-keys: %w", err)
		}
		keys = append(keys, key)
	}
	return memberlist.NewKeyring(keys, keys[0])
}
