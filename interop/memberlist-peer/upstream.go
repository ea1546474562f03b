//go:build upstream

package main

import "github.com/hashicorp/memberlist"

// registerForkFlags adds nothing: hashicorp/memberlist knows LZW only.
func registerForkFlags() func(*memberlist.Config) {
	return func(*memberlist.Config) {}
}
