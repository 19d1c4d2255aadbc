package serving

import (
	"fmt"
	"strconv"
	"strings"
)

// Token names a place in the log. Everything applied up to there is seen by a read that carries it, in any region.
type Token struct {
	ClusterID, Epoch, LogIndex uint64
}

// Token returns the place that the facts describe.
func (f Facts) Token() Token {
	return Token{ClusterID: f.Identity.ClusterID, Epoch: f.Identity.Epoch, LogIndex: f.LogIndex}
}

// String returns the text form, "<cluster id in hex>-<epoch>-<log index>".
func (t Token) String() string { return string(t.Append(make([]byte, 0, 64))) }

// Append appends the text form to b.
func (t Token) Append(b []byte) []byte {
	for shift := 60; shift >= 0; shift -= 4 {
		b = append(b, "0123456789abcdef"[t.ClusterID>>shift&15])
	}
	b = strconv.AppendUint(append(b, '-'), t.Epoch, 10)
	return strconv.AppendUint(append(b, '-'), t.LogIndex, 10)
}

// ParseToken reads the text form.
func ParseToken(text string) (Token, error) {
	parts := strings.Split(text, "-")
	if len(parts) != 3 {
		return Token{}, fmt.Errorf("token %.64q: want <cluster id>-<epoch>-<log index>", text)
	}
	var t Token
	for i, field := range []struct {
		into *uint64
		base int
	}{{&t.ClusterID, 16}, {&t.Epoch, 10}, {&t.LogIndex, 10}} {
		value, err := strconv.ParseUint(parts[i], field.base, 64)
		if err != nil {
			return Token{}, fmt.Errorf("token %.64q: %.32q is not a number", text, parts[i])
		}
		*field.into = value
	}
	return t, nil
}
