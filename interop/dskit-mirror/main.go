// dskit-mirror is many nodes with dskit's multi store in one process, for `cargo bench --bench migration`: each has a
// Consul client, a memberlist store over dskit's TCP transport, a ring, and an instance whose heartbeat it writes.
//
// It obeys commands on its standard input, one a line, and answers each with a line of JSON: `measure SECONDS`,
// `mirror`, `flip`. It ends with its input.
package main

import (
	"bufio"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"
)

func main() {
	consul := flag.String("consul", "localhost:8500", "HOST:PORT of Consul")
	runtime := flag.String("runtime", "", "file whose words `mirror` and `flipped` say what a runtime configuration would")
	nodes := flag.Int("nodes", 20, "nodes")
	instances := flag.Int("instances", 300, "instances in the ring")
	heartbeat := flag.Duration("heartbeat", time.Second, "time between the heartbeats of a node")
	reload := flag.Duration("reload", time.Second, "time between two looks at the file")
	flag.Parse()
	fleet, err := start(*consul, *runtime, *nodes, *instances, *heartbeat, *reload)
	if err != nil {
		fmt.Fprintln(os.Stderr, "dskit-mirror:", err)
		os.Exit(1)
	}
	answers := json.NewEncoder(os.Stdout)
	_ = answers.Encode(map[string]any{"program": "dskit"})
	lines := bufio.NewScanner(os.Stdin)
	for lines.Scan() {
		words := strings.Fields(lines.Text())
		answer := map[string]any{}
		switch words[0] {
		case "measure":
			seconds, _ := strconv.ParseFloat(words[1], 64)
			answer = fleet.measure(func() { time.Sleep(time.Duration(seconds * float64(time.Second))) })
		case "mirror":
			_ = fleet.tell("mirror")
		case "flip":
			before := fleet.owners()
			took := time.Duration(0)
			answer = fleet.measure(func() {
				took = fleet.tell("mirror flipped")
				time.Sleep(time.Second)
			})
			answer["flip_ms"] = took.Seconds() * 1e3
			answer["owners_moved"] = moved(before, fleet.owners())
		}
		_ = answers.Encode(answer)
	}
}

func moved(before, after []string) int {
	count := 0
	for i := range before {
		if before[i] != after[i] {
			count++
		}
	}
	return count
}
