package main

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/grafana/dskit/kv"
	"github.com/grafana/dskit/ring"
	"github.com/grafana/dskit/services"
)

// Nobody listens there.
const nowhere = "127.0.0.1:1"

type fleet struct {
	consul    string
	heartbeat time.Duration
	mu        sync.Mutex
	members   []*member
	observers []*observer
	// Members at the start that gossip.
	gossiping int
	mirroring bool
	started   int
	failed    []string
}

// start returns when Consul has all members, ACTIVE.
func start(nodes, observers int, isolated bool, consul string, heartbeat time.Duration) (*fleet, error) {
	f := &fleet{consul: consul, heartbeat: heartbeat, gossiping: nodes}
	if isolated {
		f.gossiping--
	}
	if err := f.add(nil, false); err != nil {
		return nil, err
	}
	seeds := f.seeds()
	for range observers {
		o, err := watch(seeds)
		if err != nil {
			return nil, err
		}
		f.observers = append(f.observers, o)
	}
	failures := make(chan error, nodes)
	for number := 1; number < nodes; number++ {
		seeds := seeds
		if number >= f.gossiping {
			seeds = []string{nowhere}
		}
		go func() { failures <- f.add(seeds, false) }()
	}
	for number := 1; number < nodes; number++ {
		if err := <-failures; err != nil {
			return nil, err
		}
	}
	return f, until("Consul has all members", func(ctx context.Context) bool {
		value, err := f.members[0].store.Get(ctx, ringKey)
		desc, ok := value.(*ring.Desc)
		return err == nil && ok && active(desc) == nodes
	})
}

// add starts one more member and returns when it is in the ring.
func (f *fleet) add(seeds []string, mirror bool) error {
	f.mu.Lock()
	f.started++
	name := fmt.Sprintf("dskit-%d", f.started)
	f.mu.Unlock()
	m, err := newMember(name, seeds, f.consul, f.heartbeat, mirror)
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.members = append(f.members, m)
	return nil
}

// join starts one more member and does not wait for it.
func (f *fleet) join() {
	go func() {
		if err := f.add(f.seeds(), true); err != nil {
			f.mu.Lock()
			defer f.mu.Unlock()
			f.failed = append(f.failed, err.Error())
		}
	}()
}

func (f *fleet) seeds() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return []string{f.members[0].address()}
}

// tell says to all members what a runtime configuration would.
func (f *fleet) tell(message kv.MultiRuntimeConfig) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, m := range f.members {
		m.runtime <- message
	}
}

func (f *fleet) untilMirrored() error {
	return until("the observers see all members", func(context.Context) bool {
		for _, o := range f.observers {
			if o.live() < f.gossiping {
				return false
			}
		}
		return true
	})
}

func (f *fleet) untilFlipped() error {
	return until("all members read gossip", func(context.Context) bool {
		for _, m := range f.members {
			if m.gauge("multikv_primary_store", "memberlist") != 1 {
				return false
			}
		}
		return true
	})
}

// count says what the observers saw since the start, and how many mirrored writes the members say have failed.
func (f *fleet) count() map[string]any {
	f.mu.Lock()
	defer f.mu.Unlock()
	left, live := map[string]map[int64]bool{}, -1
	for _, o := range f.observers {
		o.collect(left)
		if now := o.live(); live < 0 || now < live {
			live = now
		}
	}
	times, hit := 0, []string{}
	for id, dates := range left {
		times += len(dates)
		hit = append(hit, id)
	}
	errors := 0.0
	for _, m := range f.members {
		errors += m.gauge("multikv_mirror_write_errors_total", "")
	}
	return map[string]any{
		"false_left": times, "hit": hit, "live": live, "mirror_errors": errors, "members": len(f.members), "failed": f.failed,
	}
}

// leave takes the last member out of the ring; the observers must see that.
func (f *fleet) leave() error {
	last := f.members[len(f.members)-1]
	if err := services.StopAndAwaitTerminated(context.Background(), last.lifecycler); err != nil {
		return err
	}
	return until("the observers see a member leave", func(context.Context) bool {
		left := map[string]map[int64]bool{}
		for _, o := range f.observers {
			o.collect(left)
		}
		return left[last.lifecycler.GetInstanceID()] != nil
	})
}

func active(desc *ring.Desc) int {
	count := 0
	for _, instance := range desc.Ingesters {
		if instance.State == ring.ACTIVE {
			count++
		}
	}
	return count
}
