// dskit-peer is a member of a cluster of Grafana's databases, without a database: dskit's memberlist store over its TCP
// transport, its multi store, its ring and its lifecycler, as Mimir and Loki put them together.
//
// It takes dskit's own flags (-memberlist.*, -consul.*, -multi.*, -store, -runtime-config.*) and those of config.go. When it is ready it
// prints one line, {"http":"ADDRESS","gossip_port":PORT}, and then obeys requests at that address (control.go). It
// leaves in good order on SIGTERM, on /leave, and when its standard input ends, so that none outlives its test.
package main

import (
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/signal"
	"syscall"
)

func main() {
	settings := parseFlags()
	peer, err := start(settings)
	if err != nil {
		fail(err)
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		fail(err)
	}
	go func() { _ = http.Serve(listener, peer.control()) }()
	ready := map[string]any{"http": listener.Addr().String(), "gossip_port": peer.gossipPort()}
	if err := json.NewEncoder(os.Stdout).Encode(ready); err != nil {
		fail(err)
	}
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGINT, syscall.SIGTERM)
	go func() {
		<-signals
		peer.leave()
	}()
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin)
		peer.leave()
	}()
	<-peer.left
}

func fail(err error) {
	fmt.Fprintln(os.Stderr, "dskit-peer:", err)
	os.Exit(1)
}
