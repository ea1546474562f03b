package main

import (
	"fmt"
	"os"
	"strings"
	"syscall"
)

// cpuSeconds is the processor time of this process so far.
func cpuSeconds() float64 {
	var usage syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &usage); err != nil {
		panic(err)
	}
	return float64(usage.Utime.Sec+usage.Stime.Sec) + float64(usage.Utime.Usec+usage.Stime.Usec)/1e6
}

// memoryKB is what is resident of this process, and of it what is heap and stacks rather than the program's file.
func memoryKB() (resident, anonymous int) {
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		panic(err)
	}
	for line := range strings.Lines(string(status)) {
		fmt.Sscanf(line, "VmRSS: %d kB", &resident)
		fmt.Sscanf(line, "RssAnon: %d kB", &anonymous)
	}
	if resident == 0 || anonymous == 0 {
		panic("/proc/self/status has no VmRSS or no RssAnon")
	}
	return resident, anonymous
}

// loopback is what the loopback interface of this namespace carried so far: bytes and packets.
func loopback() (bytes, packets float64) {
	devices, err := os.ReadFile("/proc/net/dev")
	if err != nil {
		panic(err)
	}
	for line := range strings.Lines(string(devices)) {
		if rest, found := strings.CutPrefix(strings.TrimSpace(line), "lo:"); found {
			fmt.Sscan(rest, &bytes, &packets)
		}
	}
	return bytes, packets
}
