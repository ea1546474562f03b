package main

import (
	"bufio"
	"encoding/base64"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/hashicorp/memberlist"
)

// obey carries out commands until there are no more:
//
//	members                      who is alive or suspect
//	join ADDR                    exchange state with a member
//	udp NODE TEXT, tcp NODE TEXT tell one member
//	broadcast TEXT               tell everyone
//	state TEXT, meta TEXT        change what push/pulls carry; what the node says about itself
//	key-add|key-use|key-remove K keys, in base64
//	leave                        say goodbye
func (p *peer) obey(commands io.Reader) {
	lines := bufio.NewScanner(commands)
	lines.Buffer(make([]byte, 1<<16), 1<<24)
	for lines.Scan() {
		command, argument, _ := strings.Cut(lines.Text(), " ")
		answer := object{"event": "done", "command": command}
		if err := p.carryOut(command, argument, answer); err != nil {
			answer["error"] = err.Error()
		}
		print(answer)
	}
}

func (p *peer) carryOut(command, argument string, answer object) error {
	switch command {
	case "members":
		members := []object{}
		for _, node := range p.list.Members() {
			members = append(members, describe(node))
		}
		answer["members"] = members
		return nil
	case "join":
		count, err := p.list.Join([]string{argument})
		answer["joined"] = count
		return err
	case "udp", "tcp":
		return p.send(command, argument)
	case "broadcast":
		p.queue.QueueBroadcast(broadcast(argument))
		return nil
	case "state", "meta":
		return p.set(command, argument)
	case "key-add", "key-use", "key-remove":
		return p.changeKeys(command, argument)
	case "leave":
		return p.list.Leave(10 * time.Second)
	default:
		return fmt.Errorf("no such command: %s", command)
	}
}

func (p *peer) send(how, argument string) error {
	name, text, _ := strings.Cut(argument, " ")
	var to *memberlist.Node
	for _, node := range p.list.Members() {
		if node.Name == name {
			to = node
		}
	}
	if to == nil {
		return fmt.Errorf("no such member: %s", name)
	}
	if how == "udp" {
		return p.list.SendBestEffort(to, []byte(text))
	}
	return p.list.SendReliable(to, []byte(text))
}

func (p *peer) set(what, text string) error {
	p.mutex.Lock()
	if what == "state" {
		p.state = []byte(text)
		p.mutex.Unlock()
		return nil
	}
	p.meta = []byte(text)
	p.mutex.Unlock()
	return p.list.UpdateNode(10 * time.Second)
}

func (p *peer) changeKeys(command, text string) error {
	key, err := base64.StdEncoding.DecodeString(text)
	if err != nil {
		return err
	}
	if p.keyring == nil {
		return fmt.Errorf("this node was started without keys")
	}
	switch command {
	case "key-add":
		return p.keyring.AddKey(key)
	case "key-use":
		return p.keyring.UseKey(key)
	default:
		return p.keyring.RemoveKey(key)
	}
}
