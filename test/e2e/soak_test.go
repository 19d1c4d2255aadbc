package e2e

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"flag"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	kvv1 "github.com/logmirror/logmirror/api/proto/logmirror/kv/v1"
	logv1 "github.com/logmirror/logmirror/api/proto/logmirror/log/v1"
	"github.com/logmirror/logmirror/client"
	"github.com/logmirror/logmirror/internal/wan"
	"github.com/logmirror/logmirror/test/processes"
)

var (
	soakDuration = flag.Duration("soak.duration", 12*time.Second, "how long TestSoak does harm")
	soakSeed     = flag.Uint64("soak.seed", 1, "of what TestSoak does")
)

// soakLong is a duration in which each kind of harm must have come several times, whatever the machine.
const soakLong = 2 * time.Minute

// Real processes are killed, paused, cut off from each other and replaced under load, while the log is trimmed all the
// time, as a seed draws it. Then every frontend shows each acknowledged write exactly once, in each writer's order, and
// each unknown one at most once; and the members' logs hold the same entries.
func TestSoak(t *testing.T) {
	network := wan.New(wan.Options{Seed: *soakSeed, RoundTrips: map[wan.Pair]time.Duration{
		{A: "us", B: "eu"}: 8 * time.Millisecond, {A: "us", B: "ap"}: 15 * time.Millisecond, {A: "eu", B: "ap"}: 10 * time.Millisecond}})
	t.Cleanup(network.Close)
	c := newProcessCluster(t, "us", "eu", "ap")
	c.joinOver(t, network)
	c.memberFlags = []string{"--segment-bytes", "65536", "--checkpoint-log-bytes", "262144", "--log-tail-bytes", "131072"}
	for _, p := range c.members {
		p.Arguments = append(p.Arguments, c.memberFlags...)
	}
	c.startAll(t)
	var clients []*clientv3.Client
	for _, p := range c.frontends {
		clients = append(clients, newClient(t, p.Address))
	}
	l := startLoad(t, c)
	once := startOnce(t, c)
	l.awaitProgress(t, 50)
	s := &soak{t: t, cluster: c, network: network, random: rand.New(rand.NewPCG(*soakSeed, 1)), done: map[string]int{},
		everMembers: slices.Clone(c.members)}
	s.harm(*soakDuration)
	network.HealAll()
	l.awaitProgress(t, 50)
	once.end(t)
	l.end()
	l.checkBeside(t, clients, once.acknowledged)
	once.check(t, clients)
	for _, p := range c.all() {
		p.stop(t)
	}
	compareLogs(t, c.members)
	s.count(*soakDuration >= soakLong)
}

// soak does harm to a cluster.
type soak struct {
	t       *testing.T
	cluster *processCluster
	network *wan.Network
	random  *rand.Rand
	// done counts what was done, by kind.
	done map[string]int
	// everMembers are all that are or were members.
	everMembers []*process
}

// soakKind is a kind of harm. It returns what it did, and whether it came to do it.
type soakKind struct {
	name string
	do   func() (string, bool)
}

func (s *soak) kinds() []soakKind {
	return []soakKind{
		{"kill a member", s.killMember}, {"kill a frontend", s.killFrontend}, {"pause a member", s.pauseMember},
		{"cut off", s.cutOff}, {"cut one way", s.cutOneWay}, {"transfer", s.transfer}, {"kill the leader", s.killLeader},
		{"keep a member away", s.keepAway}, {"replace a member", s.replaceMember},
	}
}

// harm does each kind once in every round, in an order that is drawn anew.
func (s *soak) harm(duration time.Duration) {
	kinds := s.kinds()
	for end := time.Now().Add(duration); time.Now().Before(end); {
		for _, i := range s.random.Perm(len(kinds)) {
			if time.Now().After(end) {
				return
			}
			what, did := kinds[i].do()
			if did {
				s.done[kinds[i].name]++
			}
			s.t.Logf("%v: %s: %s", time.Now().Format("15:04:05.000"), kinds[i].name, what)
			s.rest(1500 * time.Millisecond)
		}
	}
}

// count tells how often what happened, and, where all of it must have, what did not.
func (s *soak) count(all bool) {
	counts := maps.Clone(s.done)
	for _, kind := range s.kinds() {
		counts[kind.name] += 0
	}
	for what, text := range map[string]string{"checkpoints sealed, at all members": "checkpoint sealed",
		"trims": "trimming the log", "snapshots installed": installedSnapshot} {
		counts[what] = 0
		for _, p := range s.everMembers {
			counts[what] += p.said(s.t, text)
		}
	}
	for _, what := range slices.Sorted(maps.Keys(counts)) {
		s.t.Logf("%s: %d", what, counts[what])
		if all && counts[what] == 0 {
			s.t.Errorf("%s: it never came to that", what)
		}
	}
}

// rest lets a drawn time pass: what was done shall have effects.
func (s *soak) rest(most time.Duration) time.Duration {
	d := time.Duration(s.random.Int64N(int64(most)))
	select {
	case <-time.After(d):
	case <-s.t.Context().Done():
	}
	return d
}

