package chaos

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/logmirror/logmirror/test/processes"
)

// harm does harm to a cluster and takes it back.
type harm struct {
	t       *testing.T
	cluster *processes.Cluster
	links   *processes.Links
	random  *rand.Rand
	// disks are the small ones, by process; empty where none can be mounted.
	disks map[*processes.Process]*processes.SmallDisk
	done  map[string]int
}

// kind is one kind of harm. It tells what it did, and whether it came to do it.
type kind struct {
	name string
	do   func() (what string, did bool)
}

func (h *harm) kinds() []kind {
	kinds := []kind{
		{"kill a member", func() (string, bool) { return h.kill(h.one(h.cluster.Members)) }},
		{"kill a frontend", func() (string, bool) { return h.kill(h.one(h.cluster.Frontends)) }},
		{"kill the leader", h.killLeader},
		{"kill everything", h.killAll},
		{"pause a member", func() (string, bool) { return h.pause(h.one(h.cluster.Members)) }},
		{"pause a frontend", func() (string, bool) { return h.pause(h.one(h.cluster.Frontends)) }},
		{"cut off", h.cutOff},
		{"cut one way", h.cutOneWay},
		{"delete an image", func() (string, bool) { return h.image("deleted", h.deleteImage) }},
		{"damage an image", func() (string, bool) { return h.image("damaged", h.damageImage) }},
		{"no descriptors", h.noDescriptors},
		{"no memory", h.noMemory},
	}
	if len(h.disks) > 0 {
		kinds = append(kinds, kind{"full disk", h.fullDisk})
	}
	return kinds
}

// run does each kind once in every round, in an order that is drawn anew, until the time is over.
func (h *harm) run(duration time.Duration) {
	kinds := h.kinds()
	for end := time.Now().Add(duration); ; {
		for _, i := range h.random.Perm(len(kinds)) {
			if time.Now().After(end) || h.t.Failed() {
				return
			}
			what, did := kinds[i].do()
			if did {
				h.done[kinds[i].name]++
			}
			h.t.Logf("%s %s: %s", time.Now().Format("15:04:05.000"), kinds[i].name, what)
			h.rest(1500 * time.Millisecond)
		}
	}
}

// rest lets a drawn time pass: what was done shall have effects.
func (h *harm) rest(most time.Duration) time.Duration {
	d := time.Duration(h.random.Int64N(int64(most)))
	select {
	case <-time.After(d):
	case <-h.t.Context().Done():
	}
	return d
}

func (h *harm) one(all []*processes.Process) *processes.Process { return all[h.random.IntN(len(all))] }

func (h *harm) start(p *processes.Process) {
	if err := p.Start(); err != nil {
		h.t.Errorf("start %s: %v", p.Name, err)
	}
}

func (h *harm) kill(p *processes.Process) (string, bool) {
	p.Kill()
	down := h.rest(2 * time.Second)
	h.start(p)
	return fmt.Sprintf("%s, down for %v", p.Name, down), true
}

func (h *harm) killLeader() (string, bool) {
	leader, err := processes.Leader(h.t.Context(), h.cluster.Members)
	if err != nil {
		return err.Error(), false
	}
	return h.kill(leader)
}

func (h *harm) killAll() (string, bool) {
	processes.KillAll(h.cluster.All())
	down := h.rest(time.Second)
	for _, p := range h.cluster.All() {
		h.start(p)
	}
	return fmt.Sprintf("down for %v", down), true
}

func (h *harm) pause(p *processes.Process) (string, bool) {
	if err := p.Signal(syscall.SIGSTOP); err != nil {
		h.t.Errorf("pause %s: %v", p.Name, err)
		return err.Error(), false
	}
	paused := h.rest(4 * time.Second)
	if err := p.Signal(syscall.SIGCONT); err != nil {
		h.t.Errorf("resume %s: %v", p.Name, err)
	}
	return fmt.Sprintf("%s for %v", p.Name, paused), true
}

func (h *harm) cutOff() (string, bool) {
	region := h.cluster.Regions[h.random.IntN(len(h.cluster.Regions))]
	h.links.Network.Isolate(region)
	cut := h.rest(4 * time.Second)
	h.links.Network.Rejoin(region)
	return fmt.Sprintf("%s for %v", region, cut), true
}

