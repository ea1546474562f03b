// memberlist-bench runs N members of HashiCorp's memberlist in one process on loopback addresses and measures joining,
// idling, a kill and a leave. It reads commands, one a line, and answers each with one line of JSON. benches/membership
// runs it beside N Annulus nodes, which take the same commands and answer with the same keys
// (benches/membership/cluster.rs).
//
// It should run in a network namespace of its own, so that the counters of the loopback interface are its alone.
package main

import (
	"bufio"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"os"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/memberlist"
)

func main() {
	nodes := flag.Int("nodes", 20, "how many members")
	profile := flag.String("profile", "lan", "lan, local, wan or grafana")
	compression := flag.String("compression", "lzw", "lzw (memberlist's default) or none")
	limit := flag.Duration("limit", time.Minute, "longest wait for one phase")
	flag.Parse()

	before, anonymousBefore := memoryKB()
	cluster := create(*nodes, *profile, *compression == "lzw")
	answer(map[string]any{"program": "memberlist", "nodes": *nodes, "profile": *profile, "compression": *compression})
	commands := bufio.NewScanner(os.Stdin)
	for commands.Scan() {
		words := strings.Fields(commands.Text())
		switch {
		case len(words) == 1 && words[0] == "storm":
			answer(cluster.storm(*limit))
		case len(words) == 2 && words[0] == "idle":
			runtime.GC() // what the storm left behind is not what a member needs
			seconds, err := strconv.Atoi(words[1])
			if err != nil {
				panic(err)
			}
			result := cluster.idle(time.Duration(seconds) * time.Second)
			resident, anonymous := memoryKB()
			result["rss_kb"] = float64(resident-before) / float64(*nodes)
			result["anon_kb"] = float64(anonymous-anonymousBefore) / float64(*nodes)
			answer(result)
		case len(words) == 1 && words[0] == "kill":
			victim := *nodes - 1
			answer(map[string]any{"dead_ms": cluster.gone(victim, *limit, func() { _ = cluster.members[victim].Shutdown() })})
		case len(words) == 1 && words[0] == "leave":
			leaver := *nodes - 2
			answer(map[string]any{"left_ms": cluster.gone(leaver, *limit, func() { go cluster.members[leaver].Leave(*limit) })})
		default:
			panic("there is no command " + commands.Text())
		}
	}
}

func answer(result map[string]any) {
	line, err := json.Marshal(result)
	if err != nil {
		panic(err)
	}
	fmt.Println(string(line))
}

type cluster struct {
	members []*memberlist.Memberlist
	// gone tells who was seen to go, by whom, and when.
	departures chan departure
}

type departure struct {
	seenBy int
	name   string
	at     time.Time
}

// events hears of one member's departures.
type events struct {
	owner      int
	departures chan<- departure
}

func (*events) NotifyJoin(*memberlist.Node)   {}
func (*events) NotifyUpdate(*memberlist.Node) {}
func (e *events) NotifyLeave(node *memberlist.Node) {
	e.departures <- departure{e.owner, node.Name, time.Now()}
}

func name(i int) string    { return fmt.Sprintf("node-%03d", i) }
func address(i int) string { return fmt.Sprintf("127.1.%d.%d", i/200, 1+i%200) }

func create(nodes int, profile string, compress bool) *cluster {
	// Deep enough for everybody's view of everybody: a handler that waits would hold its member up.
	c := &cluster{departures: make(chan departure, nodes*nodes)}
	for i := range nodes {
		config := settings(profile)
		config.Name = name(i)
		config.BindAddr, config.AdvertiseAddr = address(i), address(i)
		config.BindPort, config.AdvertisePort = 7946, 7946
		config.LogOutput = io.Discard
		config.EnableCompression = compress
		config.Events = &events{i, c.departures}
		member, err := memberlist.Create(config)
		if err != nil {
			panic(err)
		}
		c.members = append(c.members, member)
	}
	return c
}

func settings(profile string) *memberlist.Config {
	switch profile {
	case "wan":
		return memberlist.DefaultWANConfig()
	case "local":
		return memberlist.DefaultLocalConfig()
	case "grafana":
		// What Grafana's databases lay over the LAN defaults, but for their own transport.
		config := memberlist.DefaultLANConfig()
		config.ProbeInterval, config.ProbeTimeout = 5*time.Second, 2*time.Second
		config.TCPTimeout = 2 * time.Second
		config.DisableTcpPings = true
		return config
	case "lan":
		return memberlist.DefaultLANConfig()
	}
	panic("unknown profile " + profile)
}

// storm lets all members join the first one at once, and waits until everybody sees everybody.
func (c *cluster) storm(limit time.Duration) map[string]any {
	bytes, _ := loopback()
	cpu := cpuSeconds()
	start := time.Now()
	var joining sync.WaitGroup
	for _, member := range c.members[1:] {
		joining.Go(func() {
			for time.Since(start) < limit {
				if _, err := member.Join([]string{address(0) + ":7946"}); err == nil {
					return
				}
				time.Sleep(50 * time.Millisecond)
			}
		})
	}
	complete := make([]float64, len(c.members))
	for done := 0; done < len(c.members) && time.Since(start) < limit; time.Sleep(10 * time.Millisecond) {
		done = 0
		for i, member := range c.members {
			if complete[i] == 0 && member.NumMembers() >= len(c.members) {
				complete[i] = milliseconds(time.Since(start))
			}
			if complete[i] > 0 {
				done++
			}
		}
	}
	joining.Wait()
	after, _ := loopback()
	return map[string]any{
		"joined_ms":  complete,
		"join_cpu_s": cpuSeconds() - cpu,
		"join_mb":    (after - bytes) / 1e6,
	}
}

// idle counts what doing nothing costs.
func (c *cluster) idle(length time.Duration) map[string]any {
	bytes, packets := loopback()
	cpu := cpuSeconds()
	time.Sleep(length)
	bytesAfter, packetsAfter := loopback()
	nodes, seconds := float64(len(c.members)), length.Seconds()
	return map[string]any{
		"idle_cpu_ms_per_s":  (cpuSeconds() - cpu) * 1e3 / nodes / seconds,
		"idle_bytes_per_s":   (bytesAfter - bytes) / nodes / seconds,
		"idle_packets_per_s": (packetsAfter - packets) / nodes / seconds,
	}
}

// gone lets one member go, and returns when each of the others saw that, in milliseconds; 0 for those that did not.
func (c *cluster) gone(who int, limit time.Duration, goes func()) []float64 {
	for len(c.departures) > 0 {
		<-c.departures
	}
	start := time.Now()
	goes()
	seen := make(map[int]float64)
	// Two members are gone by the time that the second one is: nobody waits for what those saw.
	last := min(who, len(c.members)-1)
	timeout := time.After(limit)
	for len(seen) < last {
		select {
		case d := <-c.departures:
			if d.name == name(who) && d.seenBy < last {
				seen[d.seenBy] = milliseconds(d.at.Sub(start))
			}
		case <-timeout:
			return padded(seen, last)
		}
	}
	return padded(seen, last)
}

func padded(seen map[int]float64, count int) []float64 {
	list := make([]float64, count)
	for i := range list {
		list[i] = seen[i]
	}
	return list
}

func milliseconds(d time.Duration) float64 { return float64(d.Microseconds()) / 1e3 }
