package processes

import (
	"syscall"

	"golang.org/x/sys/unix"
)

// endWithParent lets the kernel kill a process when the thread that started it ends.
func endWithParent() *syscall.SysProcAttr { return &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL} }

// gone tells whether a child has ended that nobody has waited for: a signal would still reach it.
func gone(pid int) bool {
	var info unix.Siginfo
	err := unix.Waitid(unix.P_PID, pid, &info, unix.WEXITED|unix.WNOHANG|unix.WNOWAIT, nil)
	return err != nil || info.Signo != 0
}
