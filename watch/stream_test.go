package watch

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"google.golang.org/protobuf/proto"

	"github.com/logmirror/logmirror/statemachine"
	"github.com/logmirror/logmirror/statemachine/keyspace"
)

// fixture is a hub over a real key space, with its goroutines, and a writer.
type fixture struct {
	t        testing.TB
	space    *keyspace.Space
	hub      *Hub
	revision int64
	index    uint64
}

func newFixture(t testing.TB, c Config) *fixture {
	f := &fixture{t: t, space: keyspace.New(keyspace.Options{}), revision: 1}
	f.space.Publish(0, 1)
	f.hub = NewHub(f.space, c)
	t.Cleanup(f.hub.Close)
	return f
}

// put writes keys under one revision each, as one entry; a key that begins with "-" is deleted.
func (f *fixture) put(keys ...string) {
	var events []statemachine.Event
	for _, k := range keys {
		f.revision++
		if key, ok := strings.CutPrefix(k, "-"); ok {
			kv, previous, existed := f.space.Delete([]byte(key), f.revision, 0)
			events = append(events, statemachine.Event{KV: kv, Previous: previous, HasPrevious: existed})
			continue
		}
		kv, previous, existed := f.space.Put([]byte(k), fmt.Append(nil, f.revision), 0, f.revision, 0)
		events = append(events, statemachine.Event{Put: true, KV: kv, Previous: previous, HasPrevious: existed})
	}
	f.index++
	f.space.Publish(f.index, f.revision)
	f.hub.Applied(&statemachine.Applied{Index: f.index, Events: events, Revision: f.revision})
}

// transaction puts keys in one revision.
func (f *fixture) transaction(keys ...string) {
	f.revision++
	f.index++
	var events []statemachine.Event
	for sub, k := range keys {
		kv, previous, existed := f.space.Put([]byte(k), fmt.Append(nil, f.revision), 0, f.revision, int64(sub))
		events = append(events, statemachine.Event{Put: true, KV: kv, Previous: previous, HasPrevious: existed})
	}
	f.space.Publish(f.index, f.revision)
	f.hub.Applied(&statemachine.Applied{Index: f.index, Events: events, Revision: f.revision})
}

func (f *fixture) stream() *Stream {
	s := open(f.hub, StreamOptions{})
	f.t.Cleanup(s.Close)
	return s
}

func mustWatch(t testing.TB, s *Stream, r Request) int64 {
	t.Helper()
	id, err := s.Watch(r)
	if err != nil {
		t.Fatalf("Watch: %v", err)
	}
	return id
}

// next returns the next response in words.
func next(t testing.TB, s *Stream) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Hour)
	defer cancel()
	r, err := s.Next(ctx)
	if err != nil {
		return err.Error()
	}
	return describe(t, r)
}

func describe(t testing.TB, r Response) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%d@%d", r.WatchID, r.Revision)
	for _, flag := range []struct {
		set  bool
		name string
	}{{r.Created, "created"}, {r.Canceled, "canceled"}, {r.Progress, "progress"}, {r.Fragment, "fragment"}} {
		if flag.set {
			b.WriteString(" " + flag.name)
		}
	}
	if r.Err != nil {
		fmt.Fprintf(&b, " (%s)", r.Reason)
	}
	if r.CompactRevision != 0 {
		fmt.Fprintf(&b, " compact=%d", r.CompactRevision)
	}
	for _, encoded := range r.Events {
		var e mvccpb.Event
		if err := proto.Unmarshal(encoded, &e); err != nil {
			t.Fatal(err)
		}
		fmt.Fprintf(&b, " %s %s=%s@%d", strings.ToLower(e.Type.String()), e.Kv.Key, e.Kv.Value, e.Kv.ModRevision)
		if e.PrevKv != nil {
			fmt.Fprintf(&b, "<%s", e.PrevKv.Value)
		}
	}
	return b.String()
}

func expect(t testing.TB, s *Stream, want ...string) {
	t.Helper()
	for _, w := range want {
		if got := next(t, s); got != w {
			t.Fatalf("got  %s\nwant %s", got, w)
		}
	}
}

func expectNothing(t testing.TB, s *Stream) {
	t.Helper()
	synctest.Wait()
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.head < len(s.queue) {
		t.Fatalf("unexpected %s", describe(t, s.queue[s.head].Response))
	}
}

func bubble(name string, t *testing.T, c Config, test func(*testing.T, *fixture)) {
	t.Run(name, func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) { test(t, newFixture(t, c)) })
	})
}

