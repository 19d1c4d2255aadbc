package wan_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/net/nettest"

	"github.com/logmirror/logmirror/internal/wan"
)

const roundTrip = 80 * time.Millisecond

func roundTrips() map[wan.Pair]time.Duration {
	return map[wan.Pair]time.Duration{{A: "us", B: "eu"}: roundTrip, {A: "us", B: "ap"}: 150 * time.Millisecond}
}

// bubble runs a test in virtual time with a network in memory, and checks that nothing outlives the network.
func bubble(t *testing.T, test func(t *testing.T, n *wan.Network)) {
	synctest.Test(t, func(t *testing.T) {
		n := wan.New(wan.Options{RoundTrips: roundTrips(), InMemory: true})
		defer n.Close()
		test(t, n)
	})
}

// connect opens a connection from us to a listener in the given region.
func connect(t *testing.T, n *wan.Network, region string) (dialed, accepted net.Conn) {
	t.Helper()
	address := region + "-log:1"
	if !isInMemory(t) {
		address = "127.0.0.1:0"
	}
	listener, err := n.Region(region).Listen(address)
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	dialed, err = n.Region("us").Dial(t.Context(), listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	accepted, err = listener.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { dialed.Close(); accepted.Close() })
	return dialed, accepted
}

func isInMemory(t *testing.T) bool { return !bytes.Contains([]byte(t.Name()), []byte("TCP")) }

// after checks how much virtual time has passed, to the nanosecond.
func after(t *testing.T, start time.Time, want time.Duration, what string) {
	t.Helper()
	if got := time.Since(start); got != want {
		t.Errorf("%s after %v, want %v", what, got, want)
	}
}

func readExactly(t *testing.T, c net.Conn, want string) {
	t.Helper()
	got := make([]byte, len(want))
	if _, err := io.ReadFull(c, got); err != nil || string(got) != want {
		t.Fatalf("read %q, %v; want %q", got, err, want)
	}
}

func write(t *testing.T, c net.Conn, data string) {
	t.Helper()
	if n, err := c.Write([]byte(data)); n != len(data) || err != nil {
		t.Fatalf("write: %d, %v", n, err)
	}
}

func TestDelays(t *testing.T) {
	for _, tc := range []struct {
		region string
		oneWay time.Duration
	}{{"us", 0}, {"eu", 40 * time.Millisecond}, {"ap", 75 * time.Millisecond}, {"elsewhere", 0}} {
		t.Run(tc.region, func(t *testing.T) {
			bubble(t, func(t *testing.T, n *wan.Network) {
				start := time.Now()
				dialed, accepted := connect(t, n, tc.region)
				after(t, start, 2*tc.oneWay, "connected")

				start = time.Now()
				write(t, dialed, "ping")
				after(t, start, 0, "written")
				readExactly(t, accepted, "ping")
				after(t, start, tc.oneWay, "arrived")
				write(t, accepted, "pong")
				readExactly(t, dialed, "pong")
				after(t, start, 2*tc.oneWay, "answered")

				// The end arrives after the bytes and as late as they do.
				start = time.Now()
				write(t, dialed, "bye")
				dialed.Close()
				got, err := io.ReadAll(accepted)
				if string(got) != "bye" || err != nil {
					t.Errorf("read %q, %v", got, err)
				}
				after(t, start, tc.oneWay, "ended")
				if _, err := accepted.Write([]byte("x")); !errors.Is(err, syscall.EPIPE) {
					t.Errorf("write to a connection whose reader is gone: %v", err)
				}
				if _, err := dialed.Read(make([]byte, 1)); !errors.Is(err, net.ErrClosed) {
					t.Errorf("read of a closed connection: %v", err)
				}
			})
		})
	}
}

