package main

import (
	"encoding/json"
	"fmt"
	"math/rand"
	"net/http"
	"net/http/httptest"
	"sync"
	"time"

	"github.com/grafana/dskit/kv/memberlist"
	"github.com/grafana/dskit/ring"
	"github.com/prometheus/client_golang/prometheus"
)

// How often an observer looks. benches/hazards/fleet.rs looks as often.
const look = 50 * time.Millisecond

// observer gossips and is not in the ring. What it gossips it looks at all the time.
type observer struct {
	gossip *memberlist.KVInitService
	mu     sync.Mutex
	now    ring.Desc
	// Instances that were LEFT, by the dates at which they are said to have left.
	left map[string]map[int64]bool
}

func watch(seeds []string) (*observer, error) {
	name := fmt.Sprintf("observer-%d", rand.Int31())
	service, _, err := gossiper(name, seeds, prometheus.NewRegistry())
	if err != nil {
		return nil, err
	}
	o := &observer{gossip: service, left: map[string]map[int64]bool{}}
	go func() {
		for range time.Tick(look) {
			o.look()
		}
	}()
	return o, nil
}

// look reads dskit's own page: what clients of the store get is without those that left.
func (o *observer) look() {
	page := httptest.NewRecorder()
	request := httptest.NewRequest(http.MethodGet, "/memberlist?format=json&viewKey="+prefix+ringKey, nil)
	o.gossip.ServeHTTP(page, request)
	var desc ring.Desc
	if page.Code != http.StatusOK || json.Unmarshal(page.Body.Bytes(), &desc) != nil {
		return
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	o.now = desc
	for id, instance := range desc.Ingesters {
		if instance.State == ring.LEFT {
			if o.left[id] == nil {
				o.left[id] = map[int64]bool{}
			}
			o.left[id][instance.Timestamp] = true
		}
	}
}

func (o *observer) live() int {
	o.mu.Lock()
	defer o.mu.Unlock()
	return active(&o.now)
}

func (o *observer) collect(into map[string]map[int64]bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	for id, dates := range o.left {
		if into[id] == nil {
			into[id] = map[int64]bool{}
		}
		for date := range dates {
			into[id][date] = true
		}
	}
}