func TestWatchSemantics(t *testing.T) {
	bubble("ids", t, Config{}, func(t *testing.T, f *fixture) {
		s := f.stream()
		mustWatch(t, s, Request{Key: []byte("a")})
		mustWatch(t, s, Request{Key: []byte("a"), ID: 1})
		mustWatch(t, s, Request{Key: []byte("a")}) // 1 is taken
		if _, err := s.Watch(Request{Key: []byte("a"), ID: 2}); !errors.Is(err, ErrDuplicateID) {
			t.Fatal(err)
		}
		if _, err := s.Watch(Request{Key: []byte("a"), ID: -1}); !errors.Is(err, ErrInvalidID) {
			t.Fatal(err)
		}
		expect(t, s, "0@1 created", "1@1 created", "2@1 created",
			"-1@1 created canceled (watch: duplicate watch ID on the stream)",
			"-1@1 created canceled (watch: watch ID -1 cannot be chosen)")
		if !s.Cancel(1) || s.Cancel(1) || s.Cancel(7) {
			t.Fatal("Cancel")
		}
		mustWatch(t, s, Request{Key: []byte("b"), ID: 1})
		f.put("a", "b")
		expect(t, s, "1@1 canceled", "1@1 created")
		got := []string{next(t, s), next(t, s), next(t, s)}
		for _, want := range []string{"0@3 put a=2@2", "2@3 put a=2@2", "1@3 put b=3@3"} {
			if !strings.Contains(strings.Join(got, "\n"), want) {
				t.Fatalf("%s is missing in %q", want, got)
			}
		}
	})
	bubble("ranges", t, Config{}, func(t *testing.T, f *fixture) {
		for _, c := range []struct{ key, end, want string }{
			{"b", "", "b"}, {"b", "d", "b c"}, {"b", "\x00", "b c d"}, {"", "\x00", "a b c d"}, {"", "b", "a"},
		} {
			s := f.stream()
			mustWatch(t, s, Request{Key: []byte(c.key), End: []byte(c.end)})
			next(t, s)
			f.put("a", "b", "c", "d")
			var keys []string
			for _, word := range strings.Fields(next(t, s)) {
				if k, _, ok := strings.Cut(word, "="); ok {
					keys = append(keys, k)
				}
			}
			if got := strings.Join(keys, " "); got != c.want {
				t.Errorf("[%q,%q): %q, want %q", c.key, c.end, got, c.want)
			}
		}
		s := f.stream()
		for _, end := range []string{"b", "a"} {
			if _, err := s.Watch(Request{Key: []byte("b"), End: []byte(end)}); !errors.Is(err, ErrEmptyRange) {
				t.Error(err)
			}
		}
	})
	bubble("start revision", t, Config{}, func(t *testing.T, f *fixture) {
		f.put("a", "a", "a") // 2, 3, 4
		past, present, future := f.stream(), f.stream(), f.stream()
		mustWatch(t, past, Request{Key: []byte("a"), StartRevision: 3})
		mustWatch(t, present, Request{Key: []byte("a")})
		mustWatch(t, future, Request{Key: []byte("a"), StartRevision: 6})
		expect(t, past, "0@4 created", "0@4 put a=3@3 put a=4@4")
		f.put("a")
		f.put("a")
		expect(t, past, "0@5 put a=5@5", "0@6 put a=6@6")
		expect(t, present, "0@4 created", "0@5 put a=5@5", "0@6 put a=6@6")
		expect(t, future, "0@4 created", "0@6 put a=6@6")
		if _, err := past.Watch(Request{Key: []byte("a"), StartRevision: -1}); !errors.Is(err, ErrCompacted) {
			t.Fatal(err)
		}
	})
	bubble("previous and filters", t, Config{}, func(t *testing.T, f *fixture) {
		requests := []Request{{PreviousKV: true}, {NoPut: true}, {NoDelete: true}, {NoPut: true, NoDelete: true}}
		want := []string{
			"0@5 put a=2@2 put a=3@3<2 delete a=@4<3 put a=5@5", "0@5 delete a=@4", "0@5 put a=2@2 put a=3@3 put a=5@5", "nothing",
		}
		live := make([]*Stream, len(requests))
		for i, r := range requests {
			live[i] = f.stream()
			r.Key = []byte("a")
			mustWatch(t, live[i], r)
			next(t, live[i])
		}
		f.put("a", "a", "-a", "a")
		for i, r := range requests {
			past := f.stream()
			r.Key, r.StartRevision = []byte("a"), 1
			mustWatch(t, past, r)
			next(t, past)
			for _, s := range []*Stream{live[i], past} {
				if want[i] == "nothing" {
					expectNothing(t, s)
				} else {
					expect(t, s, want[i])
				}
			}
		}
	})
	bubble("compacted", t, Config{}, func(t *testing.T, f *fixture) {
		f.put("a", "a", "a", "a") // 2 to 5
		f.space.Compact(3)
		s := f.stream()
		mustWatch(t, s, Request{Key: []byte("a"), StartRevision: 2})
		expect(t, s, "0@5 created", "0@5 canceled (watch: required revision has been compacted) compact=3")
		mustWatch(t, s, Request{Key: []byte("a"), StartRevision: 3})
		expect(t, s, "1@5 created", "1@5 put a=3@3 put a=4@4 put a=5@5")
	})
	bubble("read your own create", t, Config{}, func(t *testing.T, f *fixture) {
		// The key space is ahead of the hub: what a client may already know of is not told as new.
		f.revision++
		kv, _, _ := f.space.Put([]byte("a"), []byte("x"), 0, f.revision, 0)
		f.space.Publish(1, f.revision)
		s := f.stream()
		mustWatch(t, s, Request{Key: []byte("a")})
		f.hub.Applied(&statemachine.Applied{Events: []statemachine.Event{{Put: true, KV: kv}}, Revision: f.revision})
		f.put("a")
		expect(t, s, "0@2 created", "0@3 put a=3@3")
	})
	bubble("what waited is put together", t, Config{MaxResponseBytes: 100}, func(t *testing.T, f *fixture) {
		s := f.stream()
		mustWatch(t, s, Request{Key: []byte("a")})
		mustWatch(t, s, Request{Key: []byte("a"), End: []byte("c")})
		mustWatch(t, s, Request{Key: []byte("a"), Fragment: true})
		takeAll := func() (got []string) {
			all, err := s.TakeAll(nil)
			if err != nil {
				t.Fatal(err)
			}
			for _, r := range all {
				got = append(got, describe(t, r))
			}
			return got
		}
		takeAll()
		f.put("a")
		f.put("b")
		f.put("a")
		f.put("a")
		s.Cancel(1)
		f.put("a")
		for range 10 {
			f.put("a", "b")
		}
		got := takeAll()
		want := []string{
			// Events of 16 bytes. What comes behind the canceled response stays there.
			"2@2 put a=2@2", "0@5 put a=2@2 put a=4@4 put a=5@5", "1@5 put a=2@2 put b=3@3 put a=4@4 put a=5@5",
			"2@4 put a=4@4", "2@5 put a=5@5", "1@5 canceled",
		}
		if len(got) < len(want) || !slices.Equal(got[:len(want)], want) {
			t.Fatalf("got  %q\nwant %q", got, want)
		}
		// Ten times two revisions, up to 100 bytes of events at once.
		merged := 0
		for _, r := range got[len(want):] {
			if strings.HasPrefix(r, "0@") {
				merged++
			}
		}
		if merged != 2 {
			t.Errorf("%d responses for the eleven last events of a watch: %q", merged, got)
		}
	})
	bubble("one wakeup", t, Config{}, func(t *testing.T, f *fixture) {
		s := f.stream()
		for range 3 {
			mustWatch(t, s, Request{Key: []byte("a"), End: []byte("b")})
		}
		all, _ := s.TakeAll(nil)
		if len(all) != 3 {
			t.Fatalf("%d responses", len(all))
		}
		f.put("a", "a1", "a2")
		if all, _ = s.TakeAll(all[:0]); len(all) != 3 || len(all[0].Events) != 3 {
			t.Fatalf("%d responses", len(all))
		}
		if !sameEvents(all[0].Events, all[1].Events) || !sameEvents(all[0].Events, all[2].Events) {
			t.Fatal("the encoding is not shared")
		}
	})
	bubble("closed", t, Config{}, func(t *testing.T, f *fixture) {
		s := f.stream()
		s.Close()
		expect(t, s, ErrClosed.Error(), ErrClosed.Error())
		if _, err := s.Watch(Request{}); !errors.Is(err, ErrClosed) {
			t.Fatal(err)
		}
		s = f.stream()
		f.hub.Close()
		expect(t, s, ErrClosed.Error())
		expect(t, open(f.hub, StreamOptions{}), ErrClosed.Error())
		f.put("a")
	})
}