// What the listening side writes at once must not wait for a second round trip.
func TestListenerSpeaksFirst(t *testing.T) {
	bubble(t, func(t *testing.T, n *wan.Network) {
		listener, err := n.Region("eu").Listen("eu:1")
		if err != nil {
			t.Fatal(err)
		}
		defer listener.Close()
		go func() {
			c, err := listener.Accept()
			if err != nil {
				t.Error(err)
				return
			}
			_, _ = c.Write([]byte("hello"))
			c.Close()
		}()
		start := time.Now()
		c, err := n.Region("us").Dial(t.Context(), "eu:1")
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		readExactly(t, c, "hello")
		after(t, start, roundTrip, "greeted")
	})
}

func TestDialFailures(t *testing.T) {
	bubble(t, func(t *testing.T, n *wan.Network) {
		us := n.Region("us")
		start := time.Now()
		_, err := us.Dial(t.Context(), "nobody:1")
		if !errors.Is(err, syscall.ECONNREFUSED) {
			t.Errorf("unknown address: %v", err)
		}
		after(t, start, 0, "refused")

		listener, err := n.Region("eu").Listen("eu:0")
		if err != nil {
			t.Fatal(err)
		}
		if _, err := n.Region("ap").Listen(listener.Addr().String()); !errors.Is(err, syscall.EADDRINUSE) {
			t.Errorf("second listener: %v", err)
		}
		listener.Close()
		if _, err := listener.Accept(); !errors.Is(err, net.ErrClosed) {
			t.Errorf("accept on a closed listener: %v", err)
		}
		// The address still belongs to its region: the refusal travels.
		start = time.Now()
		_, err = us.Dial(t.Context(), listener.Addr().String())
		if !errors.Is(err, syscall.ECONNREFUSED) {
			t.Errorf("closed listener: %v", err)
		}
		after(t, start, roundTrip, "refused")

		n.CutOneWay("eu", "us") // the answer is lost, whatever it is
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		start = time.Now()
		if _, err = us.Dial(ctx, listener.Addr().String()); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("cut link: %v", err)
		}
		after(t, start, time.Minute, "gave up")
	})
}

func TestAlias(t *testing.T) {
	bubble(t, func(t *testing.T, n *wan.Network) {
		listener, err := n.Region("eu").Listen("eu:2")
		if err != nil {
			t.Fatal(err)
		}
		defer listener.Close()
		n.Alias("eu:1", "eu:2")
		start := time.Now()
		c, err := n.Region("us").Dial(t.Context(), "eu:1")
		if err != nil {
			t.Fatal(err)
		}
		c.Close()
		after(t, start, roundTrip, "connected")
		n.Alias("eu:1", "")
		if _, err := n.Region("us").Dial(t.Context(), "eu:1"); !errors.Is(err, syscall.ECONNREFUSED) {
			t.Errorf("alias removed: %v", err)
		}
	})
}

func TestCutStallsAndHealDelivers(t *testing.T) {
	bubble(t, func(t *testing.T, n *wan.Network) {
		dialed, accepted := connect(t, n, "eu")
		write(t, dialed, "arrived ")
		time.Sleep(roundTrip / 2)
		write(t, dialed, "under way ")
		time.Sleep(time.Millisecond)
		n.Cut("eu", "us")
		write(t, dialed, "written while cut")
		write(t, accepted, "answer")
		dialed.SetReadDeadline(time.Now().Add(time.Hour))
		if _, err := dialed.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("read over a cut link: %v", err)
		}
		dialed.SetReadDeadline(time.Time{})
		// What had arrived before the cut can still be read, and no more than that.
		buffer := make([]byte, 100)
		if got, err := accepted.Read(buffer); string(buffer[:got]) != "arrived " || err != nil {
			t.Errorf("read %q, %v", buffer[:got], err)
		}
		healed := time.Now()
		n.Heal("us", "eu")
		for _, piece := range []string{"under way ", "written while cut"} {
			readExactly(t, accepted, piece)
			after(t, healed, roundTrip/2, "sent again")
		}
		readExactly(t, dialed, "answer")
		after(t, healed, roundTrip/2, "sent again")
	})
}

