package e2e

import (
	"context"
	"errors"
	"syscall"
	"testing"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/client/v3/concurrency"
)

// The frontend through which a lock is held is stopped by SIGSTOP, until another client has the lock through another
// frontend. Woken up, it confirms nothing and the lock's fence refuses what its client writes.
func TestFrontendPausedWhileItsClientHoldsALock(t *testing.T) {
	const ttl, sessionTime = 5 * time.Second, 10 * time.Second
	c := newProcessCluster(t, "us", "eu", "ap")
	c.startAll(t)
	first, second := newClient(t, c.frontends[1].Address), newClient(t, c.frontends[0].Address)
	lock := func(client *clientv3.Client) (*concurrency.Session, *concurrency.Mutex) {
		var session *concurrency.Session
		eventually(t, "a session", func(ctx context.Context) error {
			granting, cancel := context.WithTimeout(ctx, 5*time.Second)
			defer cancel()
			granted, err := client.Grant(granting, int64(ttl/time.Second))
			if err != nil {
				return err
			}
			session, err = concurrency.NewSession(client, concurrency.WithLease(granted.ID))
			return err
		})
		t.Cleanup(session.Orphan)
		mutex := concurrency.NewMutex(session, "/lock")
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		defer cancel()
		if err := mutex.Lock(ctx); err != nil {
			t.Fatal(err)
		}
		return session, mutex
	}
	write := func(client *clientv3.Client, mutex *concurrency.Mutex, value string) (taken bool) {
		eventually(t, "a write's outcome", func(ctx context.Context) error {
			ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
			defer cancel()
			response, err := client.Txn(ctx).If(mutex.IsOwner()).Then(clientv3.OpPut("fenced", value)).Commit()
			taken = err == nil && response.Succeeded
			return err
		})
		return taken
	}
	session, mutex := lock(first)
	if !write(first, mutex, "first") {
		t.Error("the holder's write was refused")
	}
	renewed := time.Now()
	if _, err := first.KeepAliveOnce(t.Context(), session.Lease()); err != nil {
		t.Fatal(err)
	}
	paused := c.frontends[1]
	if err := paused.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = paused.Signal(syscall.SIGCONT) }() // or it could not be ended
	_, other := lock(second)
	held := time.Since(renewed)
	t.Logf("the lock went over %v after a renewal", held)
	if held < ttl || held > ttl+3*sessionTime+ttl {
		t.Errorf("the lock went over %v after a renewal", held)
	}
	if !write(second, other, "second") {
		t.Error("the new holder's write was refused")
	}
	if err := paused.Signal(syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	woken := time.Now()
	if write(first, mutex, "first, late") {
		t.Error("the old holder wrote under a fence that had gone")
	}
	t.Logf("the old holder was told so %v after its frontend woke up", time.Since(woken))
	eventually(t, "the old holder learns that its lease has ended", func(ctx context.Context) error {
		ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
		defer cancel()
		renewal, err := first.KeepAliveOnce(ctx, session.Lease())
		switch {
		case err == nil:
			t.Fatalf("a lease that had ended was renewed for %d s", renewal.TTL)
		case errors.Is(err, rpctypes.ErrLeaseNotFound):
			return nil
		}
		return err
	})
	t.Logf("and that its lease has ended, %v after it woke up", time.Since(woken))
}