func TestFragments(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t, Config{})
		whole, split := f.stream(), open(f.hub, StreamOptions{FragmentBytes: responseOverhead + 50})
		t.Cleanup(split.Close)
		mustWatch(t, whole, Request{Key: []byte("a"), End: []byte("b")})
		mustWatch(t, split, Request{Key: []byte("a"), End: []byte("b"), Fragment: true})
		f.put("a", "a", "a", "a")
		expect(t, whole, "0@1 created", "0@5 put a=2@2 put a=3@3 put a=4@4 put a=5@5")
		expect(t, split, "0@1 created", "0@5 fragment put a=2@2 put a=3@3", "0@5 put a=4@4 put a=5@5")
	})
}

// TestARevisionIsOneResponse: however little a response is to hold, the events of one revision come in one.
func TestARevisionIsOneResponse(t *testing.T) {
	bubble("live", t, Config{MaxResponseBytes: 1}, func(t *testing.T, f *fixture) {
		s := f.stream()
		mustWatch(t, s, Request{Key: []byte("a"), End: []byte("z")})
		expect(t, s, "0@1 created")
		f.transaction("a", "b", "c")
		f.transaction("a", "b")
		expect(t, s, "0@2 put a=2@2 put b=2@2 put c=2@2", "0@3 put a=3@3 put b=3@3")
	})
}

