package main

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/logmirror/logmirror/test/processes"
)

func fullDisk(ctx context.Context, e *environment, r *result) (err error) {
	// Small files, of which one is reserved ahead; and no trimming, which would make room.
	w, err := layOut(e, "--segment-bytes", "262144")
	if err != nil {
		return err
	}
	var disks []*processes.SmallDisk
	defer func() {
		if skip := skipped(""); err != nil && !errors.As(err, &skip) {
			processes.Show(e.log, w.All())
		}
		w.close()
		for _, d := range disks {
			err = errors.Join(err, d.Unmount())
		}
	}()
	for _, p := range []*processes.Process{w.Members[2], w.Members[0], w.Frontends[1]} {
		d, err := w.MountSmall(p)
		if errors.Is(err, processes.ErrNoMount) {
			return skipped(err.Error())
		}
		if err != nil {
			return err
		}
		disks = append(disks, d)
	}
	if err := w.Start(); err != nil {
		return err
	}
	if err := w.meet(ctx); err != nil {
		return err
	}
	o, err := w.observe(ctx)
	if err != nil {
		return err
	}
	defer func() {
		o.stop()
		o.running.Wait()
	}()
	if err := pause(ctx, calm); err != nil {
		return err
	}
	for i, member := range []int{2, 0} {
		if err := w.fillMember(ctx, o, r, member, disks[i]); err != nil {
			return err
		}
	}
	if err := w.fillFrontend(ctx, o, r, 1, disks[2]); err != nil {
		return err
	}
	return o.end(ctx, r)
}

// fillMember fills a member's disk until it says so, and makes room again.
func (w *world) fillMember(ctx context.Context, o *watching, r *result, i int, d *processes.SmallDisk) error {
	p := w.Members[i]
	role := "a follower"
	if leader, err := processes.Leader(ctx, w.Members); err == nil && leader == p {
		role = "the leader"
	}
	name := fmt.Sprintf("disk of %s, %s, full", p.Name, role)
	w.note("%s", name)
	began := time.Now()
	if err := d.Fill(); err != nil {
		return err
	}
	// What was reserved ahead has to be used up first.
	value := strings.Repeat("x", 16<<10)
	if err := until(ctx, p.Name+" takes no more", func(ctx context.Context) error {
		said, err := p.Said("taking no appends")
		if err == nil && said > 0 {
			return nil
		}
		writing, cancel := context.WithTimeout(ctx, 5*time.Second)
		defer cancel()
		_, writeErr := w.clients[1].put(writing, "filler", value)
		return errors.Join(errors.New("it has not said so"), err, writeErr)
	}); err != nil {
		return err
	}
	r.took(name+": until it takes no more entries", time.Since(began))
	if err := o.noticedBeside(ctx, r, name, regions[i], began, w.clients); err != nil {
		return err
	}
	if !p.Running() || p.Gone() {
		return fmt.Errorf("%s has ended: a full disk is no reason to", p.Name)
	}
	w.note("room again")
	freed := time.Now()
	if err := d.Free(); err != nil {
		return err
	}
	if err := until(ctx, p.Name+" takes entries again", func(ctx context.Context) error {
		status, err := processes.MemberStatus(ctx, p.Address)
		if err == nil && len(status.GetAlarms()) > 0 {
			err = errors.New(strings.Join(status.GetAlarms(), "; "))
		}
		return err
	}); err != nil {
		return err
	}
	if err := w.caughtUp(ctx, i); err != nil {
		return err
	}
	r.took(name+", then room: until it has the whole log", time.Since(freed))
	return w.settle(ctx)
}

// fillFrontend fills the disk of a frontend, which goes on without writing its image, and makes room again, for a new one.
func (w *world) fillFrontend(ctx context.Context, o *watching, r *result, i int, d *processes.SmallDisk) error {
	p := w.Frontends[i]
	name := "disk of " + p.Name + " full"
	w.note("%s", name)
	began := time.Now()
	if err := d.Fill(); err != nil {
		return err
	}
	value := strings.Repeat("y", 32<<10)
	if err := until(ctx, p.Name+" no longer writes its image", func(ctx context.Context) error {
		said, err := p.Said("the image is no longer written")
		if err == nil && said > 0 {
			return nil
		}
		for key := range 64 {
			if _, err := w.clients[i].put(ctx, fmt.Sprintf("image/%02d/%d", key, time.Now().UnixNano()), value); err != nil {
				return err
			}
		}
		return errors.Join(errors.New("it says nothing"), err)
	}); err != nil {
		return err
	}
	if err := o.noticed(ctx, r, name, began, w.clients); err != nil {
		return err
	}
	w.note("room again")
	freed := time.Now()
	if err := d.Free(); err != nil {
		return err
	}
	if err := until(ctx, p.Name+" writes a new image", func(context.Context) error {
		said, err := p.Said("a new image was made")
		if err == nil && said == 0 {
			err = errors.New("it does not say so")
		}
		return err
	}); err != nil {
		return err
	}
	r.took(name+", then room: until there is a new image", time.Since(freed))
	return w.settle(ctx)
}