func TestCutOneWay(t *testing.T) {
	bubble(t, func(t *testing.T, n *wan.Network) {
		dialed, accepted := connect(t, n, "eu")
		n.CutOneWay("us", "eu")
		start := time.Now()
		write(t, dialed, "lost")
		write(t, accepted, "heard")
		readExactly(t, dialed, "heard")
		after(t, start, roundTrip/2, "arrived")
		accepted.SetReadDeadline(time.Now().Add(time.Hour))
		if _, err := accepted.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("read over a cut link: %v", err)
		}
		// An end over a cut link is not heard either.
		dialed.Close()
		accepted.SetReadDeadline(time.Now().Add(time.Hour))
		if _, err := accepted.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("read over a cut link: %v", err)
		}
		accepted.SetReadDeadline(time.Time{})
		n.HealAll()
		if got, err := io.ReadAll(accepted); string(got) != "lost" || err != nil {
			t.Errorf("read %q, %v", got, err)
		}
	})
}

func TestIsolate(t *testing.T) {
	bubble(t, func(t *testing.T, n *wan.Network) {
		n.Isolate("us")
		listener, err := n.Region("newcomer").Listen("newcomer:1")
		if err != nil {
			t.Fatal(err)
		}
		defer listener.Close()
		reaches := func(from string) bool {
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			defer cancel()
			c, err := n.Region(from).Dial(ctx, "newcomer:1")
			if err == nil {
				c.Close()
			}
			return err == nil
		}
		if reaches("us") || !reaches("eu") || !reaches("newcomer") {
			t.Error("isolating us must cut us off, and nothing else")
		}
		n.Rejoin("us")
		if !reaches("us") {
			t.Error("us rejoined and reaches nobody")
		}
	})
}

// A dial that waits for a cut link goes on when the link is healed.
func TestDialResumesAfterHeal(t *testing.T) {
	bubble(t, func(t *testing.T, n *wan.Network) {
		listener, err := n.Region("eu").Listen("eu:1")
		if err != nil {
			t.Fatal(err)
		}
		defer listener.Close()
		n.Cut("us", "eu")
		start := time.Now()
		time.AfterFunc(time.Hour, n.HealAll)
		c, err := n.Region("us").Dial(t.Context(), "eu:1")
		if err != nil {
			t.Fatal(err)
		}
		c.Close()
		after(t, start, time.Hour+roundTrip, "connected")
	})
}

func TestRoundTripChangesWithoutOvertaking(t *testing.T) {
	bubble(t, func(t *testing.T, n *wan.Network) {
		dialed, accepted := connect(t, n, "eu")
		start := time.Now()
		write(t, dialed, "slow")
		n.SetRoundTrip("eu", "us", 10*time.Millisecond)
		write(t, dialed, "fast")
		readExactly(t, accepted, "slowfast")
		after(t, start, roundTrip/2, "arrived")
		start = time.Now()
		write(t, dialed, "x")
		readExactly(t, accepted, "x")
		after(t, start, 5*time.Millisecond, "arrived")

		// The end does not overtake either.
		n.SetRoundTrip("eu", "us", roundTrip)
		start = time.Now()
		write(t, dialed, "slow")
		n.SetRoundTrip("eu", "us", 0)
		dialed.Close()
		time.Sleep(roundTrip/2 - 1)
		write(t, accepted, "nobody reads this, and nobody here knows")
		readExactly(t, accepted, "slow")
		after(t, start, roundTrip/2, "arrived")
		if got := n.RoundTrip("us", "eu"); got != 0 {
			t.Errorf("round trip %v", got)
		}
	})
}

