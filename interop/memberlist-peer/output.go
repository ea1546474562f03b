package main

import (
	"encoding/json"
	"os"
	"runtime/debug"
	"sync"

	"github.com/hashicorp/memberlist"
)

type object = map[string]any

var (
	outputMutex sync.Mutex
	output      = json.NewEncoder(os.Stdout)
)

// print writes one line. Callbacks come from several goroutines.
func print(line object) {
	outputMutex.Lock()
	defer outputMutex.Unlock()
	if err := output.Encode(line); err != nil {
		// Nobody reads any more.
		os.Exit(1)
	}
}

func printNode(event string, node *memberlist.Node) {
	print(object{"event": event, "node": describe(node)})
}

func describe(node *memberlist.Node) object {
	versions := []uint8{node.PMin, node.PMax, node.PCur, node.DMin, node.DMax, node.DCur}
	numbers := make([]int, 0, len(versions))
	for _, version := range versions {
		numbers = append(numbers, int(version))
	}
	return object{"name": node.Name, "addr": node.Address(), "meta": string(node.Meta), "versions": numbers}
}

// libraryVersion says which memberlist this is.
func libraryVersion() string {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return "unknown"
	}
	for _, module := range info.Deps {
		if module.Path == "github.com/hashicorp/memberlist" {
			if module.Replace != nil {
				return module.Replace.Version
			}
			return module.Version
		}
	}
	return "unknown"
}
