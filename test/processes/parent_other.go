//go:build !linux

package processes

import "syscall"

// endWithParent is known to Linux only: elsewhere a process outlives a parent that is killed.
func endWithParent() *syscall.SysProcAttr { return nil }

// gone is not known here before somebody waits.
func gone(int) bool { return false }