func (s *soak) one(processes []*process) *process { return processes[s.random.IntN(len(processes))] }

func (s *soak) restart(p *process) (string, bool) {
	p.Kill()
	down := s.rest(2 * time.Second)
	p.start(s.t)
	return fmt.Sprintf("%s, down for %v", p.Name, down), true
}

func (s *soak) killMember() (string, bool)   { return s.restart(s.one(s.cluster.members)) }
func (s *soak) killFrontend() (string, bool) { return s.restart(s.one(s.cluster.frontends)) }

func (s *soak) killLeader() (string, bool) {
	leader, err := s.cluster.leader(s.t.Context())
	if err != nil {
		return err.Error(), false
	}
	return s.restart(leader)
}

func (s *soak) pauseMember() (string, bool) {
	p := s.one(s.cluster.members)
	if err := p.Signal(syscall.SIGSTOP); err != nil {
		s.t.Fatal(err)
	}
	paused := s.rest(3 * time.Second)
	if err := p.Signal(syscall.SIGCONT); err != nil {
		s.t.Fatal(err)
	}
	return fmt.Sprintf("%s for %v", p.Name, paused), true
}

func (s *soak) cutOff() (string, bool) {
	region := s.cluster.regions[s.random.IntN(3)]
	s.network.Isolate(region)
	cut := s.rest(4 * time.Second)
	s.network.Rejoin(region)
	return fmt.Sprintf("%s for %v", region, cut), true
}

func (s *soak) cutOneWay() (string, bool) {
	regions := s.random.Perm(3)
	from, to := s.cluster.regions[regions[0]], s.cluster.regions[regions[1]]
	s.network.CutOneWay(from, to)
	cut := s.rest(4 * time.Second)
	s.network.HealAll()
	return fmt.Sprintf("from %s to %s for %v", from, to, cut), true
}

func (s *soak) transfer() (string, bool) {
	leader, err := s.cluster.leader(s.t.Context())
	if err != nil {
		return err.Error(), false
	}
	target := s.one(s.cluster.members)
	status, err := processes.MemberStatus(s.t.Context(), target.Address)
	if err != nil {
		return err.Error(), false
	}
	connection, err := grpc.NewClient(leader.Address, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		s.t.Fatal(err)
	}
	defer connection.Close()
	ctx, cancel := context.WithTimeout(s.t.Context(), 3*time.Second)
	defer cancel()
	_, err = logv1.NewLogServiceClient(connection).TransferLeadership(ctx,
		&logv1.TransferLeadershipRequest{TargetId: status.GetHandshake().GetId()})
	return fmt.Sprintf("from %s to %s: %v", leader.Name, target.Name, err), err == nil
}

// keepAway kills a member, and starts it again once the others have trimmed what it needs.
func (s *soak) keepAway() (string, bool) {
	p := s.one(s.cluster.members)
	status, err := processes.MemberStatus(s.t.Context(), p.Address)
	if err != nil {
		return err.Error(), false
	}
	last := status.GetLastIndex()
	p.Kill()
	killed := time.Now()
	for _, other := range s.cluster.members {
		if other == p {
			continue
		}
		eventually(s.t, other.Name+" trims what "+p.Name+" needs", func(ctx context.Context) error {
			status, err := processes.MemberStatus(ctx, other.Address)
			// Up to the kill it may have got entries beyond what it told.
			if err == nil && status.GetFirstIndex() <= last+1000 {
				err = fmt.Errorf("its log begins at %d, the other ended at %d", status.GetFirstIndex(), last)
			}
			return err
		})
	}
	away := time.Since(killed)
	before := p.said(s.t, installedSnapshot)
	p.start(s.t)
	eventually(s.t, p.Name+" comes back through a snapshot", func(context.Context) error {
		if p.said(s.t, installedSnapshot) == before {
			return errors.New("it has installed none")
		}
		return nil
	})
	return fmt.Sprintf("%s for %v", p.Name, away), true
}

const installedSnapshot = "installed a snapshot"

// replaceMember replaces one for good. The others reach the new one over a link into its region, which is cut where the
// region is.
func (s *soak) replaceMember() (string, bool) {
	i := s.random.IntN(len(s.cluster.members))
	old, region := s.cluster.members[i], s.cluster.regions[i]
	name := fmt.Sprintf("log-%s-%d", region, len(s.everMembers))
	began := time.Now()
	s.cluster.replace(s.t, i, name, func(address string) string {
		ownAddress(s.t, s.network.Region(region), address)
		return serveProxy(s.t, s.network.Region("elsewhere"), address)
	})
	s.everMembers = append(s.everMembers, s.cluster.members[i])
	return fmt.Sprintf("%s by %s within %v", old.Name, name, time.Since(began)), true
}

