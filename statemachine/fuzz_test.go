package statemachine

import (
	"bytes"
	"errors"
	"testing"

	"github.com/logmirror/logmirror/lease"
)

// FuzzRestore gives arbitrary bytes to a Restorer for each kind of what an export holds. Nothing panics, what is refused is
// refused as inconsistent, and a machine that comes of it is whole: it exports again what it was made of.
func FuzzRestore(f *testing.F) {
	log := newRandomLog(f, 3)
	m, x := New(Options{}), newExporter(f)
	for len(m.Leases()) == 0 || m.requests.len() == 0 {
		e := log.next()
		applied, err := m.Apply(log.index, 1, e.kind, e.envelope, false)
		if err != nil {
			f.Fatal(err)
		}
		x.applied(applied)
	}
	state, err := m.ExportAll().State()
	if err != nil {
		f.Fatal(err)
	}
	row := encodeLease(&m.Leases()[0])
	request, err := encodeRequest(m.requests.queue.at(0))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(state, int64(1), row, request, []byte("version"), int64(0))
	f.Add([]byte(`{"Version":1,"Index":1,"Revision":1,"ApplyVersion":1}`), int64(0), []byte{}, []byte(`{}`), []byte{}, int64(-1))
	f.Fuzz(func(t *testing.T, state []byte, id int64, leaseRow, request, version []byte, sub int64) {
		r, err := NewRestorer(Options{}, state)
		if err != nil {
			if !errors.Is(err, ErrInconsistent) && !errors.Is(err, ErrNewer) {
				t.Fatal(err)
			}
			return
		}
		_ = r.Lease(id, leaseRow)
		_ = r.RequestID(request)
		_ = r.Version(version, sub)
		restored, err := r.Machine()
		if err != nil {
			return
		}
		if _, err := restored.ExportAll().State(); err != nil {
			t.Error(err)
		}
		if _, err := restored.Digest(); err != nil {
			t.Error(err)
		}
	})
}

// FuzzLeaseRow decodes arbitrary rows. What is taken means the same after another round.
func FuzzLeaseRow(f *testing.F) {
	f.Add(int64(7), encodeLease(&lease.Info{ID: 7, TTLSeconds: 60, Owner: 3, OwnerIndex: 9, PreviousOwnerSessionTime: 5}))
	f.Add(int64(7), bytes.Repeat([]byte{0xff}, 50))
	f.Fuzz(func(t *testing.T, id int64, row []byte) {
		info, err := decodeLease(id, row)
		if err != nil {
			if !errors.Is(err, ErrInconsistent) {
				t.Fatal(err)
			}
			return
		}
		again, err := decodeLease(id, encodeLease(&info))
		if err != nil || again != info {
			t.Errorf("%+v, then %+v, %v", info, again, err)
		}
	})
}

// FuzzRequestRow is FuzzLeaseRow for the rows of request ids.
func FuzzRequestRow(f *testing.F) {
	f.Add([]byte(`{"ID":"MS1h","Hash":"AAAAAAAAAAAAAAAAAAAAAA==","Index":4,"LogTime":5,"Code":0}`))
	f.Add([]byte(`{"ID":"MS1h","Hash":"AA==","Code":255}`))
	f.Fuzz(func(t *testing.T, row []byte) {
		r, err := decodeRequest(row)
		if err != nil {
			if !errors.Is(err, ErrInconsistent) {
				t.Fatal(err)
			}
			return
		}
		first, err := encodeRequest(r)
		if err != nil {
			t.Fatal(err)
		}
		again, err := decodeRequest(first)
		if err != nil {
			t.Fatal(err)
		}
		if second, err := encodeRequest(again); err != nil || !bytes.Equal(first, second) {
			t.Errorf("%s, then %s, %v", first, second, err)
		}
	})
}

// FuzzParseRequestID takes no id that names no index, and no index that is not in it.
func FuzzParseRequestID(f *testing.F) {
	for _, id := range []string{"1-a", "0-a", "-a", "18446744073709551615-x", "18446744073709551616-x", "01-a", "1-"} {
		f.Add([]byte(id))
	}
	f.Fuzz(func(t *testing.T, id []byte) {
		if index, err := parseRequestID(id); err == nil && (len(id) < 3 || id[0] < '0' || id[0] > '9') {
			t.Errorf("%q names index %d", id, index)
		}
	})
}
