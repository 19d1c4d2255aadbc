package command

import (
	"encoding/json"
	"fmt"
	"strconv"
	"unicode/utf8"

	kvv1 "github.com/logmirror/logmirror/api/proto/logmirror/kv/v1"
)

// keyValueJSON is a key-value for programs. Bytes that are not UTF-8 are given in base64 under a name of their own.
type keyValueJSON struct {
	Key            *string `json:"key,omitempty"`
	KeyBase64      []byte  `json:"key_base64,omitempty"`
	Value          *string `json:"value,omitempty"`
	ValueBase64    []byte  `json:"value_base64,omitempty"`
	CreateRevision int64   `json:"create_revision,omitempty"`
	ModRevision    int64   `json:"mod_revision,omitempty"`
	Version        int64   `json:"version,omitempty"`
	Lease          int64   `json:"lease,omitempty"`
}

func textOrBase64(data []byte) (text *string, base64 []byte) {
	if utf8.Valid(data) {
		s := string(data)
		return &s, nil
	}
	return nil, data
}

func toJSON(kv *kvv1.KeyValue) *keyValueJSON {
	if kv == nil {
		return nil
	}
	j := &keyValueJSON{
		CreateRevision: kv.GetCreateRevision(), ModRevision: kv.GetModRevision(), Version: kv.GetVersion(), Lease: kv.GetLease(),
	}
	j.Key, j.KeyBase64 = textOrBase64(kv.GetKey())
	j.Value, j.ValueBase64 = textOrBase64(kv.GetValue())
	return j
}

type headerJSON struct {
	Region          string `json:"region"`
	Frontend        string `json:"frontend"`
	LogIndex        uint64 `json:"log_index"`
	Revision        int64  `json:"revision"`
	AgeMicroseconds int64  `json:"age_microseconds"`
}

func headerToJSON(h *kvv1.ResponseHeader) headerJSON {
	return headerJSON{h.GetRegion(), h.GetFrontend(), h.GetLogIndex(), h.GetRevision(), h.GetAgeMicroseconds()}
}

// print writes the JSON form, or calls text for people.
func (o *options) print(forPrograms any, text func()) error {
	if o.output == "json" {
		encoder := json.NewEncoder(o.out)
		encoder.SetEscapeHTML(false)
		return encoder.Encode(forPrograms)
	}
	text()
	return nil
}

// printable returns bytes as they are when they are plain text, else quoted.
func printable(data []byte) string {
	if utf8.Valid(data) {
		return string(data)
	}
	return strconv.Quote(string(data))
}

func (o *options) line(format string, arguments ...any) {
	fmt.Fprintf(o.out, format+"\n", arguments...)
}

func leaseHex(id int64) string { return strconv.FormatUint(uint64(id), 16) }

func parseLease(text string) (int64, error) {
	id, err := strconv.ParseUint(text, 16, 63)
	if err != nil || id == 0 {
		return 0, exitError{exitUsage, fmt.Errorf("lease %q: want a lease id in hexadecimal, as kvctl lease grant prints it", text)}
	}
	return int64(id), nil
}
