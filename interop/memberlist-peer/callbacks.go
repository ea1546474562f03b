package main

import (
	"sync"

	"github.com/hashicorp/memberlist"
)

// peer is all of memberlist's delegates: it prints what they are told.
type peer struct {
	list    *memberlist.Memberlist
	keyring *memberlist.Keyring
	queue   *memberlist.TransmitLimitedQueue

	mutex sync.Mutex
	meta  []byte
	state []byte
}

func (p *peer) NodeMeta(int) []byte {
	p.mutex.Lock()
	defer p.mutex.Unlock()
	return p.meta
}

func (p *peer) LocalState(bool) []byte {
	p.mutex.Lock()
	defer p.mutex.Unlock()
	return p.state
}

func (p *peer) NotifyMsg(message []byte) {
	print(object{"event": "message", "bytes": len(message), "text": string(message)})
}

func (p *peer) MergeRemoteState(state []byte, join bool) {
	print(object{"event": "state", "bytes": len(state), "text": string(state), "join": join})
}

func (p *peer) GetBroadcasts(overhead, limit int) [][]byte {
	return p.queue.GetBroadcasts(overhead, limit)
}

func (p *peer) NotifyJoin(node *memberlist.Node)   { printNode("join", node) }
func (p *peer) NotifyLeave(node *memberlist.Node)  { printNode("leave", node) }
func (p *peer) NotifyUpdate(node *memberlist.Node) { printNode("update", node) }

func (p *peer) NotifyConflict(existing, other *memberlist.Node) {
	print(object{"event": "conflict", "node": describe(existing), "other": describe(other)})
}

// broadcast is a user message for everyone.
type broadcast []byte

func (b broadcast) Invalidates(memberlist.Broadcast) bool { return false }
func (b broadcast) Message() []byte                       { return b }
func (b broadcast) Finished()                             {}
