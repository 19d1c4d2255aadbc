package e2e

import (
	"context"
	"fmt"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	clientv3 "go.etcd.io/etcd/client/v3"
)

// flagOf finds what a process is started with.
func flagOf(t *testing.T, p *process, flag string) string {
	t.Helper()
	value, ok := p.Flag(flag)
	if !ok {
		t.Fatalf("%s has no %s", p.Name, flag)
	}
	return value
}

// A cluster that was restored has the data of the old one, gives nothing out twice, tells who knew the old one that history
// is compacted, and lives on as any other.
func TestRestoreABackup(t *testing.T) {
	old := newProcessCluster(t, "us", "eu", "ap")
	old.startAll(t)
	client := newClient(t, old.frontends[0].Address)
	const keys = 50
	for i := range 2 * keys {
		eventually(t, "a put", func(ctx context.Context) error {
			_, err := client.Put(ctx, fmt.Sprintf("key-%02d", i%keys), strconv.Itoa(i))
			return err
		})
	}
	granted, err := client.Grant(t.Context(), 60)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := client.Put(t.Context(), "leased", "me", clientv3.WithLease(granted.ID)); err != nil {
		t.Fatal(err)
	}
	at := []string{"--endpoints", old.frontends[0].Address}
	kvctl(t, append(at, "id", "sequence", "invoices", "--count", "7")...)
	once := kvctl(t, append(at, "put", "once", "only", "--request-id", "1-once")...)
	backup := filepath.Join(t.TempDir(), "backup")
	kvctl(t, append(at, "snapshot", "save", backup)...)
	before, err := client.Get(t.Context(), "", clientv3.WithPrefix())
	if err != nil {
		t.Fatal(err)
	}
	old.killAll()

	c := newProcessCluster(t, "us", "eu", "ap")
	directory, initial := filepath.Dir(flagOf(t, c.members[0], "--data-dir")), flagOf(t, c.members[0], "--initial-cluster")
	restore := []string{"snapshot", "restore", backup, "--data-dir", directory, "--initial-cluster", initial}
	t.Log(kvctl(t, restore...))
	if output, err := runKvctl(t, restore...); err == nil || !strings.Contains(output, "is not empty") {
		t.Errorf("it was restored over what was restored: %v: %s", err, output)
	}
	us, eu := c.frontends[0], c.frontends[1]
	for _, p := range append(c.members, us) {
		p.start(t)
	}
	client = newClient(t, us.Address)
	var after *clientv3.GetResponse
	eventually(t, "us serves", func(ctx context.Context) (err error) {
		after, err = client.Get(ctx, "", clientv3.WithPrefix())
		return err
	})
	const raised = 1_000_000_000
	switch h := after.Header; {
	case h.ClusterId == before.Header.ClusterId || h.ClusterId == 0:
		t.Errorf("the new cluster has the id %x, the old one %x", h.ClusterId, before.Header.ClusterId)
	case h.Revision != before.Header.Revision+raised:
		t.Errorf("revision %d, was %d", h.Revision, before.Header.Revision)
	}
	if got, want := fmt.Sprint(after.Kvs), fmt.Sprint(before.Kvs); got != want {
		t.Errorf("read %s\nwas %s", got, want)
	}
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	for _, from := range []int64{2, before.Header.Revision, before.Header.Revision + raised - 1} {
		answer := <-client.Watch(ctx, "key-00", clientv3.WithRev(from))
		if answer.CompactRevision != before.Header.Revision+raised || !answer.Canceled {
			t.Errorf("a watch from revision %d: %+v, %v", from, answer, answer.Err())
		}
	}
	at = []string{"--endpoints", us.Address}
	if again := kvctl(t, append(at, "put", "once", "only", "--request-id", "1-once")...); again != once {
		t.Errorf("a request that the backup holds was answered %q, and now %q", once, again)
	}
	if next := strings.TrimSpace(kvctl(t, append(at, "id", "sequence", "invoices")...)); next != "1000008" {
		t.Errorf("the sequence goes on with %q, want 1000008", next)
	}
	if left, err := client.KeepAliveOnce(ctx, granted.ID); err != nil || left.TTL != 60 {
		t.Errorf("renew the lease: %+v, %v", left, err)
	}
	put := func(key string) {
		t.Helper()
		eventually(t, "a put", func(ctx context.Context) error {
			_, err := client.Put(ctx, key, "new")
			return err
		})
	}
	put("after restore")

	// Another frontend comes, and everything restarts.
	eu.start(t)
	hasAll := func(p *process) {
		t.Helper()
		other := newClient(t, p.Address)
		eventually(t, p.Name+" has everything", func(ctx context.Context) error {
			got, err := other.Get(ctx, "", clientv3.WithPrefix(), clientv3.WithCountOnly())
			if err == nil && got.Count != int64(len(before.Kvs))+1 {
				err = fmt.Errorf("%d keys, want %d", got.Count, len(before.Kvs)+1)
			}
			return err
		})
	}
	hasAll(eu)
	c.killAll()
	c.startAll(t)
	for _, frontend := range c.frontends {
		hasAll(frontend)
	}
	put("after restore")
	if _, err := client.KeepAliveOnce(ctx, granted.ID); err != nil {
		t.Errorf("renew the lease after the restart: %v", err)
	}
}
