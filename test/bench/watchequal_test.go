package main

import (
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"
)

var (
	watchSeeds = flag.Uint64("watch.seeds", 3, "how many sequences TestWatchesAreEtcds runs")
	watchFrom  = flag.Uint64("watch.from", 0, "the seed of the first")
)

// TestWatchesAreEtcds drives etcd and logmirror with the same random sequence of writes, compactions and watches and
// compares everything that the watches say. Where etcd's own answer depends on how far it has come, the sequence waits: it
// cancels a watch from the past for a compaction as long as it has not looked at it, which it does every 100 ms, even if
// nothing has happened since that the watch would be told of. logmirror has looked at once.
func TestWatchesAreEtcds(t *testing.T) {
	if testing.Short() {
		t.Skip("builds and starts servers")
	}
	runtime.LockOSThread() // the servers die with this thread: see startProcess
	defer runtime.UnlockOSThread()
	binaries := t.TempDir()
	if err := build(t.Context(), "../..", binaries); err != nil {
		t.Fatal(err)
	}
	for seed := *watchFrom; seed < *watchFrom+*watchSeeds; seed++ {
		var sides []*side
		for _, name := range []string{"etcd", "logmirror"} {
			s, err := startSystem(name, binaries, t.TempDir(), nil)
			if err != nil {
				t.Fatal(err)
			}
			defer s.stop()
			if err := s.awaitReady(t.Context()); err != nil {
				t.Fatal(err)
			}
			sides = append(sides, newSide(t, s))
		}
		d := &differential{t: t, r: rand.New(rand.NewPCG(seed, 0)), sides: sides}
		d.run(300)
		for _, s := range sides {
			s.client.Close()
			s.stop()
		}
		t.Logf("seed %d: %d writes, %d watches, %d events, %d cancels for compaction", seed, d.writes, d.watches, d.events, d.compacted)
	}
}

// side is one of the two systems, with watch streams.
type side struct {
	*system
	client  *clientv3.Client
	streams [2]*sideStream
}

type sideStream struct {
	stream pb.Watch_WatchClient
	mu     sync.Mutex
	// said is what was heard since it was compared last: control in its order, events by watch.
	said     []string
	events   map[int64][]string
	last     map[int64]int64 // revision of the last event of each watch
	fragment map[int64]bool  // a response is not complete
	progress int64           // the highest revision of a notification for the whole stream
	answers  int             // to requests, ever
	// compacted are the watches that were canceled for compaction and not given up yet: see giveUp.
	compacted []int64
	givenUp   map[int64]bool
	err       error
}

