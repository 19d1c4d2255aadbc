package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"syscall"
	"time"
)

// profiler is perf attached to every process of a system: the servers need no flag for it.
type profiler struct {
	commands []*exec.Cmd
}

// startProfiler records for the duration given; `perf report -i directory/row.process.perf` reads what it wrote.
func startProfiler(s *system, directory, row string, duration time.Duration) (*profiler, error) {
	if err := os.MkdirAll(directory, 0o755); err != nil {
		return nil, err
	}
	profile := new(profiler)
	for _, p := range s.processes {
		command := exec.Command("perf", "record", "-q", "-g", "-F", "997",
			"-o", filepath.Join(directory, row+"."+p.name+".perf"), "-p", strconv.Itoa(p.command.Process.Pid),
			"--", "sleep", fmt.Sprintf("%.1f", duration.Seconds()))
		command.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
		if err := command.Start(); err != nil {
			return nil, errors.Join(err, profile.wait())
		}
		profile.commands = append(profile.commands, command)
	}
	return profile, nil
}

// wait returns when perf has written everything. A nil profiler has nothing to write.
func (p *profiler) wait() error {
	if p == nil {
		return nil
	}
	var failed error
	for _, command := range p.commands {
		failed = errors.Join(failed, command.Wait())
	}
	return failed
}
