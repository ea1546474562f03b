//go:build !upstream

package main

import (
	"flag"

	"github.com/hashicorp/memberlist"
)

// registerForkFlags adds what only Grafana's fork of memberlist has.
func registerForkFlags() func(*memberlist.Config) {
	algorithm := flag.String("compression-algorithm", "lzw", "lzw or snappy")
	return func(config *memberlist.Config) {
		config.CompressionAlgorithm = memberlist.CompressionAlgorithm(*algorithm)
	}
}