// joinOver lets members reach each other over a network of regions, before they are started: each dials its own proxies.
func (c *processCluster) joinOver(t *testing.T, network *wan.Network) {
	t.Helper()
	for j, to := range c.members {
		old := to.Address
		to.Address = ownAddress(t, network.Region(c.regions[j]), "127.0.0.1:0")
		for _, p := range c.all() {
			for k := range p.Arguments {
				p.Arguments[k] = strings.ReplaceAll(p.Arguments[k], old, to.Address)
			}
		}
	}
	for i, from := range c.members {
		for j, to := range c.members {
			if i == j {
				continue
			}
			address := serveProxy(t, network.Region(c.regions[i]), to.Address)
			for k := range from.Arguments {
				from.Arguments[k] = strings.ReplaceAll(from.Arguments[k], to.Name+"="+to.Address, to.Name+"="+address)
			}
		}
	}
}

// ownAddress makes an address one of a region, for a process of its own to listen on: a region remembers whose an address is.
func ownAddress(t *testing.T, region *wan.Region, address string) string {
	t.Helper()
	listener, err := region.Listen(address)
	if err != nil {
		t.Fatal(err)
	}
	_ = listener.Close() // the process's own from now on
	return listener.Addr().String()
}

// onceLoad writes through the SDK with request ids: each write is sent again until it has an outcome, so that each that is
// acknowledged took effect once, whatever came of the attempts before.
type onceLoad struct {
	stop    context.CancelFunc
	writers sync.WaitGroup

	mu   sync.Mutex
	keys map[string]bool // acknowledged
	lost int
	sent int
}

func startOnce(t *testing.T, c *processCluster) *onceLoad {
	t.Helper()
	ctx, stop := context.WithCancel(t.Context())
	l := &onceLoad{stop: stop, keys: make(map[string]bool)}
	for i, region := range c.regions {
		// The region's own frontend first; the others where it is down.
		endpoints := []string{c.frontends[i].Address, c.frontends[(i+1)%3].Address, c.frontends[(i+2)%3].Address}
		connection, err := client.New(client.Config{Endpoints: endpoints})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { connection.Close() })
		l.writers.Go(func() { l.write(ctx, connection, region) })
	}
	t.Cleanup(func() { stop(); l.writers.Wait() })
	return l
}

func (l *onceLoad) write(ctx context.Context, connection *client.Client, region string) {
	for n := 0; ctx.Err() == nil; n++ {
		key := fmt.Sprintf("once/%s/%06d", region, n)
		putCtx, cancel := context.WithTimeout(context.WithoutCancel(ctx), patience)
		err := connection.Once(putCtx, func(ctx context.Context, id string) error {
			_, err := connection.Put(ctx, &kvv1.PutRequest{Key: []byte(key), Value: []byte("value of " + key),
				Options: &kvv1.WriteOptions{RequestId: id}})
			return err
		})
		cancel()
		l.mu.Lock()
		l.sent++
		if err == nil {
			l.keys[key] = true
		} else {
			l.lost++
		}
		l.mu.Unlock()
	}
}

// end lets the last writes come to an end.
func (l *onceLoad) end(t *testing.T) {
	l.stop()
	l.writers.Wait()
	t.Logf("with request ids: %d writes, %d acknowledged, %d without an outcome", l.sent, len(l.keys), l.lost)
}

func (l *onceLoad) acknowledged() int { return l.sent }

func (l *onceLoad) check(t *testing.T, clients []*clientv3.Client) {
	t.Helper()
	var first []byte
	for i, c := range clients {
		var found *clientv3.GetResponse
		eventually(t, "linearizable read", func(ctx context.Context) (err error) {
			ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
			defer cancel()
			found, err = c.Get(ctx, "", clientv3.WithPrefix())
			return err
		})
		all := sha256.New()
		shown := map[string]bool{}
		for _, kv := range found.Kvs {
			fmt.Fprintf(all, "%q=%q %d %d %d\n", kv.Key, kv.Value, kv.CreateRevision, kv.ModRevision, kv.Version)
			if key := string(kv.Key); strings.HasPrefix(key, "once/") {
				if shown[key] = true; kv.Version != 1 {
					t.Errorf("frontend %d: %s was put once and has version %d", i, key, kv.Version)
				}
			}
		}
		for key := range l.keys {
			if !shown[key] {
				t.Errorf("frontend %d: %s was acknowledged and is gone", i, key)
			}
		}
		if sum := all.Sum(nil); first == nil {
			first = sum
		} else if !bytes.Equal(first, sum) {
			t.Errorf("frontend %d shows another state than the first", i)
		}
	}
}

// compareLogs checks that the members' logs hold the same entries as far as each says that they are committed.
func compareLogs(t *testing.T, members []*process) {
	t.Helper()
	ended := make([]*processes.Process, len(members))
	for i, p := range members {
		ended[i] = p.Process
	}
	compared, err := processes.CompareLogs(ended)
	if err != nil {
		t.Error(err)
	}
	if compared == 0 {
		t.Error("no entry could be compared")
	}
}