func TestProgress(t *testing.T) {
	const interval = time.Second
	bubble("interval", t, Config{ProgressInterval: interval}, func(t *testing.T, f *fixture) {
		s := f.stream()
		mustWatch(t, s, Request{Key: []byte("a"), Progress: true})
		mustWatch(t, s, Request{Key: []byte("b")})
		mustWatch(t, s, Request{Key: []byte("c"), Progress: true, StartRevision: 100}) // not reached
		expect(t, s, "0@1 created", "1@1 created", "2@1 created", "0@1 progress")
		f.put("x")
		expect(t, s, "0@2 progress")
		// An event stands for the notification.
		f.put("a")
		time.Sleep(interval + interval/2)
		expect(t, s, "0@3 put a=3@3")
		expectNothing(t, s)
		expect(t, s, "0@3 progress")
	})
	bubble("request", t, Config{}, func(t *testing.T, f *fixture) {
		s := f.stream()
		s.RequestProgress()
		expectNothing(t, s) // a stream without watches
		mustWatch(t, s, Request{Key: []byte("a")})
		s.RequestProgress()
		expect(t, s, "0@1 created", "-1@1 progress")
		mustWatch(t, s, Request{Key: []byte("b"), StartRevision: 3})
		s.RequestProgress()
		expect(t, s, "1@1 created")
		expectNothing(t, s)
		f.put("x")
		expect(t, s, "-1@2 progress") // all before revision 3 is said
		s.RequestProgress()
		s.Cancel(0)
		expect(t, s, "-1@2 progress", "0@2 canceled")
	})
}