func (h *harm) cutOneWay() (string, bool) {
	order := h.random.Perm(len(h.cluster.Regions))
	from, to := h.cluster.Regions[order[0]], h.cluster.Regions[order[1]]
	h.links.Network.CutOneWay(from, to)
	cut := h.rest(4 * time.Second)
	h.links.Network.HealAll()
	return fmt.Sprintf("from %s to %s for %v", from, to, cut), true
}

// image does something to the image of a frontend that was killed.
func (h *harm) image(what string, do func(path string) error) (string, bool) {
	p := h.one(h.cluster.Frontends)
	p.Kill()
	defer h.start(p)
	if err := do(filepath.Join(h.cluster.Data, p.Name, "image")); err != nil {
		return fmt.Sprintf("%s: %v", p.Name, err), false
	}
	return fmt.Sprintf("that of %s is %s", p.Name, what), true
}

func (h *harm) deleteImage(path string) error { return os.Remove(path) }

// damageImage turns one bit somewhere.
func (h *harm) damageImage(path string) (err error) {
	file, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, file.Close()) }()
	info, err := file.Stat()
	if err != nil || info.Size() == 0 {
		return errors.Join(err, errors.New("it is empty"))
	}
	at, one := h.random.Int64N(info.Size()), make([]byte, 1)
	if _, err := file.ReadAt(one, at); err != nil {
		return err
	}
	one[0] ^= 1 << h.random.IntN(8)
	_, err = file.WriteAt(one, at)
	return err
}

// noDescriptors takes a process's right to open anything more for a while.
func (h *harm) noDescriptors() (string, bool) {
	p := h.one(h.cluster.All())
	open, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", p.PID()))
	if err != nil {
		return err.Error(), false
	}
	before, err := limit(p, unix.RLIMIT_NOFILE, uint64(len(open)))
	if err != nil {
		return fmt.Sprintf("%s: %v", p.Name, err), false
	}
	without := h.rest(4 * time.Second)
	died := h.restartIfDead(p)
	if !died {
		if _, err := limit(p, unix.RLIMIT_NOFILE, before); err != nil {
			h.t.Errorf("%s: give descriptors back: %v", p.Name, err)
		}
	}
	return fmt.Sprintf("%s, no more than %d, for %v; it died of that: %v", p.Name, len(open), without, died), true
}

// noMemory takes a process's right to more memory than it has. It may die of that wherever it is then; it is killed if not.
func (h *harm) noMemory() (string, bool) {
	p := h.one(h.cluster.All())
	statm, err := os.ReadFile(fmt.Sprintf("/proc/%d/statm", p.PID()))
	if err != nil {
		return err.Error(), false
	}
	var pages uint64
	if _, err := fmt.Sscan(string(statm), &pages); err != nil {
		return err.Error(), false
	}
	if _, err := limit(p, unix.RLIMIT_AS, pages*uint64(os.Getpagesize())); err != nil {
		return fmt.Sprintf("%s: %v", p.Name, err), false
	}
	h.rest(4 * time.Second)
	died := h.restartIfDead(p)
	if !died {
		h.kill(p)
	}
	return fmt.Sprintf("%s; it died of that: %v", p.Name, died), true
}

// limit sets a soft limit of a process that runs, and returns the one before.
func limit(p *processes.Process, resource int, soft uint64) (before uint64, err error) {
	var old unix.Rlimit
	if err := unix.Prlimit(p.PID(), resource, nil, &old); err != nil {
		return 0, err
	}
	return old.Cur, unix.Prlimit(p.PID(), resource, &unix.Rlimit{Cur: min(soft, old.Max), Max: old.Max}, nil)
}

// restartIfDead starts a process again that has ended by itself.
func (h *harm) restartIfDead(p *processes.Process) (dead bool) {
	if !p.Gone() {
		return false
	}
	p.Kill() // takes note of the end
	h.start(p)
	return true
}

// fullDisk fills the disk of a process, and makes room after a while. One that ended over it is started again.
func (h *harm) fullDisk() (string, bool) {
	p := h.one(h.cluster.All())
	disk := h.disks[p]
	if disk == nil {
		return p.Name + " has no small disk", false
	}
	if err := disk.Fill(); err != nil {
		h.t.Errorf("%s: fill its disk: %v", p.Name, err)
		return err.Error(), false
	}
	full := h.rest(5 * time.Second)
	if err := disk.Free(); err != nil {
		h.t.Errorf("%s: free its disk: %v", p.Name, err)
	}
	return fmt.Sprintf("that of %s, for %v; it died of that: %v", p.Name, full, h.restartIfDead(p)), true
}