func newSide(t *testing.T, s *system) *side {
	client, err := dial(s.endpoints[0])
	if err != nil {
		t.Fatal(err)
	}
	sd := &side{system: s, client: client}
	if _, err := client.Get(t.Context(), "ready"); err != nil {
		t.Fatal(err)
	}
	for i := range sd.streams {
		stream, err := pb.NewWatchClient(client.ActiveConnection()).Watch(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		sd.streams[i] = &sideStream{
			stream: stream, events: make(map[int64][]string), last: make(map[int64]int64),
			fragment: make(map[int64]bool), givenUp: make(map[int64]bool),
		}
		go sd.streams[i].receive()
	}
	return sd
}

func (s *sideStream) receive() {
	for {
		response, err := s.stream.Recv()
		s.mu.Lock()
		if err == nil {
			err = s.note(response)
		}
		if err != nil {
			s.err = err
			s.mu.Unlock()
			return
		}
		s.mu.Unlock()
	}
}

func (s *sideStream) note(r *pb.WatchResponse) error {
	switch {
	case r.Created:
		s.answers++
		s.said = append(s.said, fmt.Sprintf("%d created at %d, canceled %v %q", r.WatchId, r.Header.Revision, r.Canceled, r.CancelReason))
	case r.Canceled && s.givenUp[r.WatchId]:
		delete(s.givenUp, r.WatchId)
	case r.Canceled:
		if r.CompactRevision > 0 {
			s.compacted = append(s.compacted, r.WatchId)
		} else {
			s.answers++
		}
		s.said = append(s.said, fmt.Sprintf("%d canceled %q, compacted at %d", r.WatchId, r.CancelReason, r.CompactRevision))
	case len(r.Events) == 0:
		if r.WatchId == clientv3.InvalidWatchID {
			s.progress = max(s.progress, r.Header.Revision)
		}
	default:
		first := r.Events[0].Kv.ModRevision
		if first == s.last[r.WatchId] && !s.fragment[r.WatchId] {
			return fmt.Errorf("revision %d of watch %d came in two responses", first, r.WatchId)
		}
		for _, e := range r.Events {
			s.events[r.WatchId] = append(s.events[r.WatchId], describeEvent(e))
			s.last[r.WatchId] = e.Kv.ModRevision
		}
		if s.fragment[r.WatchId] = r.Fragment; r.Header.Revision < s.last[r.WatchId] {
			return fmt.Errorf("watch %d: header of revision %d, event of %d", r.WatchId, r.Header.Revision, s.last[r.WatchId])
		}
	}
	return nil
}

func describeEvent(e *mvccpb.Event) string {
	kv := func(kv *mvccpb.KeyValue) string {
		if kv == nil {
			return "none"
		}
		value := string(kv.Value)
		if len(value) > 20 {
			value = fmt.Sprintf("%d bytes", len(value))
		}
		return fmt.Sprintf("%s=%s create %d mod %d version %d lease %d", kv.Key, value, kv.CreateRevision, kv.ModRevision, kv.Version, kv.Lease)
	}
	return fmt.Sprintf("%v %s previous %s", e.Type, kv(e.Kv), kv(e.PrevKv))
}

// differential is one run.
type differential struct {
	t                 *testing.T
	r                 *rand.Rand
	sides             []*side
	revision, compact int64
	answers           [2]int // expected on each stream
	open              [2][]int64
	writes, watches   int
	events, compacted int
}

func (d *differential) run(steps int) {
	d.revision = 1
	for i := range d.answers { // a watch that makes sure that there is one to notify of
		create := &pb.WatchCreateRequest{Key: []byte("nobody writes this")}
		d.send(i, &pb.WatchRequest{RequestUnion: &pb.WatchRequest_CreateRequest{CreateRequest: create}})
		d.answers[i]++
	}
	for range steps {
		switch n := d.r.IntN(100); {
		case n < 60:
			d.write()
		case n < 84:
			d.watch()
		case n < 90:
			d.settle()
			d.cancel()
		case n < 96:
			d.settle()
			d.compaction()
		default:
			d.settle()
		}
	}
	d.settle()
}

func (d *differential) key() string { return fmt.Sprintf("k/%c", 'a'+d.r.IntN(8)) }

func (d *differential) value() string {
	if d.r.IntN(40) == 0 {
		return strings.Repeat("x", 600<<10)
	}
	return fmt.Sprint(d.r.IntN(1000))
}

// write makes the same request on both sides, which must give the same answer and revision.
func (d *differential) write() {
	var operations []clientv3.Op
	switch n := d.r.IntN(10); {
	case n < 5:
		operations = append(operations, clientv3.OpPut(d.key(), d.value()))
	case n < 7:
		operations = append(operations, clientv3.OpDelete(d.key()))
	case n < 8:
		operations = append(operations, clientv3.OpDelete("k/c", clientv3.WithRange("k/"+string(rune('a'+d.r.IntN(12))))))
	default:
		keys := d.r.Perm(8)[:1+d.r.IntN(4)]
		for _, k := range keys {
			key := fmt.Sprintf("k/%c", 'a'+k)
			if d.r.IntN(3) == 0 {
				operations = append(operations, clientv3.OpDelete(key))
			} else {
				operations = append(operations, clientv3.OpPut(key, fmt.Sprint(d.r.IntN(1000))))
			}
		}
	}
	d.writes++
	revisions := make([]int64, len(d.sides))
	for i, s := range d.sides {
		response, err := s.client.Txn(d.t.Context()).Then(operations...).Commit()
		if err != nil {
			d.t.Fatalf("%s: %v", s.name, err)
		}
		revisions[i] = response.Header.Revision
	}
	if revisions[0] != revisions[1] {
		d.t.Fatalf("a write was given revision %d by etcd, %d by logmirror", revisions[0], revisions[1])
	}
	d.revision = revisions[0]
}

func (d *differential) watch() {
	create := &pb.WatchCreateRequest{
		Key: []byte(d.key()), PrevKv: d.r.IntN(2) == 0, Fragment: d.r.IntN(3) == 0, ProgressNotify: d.r.IntN(3) == 0,
	}
	switch d.r.IntN(6) {
	case 0:
		create.RangeEnd = []byte("k/" + string(rune('a'+d.r.IntN(10)))) // may be empty
	case 1:
		create.Key, create.RangeEnd = []byte("k/"), []byte("k0")
	case 2:
		create.RangeEnd = []byte{0}
	case 3:
		create.Key, create.RangeEnd = nil, []byte{0}
	}
	switch d.r.IntN(4) {
	case 0:
		create.StartRevision = d.revision + 1 + d.r.Int64N(5)
	case 1, 2:
		// Around the compact revision as often as anywhere.
		if d.compact > 0 && d.r.IntN(2) == 0 {
			create.StartRevision = max(d.compact-1+d.r.Int64N(3), 1)
		} else {
			create.StartRevision = 1 + d.r.Int64N(d.revision)
		}
	}
	for _, filter := range []pb.WatchCreateRequest_FilterType{pb.WatchCreateRequest_NOPUT, pb.WatchCreateRequest_NODELETE} {
		if d.r.IntN(5) == 0 {
			create.Filters = append(create.Filters, filter)
		}
	}
	stream := d.r.IntN(2)
	switch open := d.open[stream]; {
	case d.r.IntN(8) == 0 && len(open) > 0:
		create.WatchId = open[d.r.IntN(len(open))] // in use
	case d.r.IntN(8) == 0:
		// Never one again: etcd keeps the id of a watch that it canceled for compaction until that is given up, logmirror
		// does not.
		create.WatchId = 1000 + int64(d.watches)
	}
	d.send(stream, &pb.WatchRequest{RequestUnion: &pb.WatchRequest_CreateRequest{CreateRequest: create}})
	d.watches++
	d.answers[stream]++
	d.awaitAnswers(stream) // which name the revision
	if create.StartRevision > 0 && create.StartRevision < d.compact {
		d.settle() // etcd looks at the start revision after it has answered
	}
}

func (d *differential) send(stream int, request *pb.WatchRequest) {
	for _, s := range d.sides {
		if err := s.streams[stream].stream.Send(request); err != nil {
			d.t.Fatalf("%s: %v", s.name, err)
		}
	}
}

// awaitAnswers waits for the answers to all requests so far.
func (d *differential) awaitAnswers(stream int) {
	for _, s := range d.sides {
		d.await(s, s.streams[stream], "answers", func(ss *sideStream) bool { return ss.answers >= d.answers[stream] })
	}
}

func (d *differential) await(s *side, ss *sideStream, what string, condition func(*sideStream) bool) {
	d.t.Helper()
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(2 * time.Millisecond) {
		ss.mu.Lock()
		err, done := ss.err, condition(ss)
		ss.mu.Unlock()
		if err == nil && !done && time.Now().After(deadline) {
			err = errors.New("nothing for 20 s")
		}
		if err != nil {
			d.t.Fatalf("%s: waiting for %s: %v\n%s", s.name, what, err, s.lastOutput())
		}
		if done {
			return
		}
	}
}

func (d *differential) cancel() {
	stream := d.r.IntN(2)
	if len(d.open[stream]) < 2 {
		return
	}
	id := d.open[stream][1+d.r.IntN(len(d.open[stream])-1)] // the first one stays: see run
	d.send(stream, &pb.WatchRequest{RequestUnion: &pb.WatchRequest_CancelRequest{CancelRequest: &pb.WatchCancelRequest{WatchId: id}}})
	d.answers[stream]++
	d.forget(stream, id)
	d.awaitAnswers(stream)
}

func (d *differential) forget(stream int, id int64) {
	d.open[stream] = slices.DeleteFunc(d.open[stream], func(open int64) bool { return open == id })
}

func (d *differential) compaction() {
	if d.compact >= d.revision {
		return
	}
	d.compact += 1 + d.r.Int64N(d.revision-d.compact)
	for _, s := range d.sides {
		if _, err := s.client.Compact(d.t.Context(), d.compact, clientv3.WithCompactPhysical()); err != nil {
			d.t.Fatalf("%s: compact at %d: %v", s.name, d.compact, err)
		}
	}
}

// settle waits until both sides have said everything, and compares it. Each says so by a notification of progress for the
// whole stream, once revisions are written up to those that watches wait for.
func (d *differential) settle() {
	d.t.Helper()
	for range 6 {
		d.filler()
	}
	for stream := range d.answers {
		d.awaitAnswers(stream)
		for _, s := range d.sides {
			d.awaitProgress(s, s.streams[stream])
		}
		d.compare(stream)
	}
}

// awaitProgress waits until all watches of a stream have been told of everything. etcd drops a request while one of them has
// not, so it is made again and again.
func (d *differential) awaitProgress(s *side, ss *sideStream) {
	const interval = 50 * time.Millisecond
	var asked time.Time
	d.await(s, ss, "progress", func(ss *sideStream) bool {
		if ss.progress >= d.revision {
			return true
		}
		if time.Since(asked) >= interval && ss.err == nil {
			asked = time.Now()
			if s.name == "etcd" {
				ss.err = ss.giveUp()
			}
			request := &pb.WatchRequest{RequestUnion: &pb.WatchRequest_ProgressRequest{ProgressRequest: &pb.WatchProgressRequest{}}}
			ss.err = errors.Join(ss.err, ss.stream.Send(request))
		}
		return false
	})
}

// giveUp cancels what etcd has canceled for compaction: it would not answer for the stream any more as long as it holds the
// dead watch. The caller holds mu.
func (s *sideStream) giveUp() (err error) {
	for _, id := range s.compacted {
		s.givenUp[id] = true
		cancel := &pb.WatchCancelRequest{WatchId: id}
		err = errors.Join(err, s.stream.Send(&pb.WatchRequest{RequestUnion: &pb.WatchRequest_CancelRequest{CancelRequest: cancel}}))
	}
	s.compacted = nil
	return err
}

// filler writes one more revision that some watches see.
func (d *differential) filler() {
	for _, s := range d.sides {
		if _, err := s.client.Put(d.t.Context(), "k/z", "filler"); err != nil {
			d.t.Fatalf("%s: %v", s.name, err)
		}
	}
	d.revision++
}

// compare compares what both sides have said on one stream.
func (d *differential) compare(stream int) {
	d.t.Helper()
	a, b := d.sides[0].streams[stream], d.sides[1].streams[stream]
	for _, s := range []*sideStream{a, b} {
		s.mu.Lock()
		defer s.mu.Unlock()
		slices.Sort(s.said) // cancels of one compaction come in any order
	}
	if !slices.Equal(a.said, b.said) {
		d.t.Fatalf("stream %d\netcd said      %q\nlogmirror said %q", stream, a.said, b.said)
	}
	if a.answers != b.answers {
		d.t.Fatalf("stream %d: %d answers by etcd, %d by logmirror", stream, a.answers, b.answers)
	}
	for _, said := range a.said {
		var id int64
		if _, _ = fmt.Sscanf(said, "%d", &id); strings.HasSuffix(said, `canceled false ""`) {
			d.open[stream] = append(d.open[stream], id)
		}
	}
	for _, said := range a.said {
		var id int64
		if _, _ = fmt.Sscanf(said, "%d", &id); strings.Contains(said, "compacted at") && !strings.HasSuffix(said, "at 0") {
			d.compacted++
			d.forget(stream, id)
		}
	}
	ids := make(map[int64]bool)
	for id := range a.events {
		ids[id] = true
	}
	for id := range b.events {
		ids[id] = true
	}
	for id := range ids {
		if !slices.Equal(a.events[id], b.events[id]) {
			d.t.Fatalf("stream %d, watch %d\netcd said      %q\nlogmirror said %q", stream, id, a.events[id], b.events[id])
		}
		d.events += len(a.events[id])
	}
	for _, s := range []*sideStream{a, b} {
		s.said = nil
		clear(s.events)
	}
}