func TestBackpressure(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := wan.New(wan.Options{RoundTrips: roundTrips(), InMemory: true, MaxBytesInFlight: 1000})
		defer n.Close()
		dialed, accepted := connect(t, n, "eu")
		start := time.Now()
		dialed.SetWriteDeadline(start.Add(time.Second))
		sent, err := dialed.Write(make([]byte, 1500))
		if sent != 1000 || !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("write into a full connection: %d, %v", sent, err)
		}
		after(t, start, time.Second, "gave up")

		// The same in both directions at once: nobody reads until both are blocked, and all arrives.
		dialed.SetWriteDeadline(time.Time{})
		var writers sync.WaitGroup
		for _, c := range []net.Conn{dialed, accepted} {
			writers.Go(func() { _, _ = c.Write(make([]byte, 5000)) })
		}
		synctest.Wait()
		for c, want := range map[net.Conn]int{dialed: 5000, accepted: 6000} {
			if _, err := io.ReadFull(c, make([]byte, want)); err != nil {
				t.Error(err)
			}
		}
		writers.Wait()

		// Closing releases a writer that waits for room.
		writers.Go(func() {
			if _, err := dialed.Write(make([]byte, 2000)); !errors.Is(err, net.ErrClosed) {
				t.Errorf("write on a connection closed meanwhile: %v", err)
			}
		})
		synctest.Wait()
		dialed.Close()
		writers.Wait()
	})
}

func TestLossCostsRetransmissions(t *testing.T) {
	arrivals := func(seed uint64) (delays []time.Duration) {
		synctest.Test(t, func(t *testing.T) {
			n := wan.New(wan.Options{RoundTrips: roundTrips(), InMemory: true, Seed: seed})
			defer n.Close()
			dialed, accepted := connect(t, n, "eu")
			n.SetLoss("us", "eu", 0.2)
			for range 200 {
				start := time.Now()
				write(t, dialed, "x")
				readExactly(t, accepted, "x")
				delays = append(delays, time.Since(start))
			}
		})
		return delays
	}
	first, again, other := arrivals(1), arrivals(1), arrivals(2)
	late, same := 0, true
	for i, delay := range first {
		if delay != again[i] {
			t.Fatalf("the same seed lost other packets: message %d took %v, then %v", i, delay, again[i])
		}
		same = same && delay == other[i]
		switch {
		case delay == roundTrip/2:
		case delay >= roundTrip/2+200*time.Millisecond+roundTrip:
			late++
		default:
			t.Errorf("message %d took %v", i, delay)
		}
	}
	if late < 20 || late > 60 {
		t.Errorf("%d of 200 messages were held up; expected about 40", late)
	}
	if same {
		t.Error("another seed lost the same packets")
	}
}

func TestTraffic(t *testing.T) {
	bubble(t, func(t *testing.T, n *wan.Network) {
		dialed, accepted := connect(t, n, "eu")
		write(t, dialed, "12345")
		readExactly(t, accepted, "12345")
		write(t, accepted, "123")
		if forth, back := n.Traffic("us", "eu"), n.Traffic("eu", "us"); forth != 5 || back != 3 {
			t.Errorf("counted %d and %d bytes", forth, back)
		}
	})
}

// The network's end releases everyone who waits for something.
func TestNetworkClose(t *testing.T) {
	bubble(t, func(t *testing.T, n *wan.Network) {
		dialed, _ := connect(t, n, "eu")
		listener, err := n.Region("ap").Listen("ap:1")
		if err != nil {
			t.Fatal(err)
		}
		n.Cut("us", "ap")
		var waiting sync.WaitGroup
		for _, wait := range []func() error{
			func() error { _, err := dialed.Read(make([]byte, 1)); return err },
			func() error { _, err := listener.Accept(); return err },
			func() error { _, err := n.Region("us").Dial(t.Context(), "ap:1"); return err },
		} {
			waiting.Go(func() {
				if err := wait(); !errors.Is(err, net.ErrClosed) {
					t.Errorf("returned %v", err)
				}
			})
		}
		synctest.Wait()
		n.Close()
		waiting.Wait()
	})
}

