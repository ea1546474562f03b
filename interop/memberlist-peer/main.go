// memberlist-peer is a member of a memberlist cluster that tests can look into and tell what to do.
//
// It prints one JSON object a line: {"event":"ready",…} when it listens, then whatever its callbacks hear. It obeys
// commands on its standard input, one a line (commands.go), and answers each with {"event":"done",…}. It ends when its
// standard input does, so that none outlives the test that started it.
//
// The same source is built against two libraries: go.mod has Grafana's fork of memberlist, upstream.mod the newest
// hashicorp/memberlist (go build -modfile=upstream.mod -tags upstream).
package main

import (
	"fmt"
	"os"

	"github.com/hashicorp/memberlist"
)

func main() {
	peer := &peer{}
	config, err := parseFlags(peer)
	if err != nil {
		fail(err)
	}
	// The queue asks for the size of the cluster while the list is still being made.
	ready := make(chan struct{})
	peer.queue = &memberlist.TransmitLimitedQueue{
		RetransmitMult: config.RetransmitMult,
		NumNodes: func() int {
			select {
			case <-ready:
				return peer.list.NumMembers()
			default:
				return 1
			}
		},
	}
	if peer.list, err = memberlist.Create(config); err != nil {
		fail(err)
	}
	peer.keyring = config.Keyring
	close(ready)
	print(object{"event": "ready", "version": libraryVersion(), "node": describe(peer.list.LocalNode())})
	peer.obey(os.Stdin)
	_ = peer.list.Shutdown()
}

func fail(err error) {
	fmt.Fprintln(os.Stderr, "memberlist-peer:", err)
	os.Exit(1)
}
