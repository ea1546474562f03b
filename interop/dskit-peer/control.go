package main

import (
	"encoding/json"
	"fmt"
	"net/http"
	"sort"
	"strconv"
	"strings"
	"time"

	"github.com/grafana/dskit/ring"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// control answers requests. /memberlist, /ring and /metrics are dskit's own pages.
func (p *peer) control() http.Handler {
	mux := http.NewServeMux()
	mux.Handle("/memberlist", p.memberlist)
	mux.Handle("/ring", p.ring)
	mux.Handle("/metrics", promhttp.HandlerFor(p.registry, promhttp.HandlerOpts{}))
	for path, answer := range map[string]func(*http.Request) (any, error){
		"/get":      p.get,
		"/put":      p.put,
		"/remove":   p.remove,
		"/delete":   p.delete,
		"/owners":   p.owners,
		"/state":    p.state,
		"/readonly": p.readOnly,
		"/join":     p.join,
		"/leave":    p.leaveNow,
	} {
		mux.HandleFunc(path, func(w http.ResponseWriter, r *http.Request) {
			value, err := answer(r)
			if err != nil {
				http.Error(w, err.Error(), http.StatusInternalServerError)
				return
			}
			w.Header().Set("Content-Type", "application/json")
			_ = json.NewEncoder(w).Encode(value)
		})
	}
	return mux
}

// get: the ring as the store has it, ?key=.
func (p *peer) get(r *http.Request) (any, error) {
	return p.store.Get(r.Context(), r.FormValue("key"))
}

// put: writes an instance, ?key=&id=&addr=&zone=&tokens=1,2,3, as ACTIVE and of now.
func (p *peer) put(r *http.Request) (any, error) {
	now := time.Now()
	instance := ring.InstanceDesc{
		Id:                  r.FormValue("id"),
		Addr:                r.FormValue("addr"),
		Zone:                r.FormValue("zone"),
		State:               ring.ACTIVE,
		Timestamp:           now.Unix(),
		RegisteredTimestamp: now.Unix(),
	}
	for _, text := range strings.Split(r.FormValue("tokens"), ",") {
		token, err := strconv.ParseUint(text, 10, 32)
		if err != nil {
			return nil, err
		}
		instance.Tokens = append(instance.Tokens, uint32(token))
	}
	return p.edit(r, func(desc *ring.Desc) { desc.Ingesters[instance.Id] = instance })
}

// remove: takes an instance out of the ring, ?key=&id=, as the button "forget" of the ring's page does.
func (p *peer) remove(r *http.Request) (any, error) {
	return p.edit(r, func(desc *ring.Desc) { desc.RemoveIngester(r.FormValue("id")) })
}

// delete: deletes the key, ?key=.
func (p *peer) delete(r *http.Request) (any, error) {
	return "ok", p.store.Delete(r.Context(), r.FormValue("key"))
}

func (p *peer) edit(r *http.Request, change func(*ring.Desc)) (any, error) {
	return "ok", p.store.CAS(r.Context(), r.FormValue("key"), func(in any) (any, bool, error) {
		desc := ring.GetOrCreateRingDesc(in)
		if desc.Ingesters == nil {
			desc.Ingesters = map[string]ring.InstanceDesc{}
		}
		change(desc)
		return desc, true, nil
	})
}

// owners: who owns each of ?keys=1,2,3 for ?op=write or read: names, or the error as a text.
func (p *peer) owners(r *http.Request) (any, error) {
	operation := ring.Write
	if r.FormValue("op") == "read" {
		operation = ring.Read
	}
	answers := []any{}
	for _, text := range strings.Split(r.FormValue("keys"), ",") {
		key, err := strconv.ParseUint(text, 10, 32)
		if err != nil {
			return nil, err
		}
		set, err := p.ring.Get(uint32(key), operation, nil, nil, nil)
		if err != nil {
			answers = append(answers, err.Error())
			continue
		}
		ids := []string{}
		for _, instance := range set.Instances {
			ids = append(ids, instance.Id)
		}
		sort.Strings(ids)
		answers = append(answers, ids)
	}
	return answers, nil
}

// state: changes the state of our instance, ?to=LEAVING.
func (p *peer) state(r *http.Request) (any, error) {
	to, known := ring.InstanceState_value[r.FormValue("to")]
	if !known {
		return nil, fmt.Errorf("no such state: %q", r.FormValue("to"))
	}
	return "ok", p.lifecycler.ChangeState(r.Context(), ring.InstanceState(to))
}

// readonly: ?to=true or false.
func (p *peer) readOnly(r *http.Request) (any, error) {
	return "ok", p.lifecycler.ChangeReadOnlyState(r.Context(), r.FormValue("to") == "true")
}

// join: joins through members, ?through=HOST:PORT,…
func (p *peer) join(r *http.Request) (any, error) {
	return p.gossip.JoinMembers(strings.Split(r.FormValue("through"), ","))
}

// leave: answers when the peer has left, just before it ends.
func (p *peer) leaveNow(*http.Request) (any, error) {
	p.leave()
	return "ok", nil
}