// TestSlowReader stops reading: the stream's buffer stays bounded, other streams and the writer notice nothing,
// and the reader gets everything once it goes on.
func TestSlowReader(t *testing.T) {
	c := Config{StreamBufferBytes: 4096, Registerer: prometheus.NewRegistry()}
	bubble("falls back and catches up", t, c, func(t *testing.T, f *fixture) {
		slow, quick := f.stream(), f.stream()
		mustWatch(t, slow, Request{Key: []byte("a")})
		mustWatch(t, quick, Request{Key: []byte("a")})
		expect(t, quick, "0@1 created")
		const writes = 1000
		for i := range writes {
			f.put("a")
			expect(t, quick, fmt.Sprintf("0@%d put a=%d@%d", i+2, i+2, i+2))
		}
		synctest.Wait()
		if st := f.hub.Stats(); st.Lagging != 1 || st.Slow != 1 || slow.bytes > c.StreamBufferBytes {
			t.Fatalf("%+v, %d bytes", st, slow.bytes)
		}
		expect(t, slow, "0@1 created")
		for revision := int64(2); revision <= writes+1; {
			r, err := slow.Next(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			for _, encoded := range r.Events {
				var e mvccpb.Event
				if err := proto.Unmarshal(encoded, &e); err != nil || e.Kv.ModRevision != revision {
					t.Fatalf("%v, %v; want revision %d", &e, err, revision)
				}
				revision++
			}
		}
		synctest.Wait()
		if st := f.hub.Stats(); st.Lagging != 0 {
			t.Fatalf("%+v", st)
		}
	})
	bubble("compacted under it", t, c, func(t *testing.T, f *fixture) {
		s := f.stream()
		mustWatch(t, s, Request{Key: []byte("a")})
		for range 1000 {
			f.put("a")
		}
		f.space.Compact(900)
		var last string
		for !strings.Contains(last, "canceled") {
			last = next(t, s)
		}
		if last != "0@1001 canceled (watch: required revision has been compacted) compact=900" {
			t.Fatal(last)
		}
		mustWatch(t, s, Request{Key: []byte("a"), StartRevision: 1001})
		expect(t, s, "1@1001 created", "1@1001 put a=1001@1001")
	})
	bubble("requests are held back", t, Config{MaxUnreadAnswers: 2}, func(t *testing.T, f *fixture) {
		s := f.stream()
		mustWatch(t, s, Request{Key: []byte("a")})
		if err := s.Refuse(errors.New("permission denied")); err != nil {
			t.Fatal(err)
		}
		if _, err := s.Watch(Request{Key: []byte("a")}); !errors.Is(err, ErrOverloaded) {
			t.Fatal(err)
		}
		admitted := make(chan error, 1)
		go func() { admitted <- s.Admit(t.Context()) }()
		synctest.Wait()
		select {
		case <-admitted:
			t.Fatal("admitted too early")
		default:
		}
		expect(t, s, "0@1 created", "-1@1 created canceled (permission denied)")
		if err := <-admitted; err != nil {
			t.Fatal(err)
		}
	})
}

// TestEncodingIsEtcds decodes what the hub encodes as etcd's event and encodes it again.
func TestEncodingIsEtcds(t *testing.T) {
	kv, previous := &mvccpb.KeyValue{Key: []byte("k"), ModRevision: 7}, &mvccpb.KeyValue{Key: []byte("k"), Value: []byte("v")}
	encode := func(m proto.Message) []byte {
		b, err := proto.MarshalOptions{Deterministic: true}.Marshal(m)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	for _, e := range []*mvccpb.Event{
		{Kv: kv}, {Kv: kv, PrevKv: previous}, {Type: mvccpb.Event_DELETE, Kv: kv}, {Type: mvccpb.Event_DELETE, Kv: kv, PrevKv: previous},
	} {
		var p []byte
		if e.PrevKv != nil {
			p = encode(e.PrevKv)
		}
		if got := encodeEvent(e.Type == mvccpb.Event_PUT, encode(e.Kv), p); !bytes.Equal(got, encode(e)) {
			t.Errorf("%v is encoded as %x, want %x", e, got, encode(e))
		}
	}
}

// BenchmarkFanout delivers one put to 10,000 watches on 100 streams, or on as many, and has them read.
func BenchmarkFanout(b *testing.B) {
	for _, streams := range []int{100, 10_000} {
		b.Run(fmt.Sprintf("streams=%d", streams), func(b *testing.B) {
			const watches = 10_000
			f := newFixture(b, Config{})
			all := make([]*Stream, streams)
			for i := range all {
				all[i] = f.stream()
			}
			for i := range watches {
				mustWatch(b, all[i%streams], Request{Key: []byte("a")})
			}
			var buffer []Response
			read := func() {
				for _, s := range all {
					buffer, _ = s.TakeAll(buffer[:0])
				}
			}
			read()
			b.ReportAllocs()
			for b.Loop() {
				f.put("a")
				read()
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/watches, "ns/event")
		})
	}
}

// BenchmarkIdle puts a key that nobody watches beside 100,000 watches, and reports what an idle watch costs in
// memory.
func BenchmarkIdle(b *testing.B) {
	const watches = 100_000
	f := newFixture(b, Config{})
	s := open(f.hub, StreamOptions{})
	defer s.Close()
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	for i := range watches {
		r := Request{Key: fmt.Appendf(nil, "key-%08d", i)}
		if i%2 == 0 {
			r.End = fmt.Appendf(nil, "key-%08d/", i)
		}
		mustWatch(b, s, r)
		if _, err := s.Next(b.Context()); err != nil {
			b.Fatal(err)
		}
	}
	runtime.GC()
	runtime.ReadMemStats(&after)
	for b.Loop() {
		f.put("other")
	}
	b.ReportMetric(float64(after.HeapAlloc-before.HeapAlloc)/watches, "B/watch")
}
