package logservice

import (
	"context"
	"fmt"
	"net"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	logv1 "github.com/logmirror/logmirror/api/proto/logmirror/log/v1"
)

// BenchmarkBatch measures the CPU time that one batch costs: three members and the one client in this process, over
// loopback and real disks. ns/op is of one pipeline; cpu-µs/batch is what counts.
func BenchmarkBatch(b *testing.B) {
	for _, bytes := range []int{500, 8000} {
		b.Run(fmt.Sprintf("%dB", bytes), func(b *testing.B) { benchmarkBatch(b, bytes) })
	}
}

func benchmarkBatch(b *testing.B, bytes int) {
	var listeners []net.Listener
	var members []InitialMember
	for i := range 3 {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			b.Fatal(err)
		}
		listeners = append(listeners, l)
		members = append(members, InitialMember{Name: fmt.Sprint("m", i), Address: l.Addr().String()})
	}
	for i, l := range listeners {
		s, err := Start(Config{Name: members[i].Name, Region: members[i].Name, DataDir: b.TempDir(), Listener: l, InitialCluster: members,
			LeaderPolicy: LeaderPolicy{Region: "m0"}})
		if err != nil {
			b.Fatal(err)
		}
		defer s.Kill()
	}
	ctx, cancel := context.WithCancel(b.Context())
	defer cancel()
	conn, err := grpc.NewClient(members[0].Address, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		b.Fatal(err)
	}
	defer conn.Close()
	client := logv1.NewLogServiceClient(conn)
	for leader := uint64(0); leader == 0; {
		status, err := client.Status(ctx, &logv1.StatusRequest{})
		if err != nil {
			b.Fatal(err)
		}
		leader = status.GetLeaderId()
	}
	tail, err := client.Tail(ctx, &logv1.TailRequest{Handshake: &logv1.Handshake{}, FromIndex: 1})
	if err != nil {
		b.Fatal(err)
	}
	var seen atomic.Int64
	credits := make(chan struct{}, 8)
	go func() {
		for {
			r, err := tail.Recv()
			if err != nil {
				return
			}
			for _, e := range r.Entries {
				if e.Kind == logv1.EntryKind_ENTRY_KIND_BATCH {
					seen.Add(1)
					<-credits
				}
			}
		}
	}()
	stream, err := client.Append(ctx)
	if err != nil {
		b.Fatal(err)
	}
	_ = stream.Send(&logv1.AppendRequest{Handshake: &logv1.Handshake{}})
	payload := make([]byte, bytes)
	before := cpu()
	b.ResetTimer()
	for i := range b.N {
		credits <- struct{}{}
		_ = stream.Send(&logv1.AppendRequest{Proposals: []*logv1.Proposal{{Kind: logv1.EntryKind_ENTRY_KIND_BATCH, Session: 1,
			Seq: uint64(i + 1), Payload: payload}}})
	}
	for range cap(credits) { // full again only when all before were taken
		credits <- struct{}{}
	}
	b.ReportMetric(float64((cpu()-before).Microseconds())/float64(b.N), "cpu-µs/batch")
}

func cpu() time.Duration {
	var u syscall.Rusage
	_ = syscall.Getrusage(syscall.RUSAGE_SELF, &u)
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