// The conformance tests for connections of golang.org/x/net, over each kind.
func TestConformance(t *testing.T) {
	for name, inMemory := range map[string]bool{"memory": true, "TCP": false} {
		for _, region := range []string{"us", "eu"} {
			t.Run(name+" "+region, func(t *testing.T) {
				nettest.TestConn(t, func() (c1, c2 net.Conn, stop func(), err error) {
					n := wan.New(wan.Options{
						InMemory:   inMemory,
						RoundTrips: map[wan.Pair]time.Duration{{A: "us", B: "eu"}: time.Millisecond},
					})
					c1, c2 = connect(t, n, region)
					return c1, c2, func() { c1.Close(); c2.Close(); n.Close() }, nil
				})
			})
		}
	}
}

// Over TCP a connection is as late as in memory, never earlier; how much later is the machine's affair.
func TestTCPDelays(t *testing.T) {
	n := wan.New(wan.Options{RoundTrips: map[wan.Pair]time.Duration{{A: "us", B: "eu"}: 20 * time.Millisecond}})
	defer n.Close()
	start := time.Now()
	dialed, accepted := connect(t, n, "eu")
	if took := time.Since(start); took < 20*time.Millisecond {
		t.Errorf("connected after %v", took)
	}
	start = time.Now()
	write(t, dialed, "ping")
	readExactly(t, accepted, "ping")
	if took := time.Since(start); took < 10*time.Millisecond {
		t.Errorf("arrived after %v", took)
	}
	write(t, accepted, "pong")
	readExactly(t, dialed, "pong")
	if took := time.Since(start); took < 20*time.Millisecond {
		t.Errorf("answered after %v", took)
	}

	// Closed over a cut link: the far end hears of it when the link is healed.
	n.Cut("us", "eu")
	write(t, dialed, "bye")
	dialed.Close()
	accepted.SetReadDeadline(time.Now().Add(50 * time.Millisecond))
	if _, err := accepted.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("read over a cut link: %v", err)
	}
	accepted.SetReadDeadline(time.Time{})
	n.HealAll()
	if got, err := io.ReadAll(accepted); string(got) != "bye" || err != nil {
		t.Errorf("read %q, %v", got, err)
	}
}

// Megabytes in random pieces both ways at once, over links that come and go: all arrives, in order.
func TestTCPStreams(t *testing.T) {
	n := wan.New(wan.Options{
		RoundTrips:       map[wan.Pair]time.Duration{{A: "us", B: "eu"}: 2 * time.Millisecond},
		MaxBytesInFlight: 100_000,
	})
	defer n.Close()
	dialed, accepted := connect(t, n, "eu")
	const size = 4 << 20
	var transfers sync.WaitGroup
	for seed, way := range [][2]net.Conn{{dialed, accepted}, {accepted, dialed}} {
		transfers.Go(func() {
			source := rand.NewChaCha8([32]byte{byte(seed)})
			pieces := rand.New(rand.NewPCG(uint64(seed), 0))
			for sent := 0; sent < size; {
				piece := make([]byte, min(size-sent, 1+pieces.IntN(50_000)))
				_, _ = source.Read(piece) // never fails
				if _, err := way[0].Write(piece); err != nil {
					t.Error(err)
					return
				}
				sent += len(piece)
			}
		})
		transfers.Go(func() {
			want := make([]byte, size)
			_, _ = rand.NewChaCha8([32]byte{byte(seed)}).Read(want)
			got := make([]byte, size)
			if _, err := io.ReadFull(way[1], got); err != nil || !bytes.Equal(got, want) {
				t.Errorf("the stream arrived changed, %v", err)
			}
		})
	}
	done := make(chan struct{})
	go func() { transfers.Wait(); close(done) }()
	for cut := true; ; cut = !cut {
		select {
		case <-done:
			return
		case <-time.After(3 * time.Millisecond):
		}
		if cut {
			n.CutOneWay("us", "eu")
		} else {
			n.HealAll()
		}
	}
}
