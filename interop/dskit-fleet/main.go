// dskit-fleet runs N members of a cluster of Grafana's databases in one process, without the databases: each with dskit's
// multi store over Consul and memberlist, its ring and its lifecycler, as Mimir and Loki put them together. Beside them
// stand observers, which only gossip, and remember every instance that they saw LEFT.
//
// It obeys commands, one a line, and answers each with a line of JSON; it ends with its input. benches/hazards runs it, and
// N Annulus nodes that take the same commands (benches/hazards/fleet.rs).
package main

import (
	"bufio"
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"time"

	"github.com/grafana/dskit/kv"
)

// The longest wait for the fleet to be complete.
const patience = time.Minute

func main() {
	nodes := flag.Int("nodes", 12, "members at the start")
	observers := flag.Int("observers", 3, "members of the gossip cluster that only watch")
	isolated := flag.Bool("isolated", false, "the last member never reaches the gossip cluster")
	consul := flag.String("consul", "127.0.0.1:8500", "host:port of Consul")
	heartbeat := flag.Duration("heartbeat", 2*time.Second, "time between heartbeats of a member")
	flag.Parse()

	fleet, err := start(*nodes, *observers, *isolated, *consul, *heartbeat)
	check(err)
	answer(map[string]any{"program": "dskit"})
	commands := bufio.NewScanner(os.Stdin)
	for commands.Scan() {
		begin := time.Now()
		switch command := commands.Text(); command {
		case "mirror":
			on := true
			fleet.tell(kv.MultiRuntimeConfig{Mirroring: &on})
			check(fleet.untilMirrored())
			answer(map[string]any{"mirror_ms": time.Since(begin).Milliseconds()})
		case "join":
			fleet.join()
			answer(map[string]any{})
		case "flip":
			fleet.tell(kv.MultiRuntimeConfig{PrimaryStore: "memberlist"})
			check(fleet.untilFlipped())
			answer(map[string]any{"flip_ms": time.Since(begin).Milliseconds()})
		case "count":
			answer(fleet.count())
		case "leave":
			check(fleet.leave())
			answer(map[string]any{"leave_ms": time.Since(begin).Milliseconds()})
		default:
			check(fmt.Errorf("there is no command %q", command))
		}
	}
}

func answer(value any) {
	check(json.NewEncoder(os.Stdout).Encode(value))
}

func check(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, "dskit-fleet:", err)
		os.Exit(1)
	}
}

// until asks again and again until the condition holds.
func until(what string, condition func(context.Context) bool) error {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	for !condition(ctx) {
		select {
		case <-ctx.Done():
			return fmt.Errorf("waited in vain until %s", what)
		case <-time.After(20 * time.Millisecond):
		}
	}
	return nil
}
